"""The attention of one token by comfy-kitchen's kernel, which divides the keys among all processors of a card.

PyTorch's kernels with a mask give a key/value head to one processor, which walks along all keys.
"""

from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch

WIDTHS = (64, 128, 256)  # of heads


def can_split(cache: torch.Tensor, scaling: float) -> bool:
    """Whether the kernel serves a cache [..., head width] on its device, and this factor of the scores."""
    width = cache.shape[-1]
    fits = cache.dtype == torch.bfloat16 and width in WIDTHS and scaling == width**-0.5
    return fits and _comfy_kitchen() is not None and _comfy_kitchen().flash_attention_decode_is_available(cache.device)


def split_decode() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The kernel: queries [B, 1, heads, width], keys and values [B, capacity, key/value heads, width], lengths [B] int32 -> the
    mixed values, as the queries. A query attends to the first `lengths` keys."""
    return _comfy_kitchen().flash_attention_decode


@cache
def _comfy_kitchen() -> ModuleType | None:
    """comfy-kitchen where it has the kernel."""
    try:
        import comfy_kitchen
    except ImportError:
        return None
    return comfy_kitchen if hasattr(comfy_kitchen, "flash_attention_decode_is_available") else None
