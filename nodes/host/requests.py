"""What travels from a sampler node to a host: requests, and the entries of a conditioning that the pack's nodes read."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...glmimage_core.cogview3.text import MicroConditions
from ...glmimage_core.glm_image.denoise import Approximations
from ...glmimage_core.glm_image.prior import Prior
from ...glmimage_core.glm_image.references import Reference

# Entries that Apply Prior puts into a conditioning
PRIOR_KEY = "glm_image_prior"
REFERENCES_KEY = "glm_image_references"
DROP_KEY = "glm_image_drop_prior"  # true where the prior only gives the size
# And CogView3 Encode Prompt
MICRO_CONDITIONS_KEY = "cogview3_micro_conditions"


class SampleRequest(NamedTuple):
    """What GLM-Image Sampler is asked to paint.

    positive, negative: conditionings of one entry, the positive one with the prior and the references in it. latents and
    mask as `denoise.sample` takes them.
    """

    prior: Prior
    positive: list
    negative: list
    references: Sequence[Reference]
    seed: int
    batch: int
    steps: int
    cfg: float
    denoise: float
    latents: torch.Tensor | None
    mask: torch.Tensor | None
    sampler_name: str
    approximations: Approximations


class CogView3Request(NamedTuple):
    """What CogView3-Plus Sampler is asked to paint: conditionings of one entry, and what `cogview3.sample` takes."""

    positive: list
    negative: list
    width: int
    height: int
    seed: int
    batch: int
    steps: int
    cfg: float
    denoise: float
    latents: torch.Tensor | None
    mask: torch.Tensor | None


class CogView3BaseRequest(NamedTuple):
    """What CogView3-Base Sampler is asked to paint, or CogView3 Relay: in relay_steps, from latents of the enlarged picture."""

    positive: list
    negative: list
    width: int
    height: int
    seed: int
    batch: int
    steps: int
    cfg: float
    relay_steps: int | None = None
    latents: torch.Tensor | None = None
    mask: None = None


def micro_conditions(options: dict, width: int, height: int) -> MicroConditions:
    """What a conditioning says of its picture of so many pixels; sides of 0 are the picture's own."""
    original, cropped, target = options.get(MICRO_CONDITIONS_KEY, ((0, 0), (0, 0), (0, 0)))
    return MicroConditions((original[0] or height, original[1] or width), cropped, (target[0] or height, target[1] or width))


def applied_prior(options: dict, side: str) -> Prior:
    """The prior in a conditioning that is painted by one. Raises ValueError where none was applied to this side."""
    if options.get(DROP_KEY):
        raise ValueError(f"{side} is the negative output of Apply Prior, which has no plan; swap positive and negative")
    if PRIOR_KEY not in options:
        raise ValueError(
            f"the {side} conditioning carries no prior tokens, without which GLM-Image paints nothing; "
            "connect GLM-Image Apply Prior between prompt and sampler"
        )
    return options[PRIOR_KEY]
