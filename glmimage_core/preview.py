"""Small pictures of work in progress: the token grid as it fills up, and latents without the VAE.

Both project what a model works with to three colours: a codebook by its principal components, latents by a fit to what
the VAE makes of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image

from .geometry import LATENT_PX, Grid, latent_grid
from .vae import Vae, decode, encode

TOKEN_PX = 8  # pixels along a side of one token in its picture
UNFILLED = 32  # grey level of a token that is not there yet
FIT_SIDE = 128  # pixels along a side of the picture that colours are fitted on


def codebook_palette(codebook: torch.Tensor) -> torch.Tensor:
    """A colour for each row of a codebook [N, C]: its first three principal components, spread over 0..255.

    Similar rows get similar colours. Returns [N, 3] uint8. The components are found by subspace iteration from a fixed
    start, so a codebook always has the same colours and no random state is touched.
    """
    rows = codebook.float()
    rows = rows - rows.mean(dim=0)
    axes = torch.randn(rows.shape[1], 3, generator=torch.Generator().manual_seed(0))
    for _ in range(8):
        axes, _ = torch.linalg.qr(rows.T @ (rows @ axes))
    levels = rows @ axes
    levels = levels / (2 * levels.std(dim=0)).clamp(min=1e-6)  # two standard deviations reach the ends
    return ((levels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def token_picture(palette: torch.Tensor, tokens: torch.Tensor, grids: Sequence[Grid]) -> Image.Image:
    """Draw the grid that is filling up, the images of a batch side by side.

    palette: [N, 3] uint8. tokens: [B, T] emitted so far, in the order of `grids`. One token is a square of 8 pixels.
    """
    start = 0
    for grid in grids:  # the last one with a token in it
        if tokens.shape[1] <= start + grid.tokens:
            break
        start += grid.tokens
    here = tokens[:, start : start + grid.tokens]
    colours = torch.full((len(tokens), grid.tokens, 3), UNFILLED, dtype=torch.uint8)
    colours[:, : here.shape[1]] = palette[here]
    rows = colours.reshape(-1, *grid, 3).transpose(0, 1).flatten(1, 2)  # B H W C -> H (B W) C
    picture = Image.fromarray(rows.contiguous().numpy())
    return picture.resize((picture.width * TOKEN_PX, picture.height * TOKEN_PX), Image.Resampling.NEAREST)


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
