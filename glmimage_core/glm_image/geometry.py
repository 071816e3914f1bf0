"""Sizes: how a picture in pixels becomes grids of prior tokens, DiT tokens and latents.

One prior token covers 32 x 32 pixels, one DiT token 16 x 16, one latent cell 8 x 8. Nothing here touches a model.
"""

import itertools
import math

import torch

from ..diffusion import Grid

PRIOR_PX = 32  # pixels along a side of one prior token
MIN_SIDE, MAX_SIDE = 192, 4096  # pixels


def check_size(width: int, height: int) -> None:
    """Raise ValueError unless both sides, in pixels, are multiples of 32 from 192 to 4096."""
    for name, side in (("width", width), ("height", height)):
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise ValueError(f"{name} {side} is outside {MIN_SIDE}..{MAX_SIDE} pixels")
        if side % PRIOR_PX:
            below = side // PRIOR_PX * PRIOR_PX
            raise ValueError(f"{name} {side} is not a multiple of {PRIOR_PX}; use {below} or {below + PRIOR_PX}")


def whole_tokens(width: float, height: float) -> tuple[int, int]:
    """The nearest multiples of 32 pixels."""
    return round(width / PRIOR_PX) * PRIOR_PX, round(height / PRIOR_PX) * PRIOR_PX


def size_of(aspect: float, megapixels: float) -> tuple[int, int]:
    """Width and height in pixels of about `megapixels` (of 1024 x 1024) whose width / height is about `aspect`.

    Both sides are multiples of 32 within what `check_size` allows. Of the sizes around the exact one, the one whose aspect
    and area are wrong by the smallest factors is taken. Raises ValueError where the sides would leave the limits.
    """
    area = megapixels * 1024 * 1024
    exact = (math.sqrt(area * aspect), math.sqrt(area / aspect))
    if max(exact) > MAX_SIDE or min(exact) < MIN_SIDE:
        raise ValueError(
            f"{megapixels} megapixels at an aspect of {aspect:.2f} would be {exact[0]:.0f}x{exact[1]:.0f} pixels; "
            f"sides must lie within {MIN_SIDE}..{MAX_SIDE}: choose other megapixels or a milder aspect"
        )
    around = [[math.floor(side / PRIOR_PX) * PRIOR_PX, math.ceil(side / PRIOR_PX) * PRIOR_PX] for side in exact]

    def error(size: tuple[int, int]) -> float:
        width, height = size
        return abs(math.log(width / height / aspect)) + abs(math.log(width * height / area))

    return min(itertools.product(*around), key=error)


def prior_grid(width: int, height: int) -> Grid:
    """The grid of prior tokens that plans a picture of width x height pixels."""
    return Grid(height // PRIOR_PX, width // PRIOR_PX)


def preview_grid(large: Grid) -> Grid:
    """The small grid, about 256 tokens of the same aspect, that text-to-image emits before the large one.

    Source: `GlmImageProcessor._get_target_shape` in transformers, h = int(16 sqrt(H / W)), w = int(16 sqrt(W / H)).
    Its arithmetic is kept as written, since int() of a square root is sensitive to the last bit. It gives no row to
    aspects beyond 256 : 1, which `check_size` cannot let through.
    """
    ratio = large.height / large.width
    return Grid(int(math.sqrt(ratio) * 16), int(math.sqrt(1 / ratio) * 16))


def prior_for_dit(tokens: torch.Tensor) -> torch.Tensor:
    """Repeat prior tokens 2 x 2, as one prior token covers four DiT tokens.

    tokens: [B, H, W] int64. Returns [B, 4 * H * W] in row order of the DiT's grid.
    """
    return tokens.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1)


def reference_grid(width: int, height: int, shortest_edge: int, longest_edge: int) -> Grid:
    """The grid of vision tokens the AR model sees for a reference of any size.

    width, height: pixels of the reference as given. shortest_edge, longest_edge: the limits in pixels between which
    the processor brings its sides (512 and 2048 in the released checkpoint). A reference of grid * 32 pixels is its own
    fit: the processor halves it to grid * 16 pixels, one vision token for each 16 x 16, and the DiT sees 2 x 2 of its
    tokens for each of them. The processor itself refuses aspects above 4; the same arithmetic holds for any aspect.
    Source: `smart_resize` of transformers' GLM-Image image processor.
    """
    scale = max(1.0, shortest_edge / min(width, height))
    if max(width, height) * scale > longest_edge:
        scale = longest_edge / max(width, height)
    half = PRIOR_PX // 2
    return Grid(max(1, round(height // 2 * scale / half)), max(1, round(width // 2 * scale / half)))
