"""What a sampler node asks of its host, and the entries of a conditioning that only the pack's nodes read."""

from dataclasses import dataclass

import torch

from ...glmimage_core.cogview3.text import MicroConditions
from ...glmimage_core.diffusion import LATENT_PX, latent_grid
from ...glmimage_core.glm_image.denoise import Approximations
from ...glmimage_core.glm_image.prior import Prior
from ...glmimage_core.glm_image.references import Reference

# Entries that Apply Prior writes into a conditioning
PRIOR_KEY = "glm_image_prior"
REFERENCES_KEY = "glm_image_references"
DROP_KEY = "glm_image_drop_prior"  # true on the negative side, which takes only its size from the prior
REPLAN_KEY = "glm_image_replan"  # where ar and vae are connected: latents of another size -> their own plan
# Entry that CogView3 Encode Prompt writes
MICRO_CONDITIONS_KEY = "cogview3_micro_conditions"


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What every family's sampler takes. A host finds the function that answers a request by the request's type.

    positive, negative: conditionings of one entry, [[embeddings, options]]. Image i of the batch uses seed + i.
    """

    positive: list
    negative: list
    seed: int
    batch: int
    steps: int
    cfg: float


@dataclass(frozen=True, kw_only=True)
class GlmImageRequest(SampleRequest):
    """A run of GLM-Image Sampler. latents and mask are as `denoise.sample` takes them."""

    prior: Prior
    references: tuple[Reference, ...]
    denoise: float
    latents: torch.Tensor | None
    mask: torch.Tensor | None
    sampler_name: str
    approximations: Approximations


@dataclass(frozen=True, kw_only=True)
class CogView3Request(SampleRequest):
    """A run of CogView3-Plus Sampler. latents and mask are as `plus.sample` takes them; width and height are pixels."""

    width: int
    height: int
    denoise: float
    latents: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class CogView3BaseRequest(SampleRequest):
    """A run of CogView3-Base Sampler; width and height are pixels."""

    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class CogView3RelayRequest(SampleRequest):
    """A run of CogView3 Relay: the last relay_steps of `steps`.

    low: [B, 4, height / 8, width / 8], latents of the enlarged pictures in the VAE's space.
    """

    low: torch.Tensor
    relay_steps: int

    @property
    def height(self) -> int:
        return self.low.shape[2] * LATENT_PX

    @property
    def width(self) -> int:
        return self.low.shape[3] * LATENT_PX


def micro_conditions(options: dict, width: int, height: int) -> MicroConditions:
    """The size conditioning in a conditioning's options, for a picture of width x height pixels, which replace sides of 0."""
    original, cropped, target = options.get(MICRO_CONDITIONS_KEY, ((0, 0), (0, 0), (0, 0)))
    return MicroConditions((original[0] or height, original[1] or width), cropped, (target[0] or height, target[1] or width))


def applied_prior(options: dict, side: str) -> Prior:
    """The prior that Apply Prior wrote into the options of the positive conditioning.

    side: the name of the sampler's input, for the message. Raises ValueError for options without a prior and for those of
    the negative output.
    """
    if options.get(DROP_KEY):
        raise ValueError(f"{side} is the negative output of Apply Prior, which has no plan; swap positive and negative")
    if PRIOR_KEY not in options:
        raise ValueError(
            f"the {side} conditioning carries no prior tokens, and GLM-Image cannot paint without them; "
            "connect GLM-Image Apply Prior between prompt and sampler"
        )
    return options[PRIOR_KEY]


def fitting_prior(options: dict, latents: torch.Tensor | None) -> Prior:
    """The prior in a conditioning's options, or the plan of latents, [B, 16, height / 8, width / 8], that are of another size.

    Where Apply Prior was given nothing to read them with, or where they are empty, it is the prior as it is.
    """
    prior = options[PRIOR_KEY]
    if latents is None or REPLAN_KEY not in options or tuple(latents.shape[2:]) == latent_grid(prior.width, prior.height):
        return prior
    return options[REPLAN_KEY](latents) if latents.any() else prior
