"""A picture's own plan: its vision tokens at the size that is to be painted. Only the AR model's vision half runs.

Painted from noise, such a plan keeps what is in the picture and where, and not its pixels. A picture drawn by hand is a plan
drawn by hand.
"""

from collections.abc import Sequence

import torch
from PIL import Image

from ...progress import Progress, no_progress
from ..ar_model import ArModel, vision_tokens
from ..draw import Sampling
from ..geometry import PRIOR_PX, check_size
from ..prior import Prior


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

    The AR model's vision half is where it is. prompt: kept with the plans, as words for what they show; nothing was drawn by it.
    Raises ValueError for a bad size before the model runs.
    """
    check_size(width, height)
    progress(0, len(pictures))
    tokens = []
    for picture in pictures:
        sized = picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)
        tokens.append(vision_tokens(ar, sized))
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
