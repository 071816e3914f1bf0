"""The grid of prior tokens as a picture, while it fills up."""

from collections.abc import Sequence

import torch
from PIL import Image

from ..diffusion import Grid

TOKEN_PX = 8  # pixels along a side of one token in its picture
UNFILLED = 32  # grey level of a token that is not there yet


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
