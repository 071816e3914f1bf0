"""What the painters of all families share: grids of latents and tokens, the first noise, the seeds of a batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Grid(NamedTuple):
    """Rows and columns of a grid of tokens."""

    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.height * self.width


LATENT_PX = 8  # pixels along a side of one latent cell
DIT_PX = 16  # pixels along a side of one DiT token: VAE factor 8 times patch 2


def latent_grid(width: int, height: int) -> Grid:
    """The latent cells of a picture of width x height pixels."""
    return Grid(height // LATENT_PX, width // LATENT_PX)


def dit_token_count(width: int, height: int) -> int:
    """How many tokens the DiT sees for a picture of width x height pixels."""
    return (height // DIT_PX) * (width // DIT_PX)


BATCH_CFG_TOKENS = 4096
"""DiT tokens up to which both sides of the guidance share a pass, where they can; one 1024 x 1024 picture fills a device."""


def initial_noise(seeds: Sequence[int], channels: int, grid: Grid) -> torch.Tensor:
    """Unit noise, the first of a fresh CPU generator for each seed: [B, channels, *grid] float32."""
    draws = [torch.randn(1, channels, *grid, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.cat(draws)


def batches_cfg(side: int) -> bool:
    """Whether both sides of the guidance, of so many DiT tokens each, go through the DiT together where they can."""
    return 2 * side <= BATCH_CFG_TOKENS


def image_seeds(seed: int, count: int) -> list[int]:
    """The seeds of a batch: image i of it can be made again alone with seed + i (modulo 2^64)."""
    return [(seed + i) % 2**64 for i in range(count)]


def check_start(latents: torch.Tensor | None, mask: torch.Tensor | None, *, batch: int, denoise: float) -> None:
    """Raise ValueError where a run of `batch` pictures cannot start from these latents.

    denoise: 0..1. latents: [1 or B, C, h, w]; a denoise below 1 starts from them. mask: [1 or B, 1, h, w], which keeps them where
    it is 0. An empty latent image, all zeros, has nothing to start from or to keep.
    """
    if not 0 <= denoise <= 1:
        raise ValueError(f"denoise is {denoise}; it must lie in 0..1")
    if latents is None:
        if denoise < 1:
            raise ValueError(f"denoise is {denoise}, which starts from a latent image, but none is connected")
        if mask is not None:
            raise ValueError("a mask keeps a part of a latent image, but none is connected")
        return
    if (denoise < 1 or mask is not None) and not latents.any():
        raise ValueError(
            "the latent image is an empty one, of which nothing can be kept; encode a picture, or use denoise 1 and no mask"
        )
    for name, count in (("latent images", len(latents)), ("masks", 1 if mask is None else len(mask))):
        if count not in (1, batch):
            raise ValueError(f"{count} {name} do not go with {batch} images to paint; use 1 or {batch}")


def merge_masked(known: torch.Tensor, painted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`painted` where the mask is 1, `known` where it is 0, a blend between. [B, C, h, w]; the mask [1 or B, 1, h, w]."""
    return torch.lerp(known, painted, mask)


def whole_steps(steps: int, denoise: float) -> int:
    """How many steps the schedule has of which `steps` are the last `denoise` (0 < denoise <= 1)."""
    return max(steps, int(steps / denoise))
