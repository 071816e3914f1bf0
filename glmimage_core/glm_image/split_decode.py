"""The attention of one token by comfy-kitchen's kernel, which divides the keys among all processors of a card.

PyTorch's kernels with a mask give a key/value head to one processor, which walks along all keys.
"""

from collections.abc import Callable

import torch

from ..placement.compute import comfy_kitchen_with

AVAILABLE = "flash_attention_decode_is_available"  # comes with the kernel
FIRST_WIDTH, WIDTHS = 128, (64, 128, 256)  # of heads: of the first releases that have the kernel, and since 0.2.40


def can_split(cache: torch.Tensor, scaling: float) -> bool:
    """Whether the kernel serves a cache [..., head width] on its device, and this factor of the scores."""
    kitchen, width = comfy_kitchen_with(AVAILABLE), cache.shape[-1]
    if kitchen is None or not cache.is_cuda or cache.dtype != torch.bfloat16 or scaling != width**-0.5:
        return False
    widths = WIDTHS if hasattr(kitchen, "flash_attention_decode_gqa") else (FIRST_WIDTH,)
    return width in widths and kitchen.flash_attention_decode_is_available(cache.device)


def split_decode() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The kernel: queries [B, 1, heads, width], keys and values [B, capacity, key/value heads, width], lengths [B] int32 -> the
    mixed values, as the queries. A query attends to the first `lengths` keys."""
    return comfy_kitchen_with(AVAILABLE).flash_attention_decode
