"""Latents as colours without the VAE: a linear fit to what the VAE decodes."""

from typing import NamedTuple

import torch

from .diffusion import LATENT_PX, latent_grid
from .vae import Vae, decode, encode


class LatentColours(NamedTuple):
    """A linear guess at the picture that normalised latents decode to: colour in -1..1 = latent @ factors + bias.

    factors: [channels, 3]. bias: [3].
    """

    factors: torch.Tensor
    bias: torch.Tensor

    def guess(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, channels, h, w] normalised latents to [B, h, w, 3] in -1..1 and a little beyond."""
        return latents.movedim(1, -1) @ self.factors + self.bias


def averaged(vae: Vae, latents: torch.Tensor) -> torch.Tensor:
    """What the VAE decodes, averaged over the 8 x 8 pixels of each latent cell: [B, h, w, 3] in -1..1."""
    decoded = decode(vae, latents).movedim(-1, 1) * 2 - 1  # BHWC 0..1 -> BCHW -1..1
    return torch.nn.functional.avg_pool2d(decoded, LATENT_PX).movedim(1, -1)


@torch.inference_mode()
def fit_latent_colours(vae: Vae, pictures: torch.Tensor | None = None) -> LatentColours:
    """Fit the colours by ridge regression between latents of pictures and what the VAE decodes them to, 8 x 8 averaged.

    pictures: [B, H, W, 3] in 0..1, sides multiples of 8; a made-up one of soft and hard colour changes by default. The
    working size is small, so on a CPU the released VAE takes seconds. Changes nothing in the VAE.
    """
    if pictures is None:
        pictures = colour_chart()
    latents = encode(vae, pictures)
    colours = averaged(vae, latents).reshape(-1, 3)
    cells = vae.space.normalise(latents).movedim(1, -1).flatten(0, 2)  # [cells, channels]
    known = torch.cat([cells, torch.ones(len(cells), 1)], dim=1).double()
    # One cell's worth of doubt for each channel, which keeps the factors small where the pictures say nothing.
    doubt = torch.diag(torch.tensor([1.0] * cells.shape[1] + [0.0])).double()
    solution = torch.linalg.solve(known.T @ known + doubt, known.T @ colours.double()).float()
    return LatentColours(solution[:-1], solution[-1])


def colour_chart() -> torch.Tensor:
    """[1, 128, 128, 3] in 0..1: half of it random colours that flow into each other, half the same in hard squares."""
    cells = latent_grid(FIT_SIDE, FIT_SIDE)
    patches = torch.rand(1, 3, cells.height // 2, cells.width // 2, generator=torch.Generator().manual_seed(0))
    soft = torch.nn.functional.interpolate(patches, (FIT_SIDE, FIT_SIDE), mode="bicubic").clamp(0, 1)
    hard = torch.nn.functional.interpolate(patches, (FIT_SIDE, FIT_SIDE), mode="nearest")
    return torch.cat([soft[:, :, : FIT_SIDE // 2], hard[:, :, FIT_SIDE // 2 :]], dim=2).movedim(1, -1)


FIT_SIDE = 128  # pixels along a side of the picture that colours are fitted on
