"""NF4 as a layout of comfy-kitchen: 4 bits a weight, the same codes and scales as bitsandbytes' nf4 in blocks of 64.

Sixteen levels at the quantiles of a normal distribution (QLoRA, arXiv:2305.14314). Importing this module needs comfy-kitchen
and registers the layout there; `formats.comfy_kitchen_tensor` imports it. Here a product dequantizes the weight first; `compiled`
knows better ways on CUDA.
"""

from dataclasses import dataclass
from functools import cache

import torch
from comfy_kitchen.tensor import (
    BaseLayoutParams,
    QuantizedLayout,
    QuantizedTensor,
    register_layout_class,
    register_layout_op,
)

NAME = "GlmImageNF4Layout"
BLOCK = 64  # weights of a row that share a scale, bitsandbytes' default
QUANTIZED_ROWS = 256  # at once: the temporaries of a row are eight times as large as the row in bfloat16
DEQUANTIZED_ROWS = 1024  # at once: the temporaries of a row are seven times as large as the row in bfloat16
SINGLE_ROWS = 8  # up to which products of single rows move fewer bytes: 0.5 a weight and row, against 0.5 + 2 + 2 once
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@cache
def levels_on(device: torch.device) -> torch.Tensor:
    """[16] float32. Cached, since a CUDA graph cannot record a copy from Python."""
    return torch.tensor(LEVELS, device=device)


@cache
def _pairs_on(device: torch.device) -> torch.Tensor:
    """The two levels of each byte of codes, [256, 2] float32."""
    levels = levels_on(device)
    return torch.stack((levels.repeat_interleave(16), levels.repeat(16)), dim=-1)


class NF4Layout(QuantizedLayout):
    """A weight [N, K] as codes [N, K / 2] uint8, the first of a pair in the high half, and scales [N, K / 64] float32.

    K is a multiple of 64.
    """

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """The fields of every layout: scale, orig_dtype, orig_shape."""

    @classmethod
    def quantize(cls, tensor: torch.Tensor, **_options) -> tuple[torch.Tensor, Params]:
        """Quantize [N, K]. The options of other layouts, such as how to round, have no meaning here."""
        rows, columns = tensor.shape
        packed = torch.empty(rows, columns // 2, dtype=torch.uint8, device=tensor.device)
        scale = torch.empty(rows, columns // BLOCK, device=tensor.device)
        levels = levels_on(tensor.device)
        midpoints = (levels[1:] + levels[:-1]) / 2  # a weight takes the level on its side of the next midpoint
        for first in range(0, rows, QUANTIZED_ROWS):
            chunk = slice(first, first + QUANTIZED_ROWS)
            blocks = tensor[chunk].float().view(-1, columns // BLOCK, BLOCK)
            scale[chunk] = blocks.abs().amax(dim=-1)
            # A block of zeros has scale 0; the clamp keeps its quotient 0.
            blocks = blocks / scale[chunk, :, None].clamp(min=1e-12)
            codes = torch.bucketize(blocks, midpoints, out_int32=True).view(-1, columns)
            packed[chunk] = codes[:, ::2] << 4 | codes[:, 1::2]
        return packed, cls.Params(scale=scale, orig_dtype=tensor.dtype, orig_shape=(rows, columns))

    @classmethod
    def dequantize(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        weight = torch.empty(params.orig_shape, dtype=params.orig_dtype, device=qdata.device)
        for first in range(0, len(qdata), DEQUANTIZED_ROWS):
            chunk = slice(first, first + DEQUANTIZED_ROWS)
            blocks = _pairs_on(qdata.device)[qdata[chunk].int()].view(-1, params.scale.shape[1], BLOCK)
            weight[chunk] = (blocks * params.scale[chunk, :, None]).flatten(1)
        return weight

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: torch.Tensor, params: Params) -> dict[str, torch.Tensor]:
        return {"": qdata, "_scale": params.scale}


register_layout_class(NAME, NF4Layout)


@register_layout_op(torch.ops.aten.linear.default, NF4Layout)
def _linear(_tensor, arguments: tuple, _options: dict) -> torch.Tensor:
    x, weight, bias = (*arguments, None)[:3]
    return torch.nn.functional.linear(x, weight.dequantize(), bias)


def by_bitsandbytes(x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product by bitsandbytes' kernels. x: [..., K].

    A few rows are products of single rows, which read the 4-bit codes themselves. For more rows one operation widens the weight.
    """
    import bitsandbytes
    from bitsandbytes.functional import QuantState, dequantize_4bit

    packed, scale = NF4Layout.get_plain_tensors(weight)
    levels = levels_on(packed.device)
    state = QuantState(scale.view(-1), weight.shape, levels, blocksize=BLOCK, quant_type="nf4", dtype=weight.dtype)
    rows = x.reshape(-1, 1, x.shape[-1])
    if len(rows) > SINGLE_ROWS:
        return torch.nn.functional.linear(x, dequantize_4bit(packed.view(-1, 1), state), bias)
    if len(rows) == 1:
        return bitsandbytes.matmul_4bit(x, packed.view(-1, 1).t(), state, bias=bias)
    products = [bitsandbytes.matmul_4bit(row, packed.view(-1, 1).t(), state, bias=bias) for row in rows]
    return torch.cat(products).view(*x.shape[:-1], -1)
