"""Inpainting and outpainting: a part of a picture planned and painted anew, with the picture itself as a reference.

    padded           a picture with room around it, and the mask of that room
    to_be_read       the picture as the models read it, and its mask
    inpaint_prior    the plan: the picture's own vision tokens outside the mask, drawn anew inside
    latent_mask      which latents may change

The planner reads the picture as a reference, so that it sees all around the hole, also below and right of it. What is under the
mask is shown to it where the prompt says how that is to change, and erased where the prompt says what is to be there instead.
"""

from collections.abc import Sequence

import torch
from PIL import Image

from ..diffusion import latent_grid
from ..images import from_picture, to_pictures, to_rgb
from ..masks import MASKED_FROM, as_batch, filled, resized, touched
from .ar_model import ArModel, fit
from .draw import Sampling
from .geometry import PRIOR_PX, check_size
from .prior import Prior
from .references import Reference
from .regrow import regrow_prior


def padded(
    image: torch.Tensor, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture [B, H, W, C] with so many pixels more on its sides, in the colours next to them, and the mask of what was added.

    Added on the right and at the bottom is also what is missing to sides that are multiples of 32 pixels. Returns
    [B, height, width, 3] and [1, height, width] float32. Raises ValueError for a side below 0 and for a size that
    GLM-Image cannot paint.
    """
    for name, pixels in {"left": left, "top": top, "right": right, "bottom": bottom}.items():
        if pixels < 0:
            raise ValueError(f"{name} is {pixels}; it must be 0 pixels or above")
    image = to_rgb(image)
    height, width = image.shape[1:3]
    rows, columns = top + height + bottom, left + width + right
    rows, columns = rows + -rows % PRIOR_PX, columns + -columns % PRIOR_PX
    check_size(columns, rows)
    whole = image.new_zeros(len(image), rows, columns, 3)
    whole[:, top : top + height, left : left + width] = image
    mask = torch.ones(1, rows, columns)
    mask[:, top : top + height, left : left + width] = 0
    return filled(whole, mask >= MASKED_FROM), mask


def to_be_read(ar: ArModel, image: torch.Tensor, mask: torch.Tensor, *, erase: bool) -> tuple[Image.Image, torch.Tensor]:
    """A picture [1, H, W, C] as `references.encode_reference` takes it, and the mask over it: [B, height, width] float32, 0 or 1.

    The picture has the size of its fit: sides that are multiples of 32 pixels. erase: fill what is masked with the colours around
    it. Raises ValueError for several pictures and for what is no picture or no mask.
    """
    if len(image) != 1:
        raise ValueError(f"{len(image)} pictures were given, and one is inpainted at a time; choose one with ImageFromBatch")
    picture = fit(ar, to_pictures(image)[0])
    masked = resized(mask, picture.height, picture.width)
    if erase:
        if len(masked) != 1:
            raise ValueError(f"{len(masked)} masks erase different parts of the one picture that is read; give one mask")
        picture = to_pictures(filled(from_picture(picture), masked))[0]
    return picture, masked.float()


def reference_plan(reference: Reference) -> Prior:
    """The vision tokens of a reference as the plan of a picture of its size."""
    return Prior(
        tokens=reference.vision_tokens[None],
        preview=None,
        width=reference.width,
        height=reference.height,
        prompt="",
        seed=0,
        sampling=Sampling(),
        codebook=reference.codebook,
    )


def inpaint_prior(
    ar: ArModel, reference: Reference, mask: torch.Tensor, prompt: str, *, others: Sequence[Reference] = (), **settings
) -> Prior:
    """Plan a picture that keeps a reference's vision tokens outside a mask. It has the reference's size.

    others: further references, after it. settings: as `regrow_prior` takes them, which this raises as.
    """
    return regrow_prior(ar, reference_plan(reference), mask, prompt, references=(reference, *others), **settings)


def latent_mask(mask: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Which latents of a picture of width x height pixels a mask touches: [B, 1, height / 8, width / 8] float32, 0 or 1."""
    return touched(as_batch(mask), latent_grid(width, height)).float()[:, None]
