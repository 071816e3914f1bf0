"""Products with fp8 and nf4 weights in kernels that torch.compile writes: on CUDA they read the codes themselves.

A product of a few rows takes as long as its weights take to arrive: 1 byte of fp8 or 0.56 of nf4 a weight, where one that is
widened first is read, written and read again. Each function is an operation of PyTorch's, so that compiled models and CUDA
graphs take it as it is. Where no kernel can be compiled, plain operations widen the weight.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import NamedTuple
from zlib import crc32

import torch
from torch.nn.functional import linear

from ..libraries import started

log = logging.getLogger(__name__)

FEW_ROWS = 8
COMPILED_ON = ("cuda", "meta")  # the meta device stands for CUDA where kernels are counted
MOST_KERNELS = 64  # of a function: one for each number of rows and format, and a few for sizes that are alike

# A copy of the pack under another name has operations of its own.
FEW_ROWS_OPERATION, WIDENED_OPERATION = (f"glm_image_{crc32(__name__.encode()):08x}::{name}" for name in ("few_rows", "widened"))

_cannot_compile: set[torch.device] = set()


class Reading(NamedTuple):
    """How a kernel reads the weights of a format.

    parts: a QuantizedTensor -> the tensors that it reads, the codes first. widen: (parts, dtype) -> the weight [N, K], by
    operations that the compiler puts into one kernel.
    """

    parts: Callable[[torch.Tensor], list[torch.Tensor]]
    widen: Callable[[list[torch.Tensor], torch.dtype], torch.Tensor]


def _fp8_weight(parts: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    codes, scale = parts
    return codes.to(dtype) * scale.to(dtype)


def _nf4_parts(weight: torch.Tensor) -> list[torch.Tensor]:
    from .nf4 import levels_on

    return [weight._qdata, weight._params.scale, levels_on(weight._qdata.device)]


def _nf4_weight(parts: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    codes, scale, levels = parts
    halves = codes[..., None] >> (4 - 4 * torch.arange(2, device=codes.device)) & 15  # [N, K / 2, 2], the first in the high half
    return (levels[halves].view(*scale.shape, -1) * scale[..., None]).flatten(1).to(dtype)


NF4 = "GlmImageNF4Layout"
READINGS = {
    "TensorCoreFP8Layout": Reading(lambda weight: [weight._qdata, weight._params.scale], _fp8_weight),
    NF4: Reading(_nf4_parts, _nf4_weight),
}
"""By comfy-kitchen's names of the formats."""


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., K] times a QuantizedTensor [N, K], plus a bias [N]: [..., N], all in the dtype of x.

    bitsandbytes' kernels for nf4 are older and read single rows; where it is installed, only a few rows are left for these here.
    """
    rows, layout = x.numel() // x.shape[-1], weight._layout_cls
    reading, compiles = READINGS.get(layout), may_compile(x.device)
    if layout == NF4 and x.device.type == "cuda" and not (compiles and 1 < rows <= FEW_ROWS) and started("bitsandbytes"):
        from .nf4 import by_bitsandbytes

        return by_bitsandbytes(x, weight.to(x.dtype), bias)
    if reading is not None and compiles:
        try:
            if rows <= FEW_ROWS:
                return few_rows(x.reshape(rows, -1), reading.parts(weight), bias, layout).view(*x.shape[:-1], -1)
            return linear(x, widened(reading.parts(weight), weight.shape[1], x.dtype, layout), bias)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("fp8 and nf4 are slow here, since no kernel can be compiled: %s", str(error).strip().splitlines()[0])
            _cannot_compile.add(x.device)
    return linear(x, weight.to(x.dtype), bias)


def may_compile(device: torch.device) -> bool:
    """Whether kernels are compiled for a device, and none has failed there."""
    return device.type in COMPILED_ON and device not in _cannot_compile


@torch.library.custom_op(FEW_ROWS_OPERATION, mutates_args=())
def few_rows(x: torch.Tensor, parts: list[torch.Tensor], bias: torch.Tensor | None, layout: str) -> torch.Tensor:
    """x [rows, K] times a weight [N, K], plus a bias [N]: [rows, N], with sums in float32. rows: at most FEW_ROWS."""
    return compiled(_sums)(x, parts, bias, layout)


@few_rows.register_fake
def _(x, parts, bias, layout):
    return x.new_empty(len(x), len(parts[0]))


@torch.library.custom_op(WIDENED_OPERATION, mutates_args=())
def widened(parts: list[torch.Tensor], columns: int, dtype: torch.dtype, layout: str) -> torch.Tensor:
    """The weight [N, columns]."""
    return compiled(_weight)(parts, dtype, layout)


@widened.register_fake
def _(parts, columns, dtype, layout):
    return parts[0].new_empty(len(parts[0]), columns, dtype=dtype)


@cache
def compiled(function: Callable) -> Callable:
    """A function as kernels for all sizes of a weight. Raises RuntimeError where there is no compiler."""
    limits = torch._dynamo.config.patch(recompile_limit=MOST_KERNELS, fail_on_recompile_limit_hit=True)
    return limits(torch.compile(function, dynamic=True))


def _sums(x: torch.Tensor, parts: list[torch.Tensor], bias: torch.Tensor | None, layout: str) -> torch.Tensor:
    """A sum for each row and output: reductions over one weight, which the compiler reads once for all rows."""
    weight = _weight(parts, x.dtype, layout).float()
    sums = torch.stack([(row.float() * weight).sum(dim=-1) for row in x])
    return (sums if bias is None else sums + bias.float()).to(x.dtype)


def _weight(parts: list[torch.Tensor], dtype: torch.dtype, layout: str) -> torch.Tensor:
    return READINGS[layout].widen(parts, dtype)
