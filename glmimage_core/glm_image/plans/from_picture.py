"""A picture's own plan: its vision tokens at the size that is to be painted. Only the AR model's vision half runs.

Painted from noise, such a plan keeps what is in the picture and where, and not its pixels. A picture drawn by hand is a plan
drawn by hand. The plan of an enlarged picture says what is where at the new size. Enlarged tokens do not: a token is a certain
part of a thing.
"""

from collections.abc import Sequence

import torch
from PIL import Image

from ...progress import Progress, no_progress
from ..ar_model import ArModel, vision_tokens
from ..draw import Sampling
from ..geometry import PRIOR_PX, check_size
from ..prior import Prior
from ..tiles import Tiling, tiles_of, weights

READ_OVERLAP = 256
"""Pixels that the tiles share in which a picture is read that is larger than a reference may be."""


def plan_size(picture: tuple[int, int], width: int = 0, height: int = 0) -> tuple[int, int]:
    """Width and height in pixels of the plan of a picture of such a size.

    A side of 0 follows from the other one and the picture's aspect; with both 0 the plan is as large as the picture. Sides that
    follow are rounded to multiples of 32.
    """
    own_width, own_height = picture
    if width == 0:
        width = _rounded(own_width if height == 0 else own_width * height / own_height)
        height = height or _rounded(own_height)
    return width, height or _rounded(own_height * width / own_width)


def _rounded(side: float) -> int:
    return round(side / PRIOR_PX) * PRIOR_PX


def prior_from_pictures(
    ar: ArModel,
    pictures: Sequence[Image.Image],
    width: int,
    height: int,
    *,
    prompt: str = "",
    progress: Progress = no_progress,
) -> Prior:
    """The plans of some pictures, each resized to width x height pixels.

    The AR model's vision half is where it is. It reads what is larger than a reference may be in tiles. prompt: kept with the
    plans, as words for what they show; nothing was drawn by it. Raises ValueError for a bad size before the model runs.
    """
    check_size(width, height)
    progress(0, len(pictures))
    tokens = []
    for picture in pictures:
        sized = picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)
        tokens.append(_tokens(ar, sized))
        progress(len(tokens), len(pictures))
    return Prior(
        tokens=torch.stack(tokens),
        preview=None,
        width=width,
        height=height,
        prompt=prompt,
        seed=0,
        sampling=Sampling(),
        codebook=ar.codebook,
    )


def read_size(ar: ArModel, width: int, height: int) -> tuple[int, int]:
    """How much of a picture of width x height pixels is read at once, for `memory.vision_bytes`."""
    limit = ar.longest_edge // PRIOR_PX * PRIOR_PX
    return min(width, limit), min(height, limit)


def _tokens(ar: ArModel, picture: Image.Image) -> torch.Tensor:
    """The vision tokens of a picture whose sides are multiples of 32 pixels, [height / 32, width / 32] int64.

    Of tiles that overlap, a token is taken from the one in which it lies furthest inside.
    """
    width, height = picture.size
    side = max(read_size(ar, width, height))
    if side == max(width, height):
        return vision_tokens(ar, picture)
    tokens = torch.zeros(height // PRIOR_PX, width // PRIOR_PX, dtype=torch.int64)
    furthest = torch.zeros(tokens.shape)
    for tile in tiles_of(width, height, Tiling(side, min(READ_OVERLAP, side // 2 // PRIOR_PX * PRIOR_PX))):
        here, inside = tile.cells(PRIOR_PX), weights(tile, PRIOR_PX)
        part = vision_tokens(ar, picture.crop((tile.left, tile.top, tile.left + tile.width, tile.top + tile.height)))
        tokens[here] = torch.where(inside > furthest[here], part, tokens[here])
        furthest[here] = torch.maximum(inside, furthest[here])
    return tokens
