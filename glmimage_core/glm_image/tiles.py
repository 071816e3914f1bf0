"""Pictures larger than the model paints well or a card has memory for: in tiles that overlap.

    tiles_of    where the tiles lie
    blended     what each tile computes, put together for the whole picture

At every step each tile gets a velocity of its own, with its part of the plan, as if it were a picture; where tiles overlap their
velocities are blended. All tiles share one noise and one schedule, so they grow together and no seam is left to be hidden.
Source: MultiDiffusion, arXiv 2302.08113.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..diffusion import DIT_PX, LATENT_PX
from .geometry import MAX_SIDE, MIN_SIDE, PRIOR_PX


@dataclass(frozen=True)
class Tiling:
    """Tiles of `side` x `side` pixels, or less where the picture is smaller, of which neighbours share `overlap` pixels or more.

    Both are multiples of 32 pixels. Raises ValueError for others, and for an overlap of more than half a tile.
    """

    side: int = 1024
    overlap: int = 256

    def __post_init__(self):
        if self.side % PRIOR_PX or not MIN_SIDE <= self.side <= MAX_SIDE:
            raise ValueError(
                f"the side of a tile is {self.side} pixels; it must be a multiple of {PRIOR_PX} in {MIN_SIDE}..{MAX_SIDE}"
            )
        if self.overlap % PRIOR_PX or not 0 <= self.overlap <= self.side // 2:
            allowed = f"a multiple of {PRIOR_PX} in 0..{self.side // 2}, half a tile"
            raise ValueError(f"the overlap is {self.overlap} pixels; it must be {allowed}")


class Tile(NamedTuple):
    """A part of a picture, in pixels: multiples of 32."""

    left: int
    top: int
    width: int
    height: int

    def cells(self, pixels: int) -> tuple[slice, slice]:
        """Its rows and columns in a grid whose cells have so many pixels a side."""
        rows = slice(self.top // pixels, (self.top + self.height) // pixels)
        return rows, slice(self.left // pixels, (self.left + self.width) // pixels)


def tiles_of(width: int, height: int, tiling: Tiling | None) -> list[Tile]:
    """The tiles of a picture of width x height pixels, all of one size, in row order; without a tiling the whole picture."""
    if tiling is None:
        return [Tile(0, 0, width, height)]
    tile_width, tile_height = min(width, tiling.side), min(height, tiling.side)
    return [
        Tile(left, top, tile_width, tile_height)
        for top in _starts(height, tile_height, tiling.overlap)
        for left in _starts(width, tile_width, tiling.overlap)
    ]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin that cover a side evenly, multiples of 32 pixels."""
    if tile == length:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [number * (length - tile) // (count - 1) // PRIOR_PX * PRIOR_PX for number in range(count)]


def blended(tiles: Sequence[Tile], x: torch.Tensor, of_tile: Callable[[Tile, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What `of_tile` computes for each tile of latents x, [B, C, h, w] -> [B, C, h, w] float32.

    A tile counts less towards its edges.
    """
    if len(tiles) == 1:
        return of_tile(tiles[0], x)
    total, weight = torch.zeros_like(x, dtype=torch.float32), torch.zeros(x.shape[-2:], device=x.device)
    for tile in tiles:
        here = (..., *tile.cells(LATENT_PX))
        share = weights(tile, LATENT_PX).to(x.device)
        total[here] += share * of_tile(tile, x[here])
        weight[here[1:]] += share
    return total / weight


def weights(tile: Tile, pixels: int) -> torch.Tensor:
    """How much each cell of a tile counts, in a grid whose cells have so many pixels a side: [h, w] float32, rising in even steps
    from the edges to the middle."""
    down, across = (_ramp(side // pixels) for side in (tile.height, tile.width))
    return down[:, None] * across


def _ramp(length: int) -> torch.Tensor:
    steps = torch.arange(length)
    return (torch.minimum(steps, length - 1 - steps) + 0.5) / length


def part_of(tokens: torch.Tensor, tile: Tile, width: int) -> torch.Tensor:
    """A tile's part of what belongs to the DiT's tokens of a picture `width` pixels wide: [B, T, D] -> [B, t, D]."""
    grid = tokens.unflatten(1, (-1, width // DIT_PX))
    rows, columns = tile.cells(DIT_PX)
    return grid[:, rows, columns].flatten(1, 2)
