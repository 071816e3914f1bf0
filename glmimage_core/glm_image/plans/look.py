"""The grid of a plan as a picture: a colour for each token, alone or over the picture that was painted from it; and many pictures
on one sheet.

Pictures are [B, H, W, 3] float32 in 0..1.
"""

import math

import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import interpolate

from ...images import from_picture, to_pictures
from ..geometry import PRIOR_PX

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def token_colours(tokens: torch.Tensor, palette: torch.Tensor | None = None) -> torch.Tensor:
    """A colour for each token, the same one in every plan: [B, h, w] int64 -> [B, h, w, 3].

    palette: the codebook's, [N, 3] uint8, which gives similar tokens similar colours. Without it a token's hue follows from its
    number, and says only where tokens are equal.
    """
    if palette is not None:
        return palette[tokens].float() / 255
    hue = (tokens.double() * GOLDEN_RATIO % 1).float()[..., None]
    return ((hue * 6 + torch.tensor([0.0, 4.0, 2.0])) % 6 - 3).abs().sub(1).clamp(0, 1)


def heat(values: torch.Tensor) -> torch.Tensor:
    """Values in 0..1 as colours from black over red and yellow to white: [...] -> [..., 3]."""
    return (3 * values[..., None] - torch.arange(3)).clamp(0, 1)


def as_squares(cells: torch.Tensor, width: int = 0, height: int = 0) -> torch.Tensor:
    """Cells [B, h, w, C] as squares of a picture of width x height pixels, by default of 32 pixels a side."""
    size = (height or cells.shape[1] * PRIOR_PX, width or cells.shape[2] * PRIOR_PX)
    return interpolate(cells.movedim(-1, 1), size, mode="nearest-exact").movedim(1, -1)


def laid_over(image: torch.Tensor, cells: torch.Tensor, opacity: float) -> torch.Tensor:
    """A picture with the colours of cells, [B, h, w, 3], over it. opacity: of the colours, 0..1.

    The grid takes the picture's size. A batch of one goes with any number; raises ValueError for other batches.
    """
    if 1 not in (len(image), len(cells)) and len(image) != len(cells):
        raise ValueError(f"{len(image)} images and {len(cells)} plans do not go together; use 1 or as many of each")
    squares = as_squares(cells, width=image.shape[2], height=image.shape[1])
    return image + opacity * (squares - image)


def contact_sheet(images: torch.Tensor, columns: int = 0) -> torch.Tensor:
    """All pictures of a batch on one, each with its number, counted from 0: [B, H, W, 3] -> [1, rows * H, columns * W, 3].

    columns: by default as many as make the sheet about square.
    """
    pictures = to_pictures(images)
    columns = min(columns, len(pictures)) or math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(max(12, min(width, height) // 10))
    for number, picture in enumerate(pictures):
        left, top = number % columns * width, number // columns * height
        sheet.paste(picture, (left, top))
        box = pen.textbbox((left, top), str(number), font=font)
        pen.rectangle((left, top, 2 * box[2] - box[0], 2 * box[3] - box[1]), fill="black")
        pen.text((left + (box[2] - box[0]) / 2, top + (box[3] - box[1]) / 2), str(number), font=font, fill="white")
    return from_picture(sheet)
