"""Operations that the meta device does otherwise than CUDA, or cannot run: a function for each, which `Counting` calls."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..glmimage_core.weights.compiled import FEW_ROWS_OPERATION
from .counter import META, Counting

ALIGNED = 16  # to a multiple of which the memory-efficient attention pads the rows of a mask
aten = torch.ops.aten


def _item(counter: Counting, tensor: torch.Tensor) -> int | float | bool:
    counter.wait("item")
    followed = getattr(tensor, "followed", None)
    return torch.ones((), dtype=tensor.dtype).item() if followed is None else followed.item()


def _nonzero(counter: Counting, tensor: torch.Tensor) -> torch.Tensor | None:
    """As if nothing were zero, where the values are not known."""
    if hasattr(tensor, "followed"):
        return None
    counter.wait("nonzero")
    out = torch.empty(tensor.numel(), tensor.dim(), dtype=torch.int64, device=META)
    counter.made(out)
    counter.kernel("nonzero", [tensor], [out])
    return out


def _index(counter: Counting, tensor: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """A boolean index is the places where it is true, for which the CPU waits."""
    if not any(index is not None and index.dtype == torch.bool for index in indices):
        return None
    places: list[torch.Tensor | None] = []
    with counter:
        for index in indices:
            is_mask = index is not None and index.dtype == torch.bool
            places += index.nonzero().unbind(1) if is_mask else [index]
        return aten.index.Tensor(tensor, places)


def _attention(
    counter: Counting, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others, attn_mask=None, **_
) -> torch.Tensor:
    """[B, heads, T, width] -> the same, whose memory is laid out [B, T, heads, width].

    A mask of bools becomes an added one first, and one whose rows are no multiple of ALIGNED is padded.
    """
    mask = others[0] if others else attn_mask
    with counter:
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, -torch.inf)
        if mask is not None and mask.shape[-1] % ALIGNED:
            mask = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % ALIGNED))
        batch, heads, rows, _ = query.shape
        out = query.new_empty(batch, rows, heads, value.shape[-1]).transpose(1, 2)
    name, masks = ("flash_attention", []) if mask is None else ("efficient_attention", [mask])
    counter.kernel(name, [*masks, query, key, value], [out], flops=4 * query.numel() * key.shape[-2])
    return out


def _rms_norm(counter: Counting, x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None = None, *_) -> tuple:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    deviations = torch.empty(*x.shape[: x.dim() - len(shape)], *(1 for _ in shape), device=META)
    counter.made(out, deviations)
    counter.kernel("_fused_rms_norm", [x] if weight is None else [x, weight], [out, deviations])
    return out, deviations


def _whole_rms_norm(
    counter: Counting, x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None = None, *_, **__
) -> torch.Tensor | None:
    """One kernel where weight and input have one dtype; others PyTorch takes apart on CUDA, too."""
    return None if weight is not None and weight.dtype != x.dtype else _rms_norm(counter, x, shape, weight)[0]


def _group_norm(counter: Counting, x: torch.Tensor, *parameters, **_) -> tuple:
    """Reads its input for the moments, then again for the result."""
    out, mean, deviation = (torch.empty_like(x), *(x.new_empty(x.shape[0], parameters[5]) for _ in range(2)))
    factors = torch.empty(2, x.shape[0], x.shape[1], device=META)
    counter.made(out, mean, deviation, factors)
    affine = [tensor for tensor in parameters[:2] if tensor is not None]
    counter.kernel("group_norm: moments", [x], [mean, deviation])
    counter.kernel("group_norm: factors", [mean, deviation, *affine], [factors])
    counter.kernel("group_norm: result", [x, factors], [out])
    return out, mean, deviation


def _convolution(
    counter: Counting, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *settings
) -> torch.Tensor | None:
    if bias is None:
        return None
    with counter:
        out = aten.convolution.default(x, weight, None, *settings)
        return out.add_(bias.view(1, -1, *(1 for _ in x.shape[2:])))


def _masked_fill(counter: Counting, x: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor:
    with counter:
        return x.clone().masked_fill_(mask, value)


def _pad(counter: Counting, x: torch.Tensor, pad: Sequence[int], value: float = 0) -> torch.Tensor:
    """pad: places before and after, the last side first."""
    before = [0] * (x.dim() - len(pad) // 2) + list(pad[::2])[::-1]
    after = [0] * (x.dim() - len(pad) // 2) + list(pad[1::2])[::-1]
    with counter:
        out = x.new_full([size + a + b for size, a, b in zip(x.shape, before, after, strict=True)], value)
        inside = out
        for side, (start, size) in enumerate(zip(before, x.shape, strict=True)):
            inside = inside.narrow(side, start, size)
        inside.copy_(x)
    return out


def _int8_linear(counter: Counting, x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, *others) -> torch.Tensor:
    """comfy-kitchen's product on CUDA: the rows of the input to 8 bits, then a product that scales its result and adds a bias."""
    rounded = torch.empty(x.shape, dtype=torch.int8, device=META)
    row_scales = torch.empty(*x.shape[:-1], 1, device=META)
    out = x.new_empty(*x.shape[:-1], len(codes))
    counter.made(rounded, row_scales, out)
    biases = [others[0]] if others[0] is not None else []
    counter.kernel("int8: round rows", [x], [rounded, row_scales])
    flops = 2 * x.numel() * len(codes)
    counter.kernel("int8: product", [*biases, scale, row_scales, rounded, codes], [out], flops=flops)
    return out


def _few_rows(
    counter: Counting, x: torch.Tensor, parts: Sequence[torch.Tensor], bias: torch.Tensor | None, *_layout
) -> torch.Tensor:
    """A compiled product, with sums in float32. A second kernel puts the sums of several rows together."""
    codes, *scales = parts
    out, biases, flops = x.new_empty(len(x), len(codes)), [] if bias is None else [bias], 2 * x.numel() * len(codes)
    counter.made(out)
    if len(x) == 1:
        counter.kernel("few rows", [*biases, x, codes, *scales], [out], flops=flops)
        return out
    sums = torch.empty(out.shape, device=META)
    counter.made(sums)
    counter.kernel("few rows", [x, codes, *scales], [sums], flops=flops)
    counter.kernel("few rows: result", [*biases, sums], [out])
    return out


AS_ON_CUDA: dict[str, Callable] = {
    "_local_scalar_dense": _item,
    "nonzero": _nonzero,
    "index": _index,
    "scaled_dot_product_attention": _attention,
    "_fused_rms_norm": _rms_norm,
    "rms_norm": _whole_rms_norm,
    "native_group_norm": _group_norm,
    "convolution": _convolution,
    "masked_fill": _masked_fill,
    "constant_pad_nd": _pad,
    "comfy_kitchen::int8_linear": _int8_linear,
    FEW_ROWS_OPERATION: _few_rows,
}
