"""ComfyUI's samplers, with a DiT of GLM-Image: those of its schedulers and samplers that are GLM-Image's own.

A conditioning must come from GLM-Image Apply Prior. The Euler steps are the library's. Noise is drawn as ComfyUI draws it, all
pictures of a batch from one seed.
"""

from dataclasses import dataclass

import torch

from ....glmimage_core.diffusion import LATENT_PX
from ....glmimage_core.glm_image.denoise import Approximations
from ....glmimage_core.glm_image.schedule import partial_schedule
from ....nodes.host import host
from ....nodes.host.standalone.glm_image import sample
from ....nodes.sampling import glm_image_request
from ....nodes.sockets import glm_dit
from .base import StockNode, pixels

SAMPLERS = ["euler"]
SCHEDULERS = ["simple"]
SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True})
BATCH_SIZE = ("INT", {"default": 1, "min": 1, "max": 4096})
CFG = ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1})


@dataclass(frozen=True)
class Guider:
    """What travels on a GUIDER wire."""

    model: object
    positive: list
    negative: list
    cfg: float


class EmptySD3LatentImage(StockNode):
    TITLE = "EmptySD3LatentImage"
    REQUIRED = {"width": pixels(1024, 16), "height": pixels(1024, 16), "batch_size": BATCH_SIZE}
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "generate"
    CHANNELS = 16

    def generate(self, width, height, batch_size):
        return ({"samples": torch.zeros(batch_size, self.CHANNELS, height // LATENT_PX, width // LATENT_PX)},)


class EmptyLatentImage(EmptySD3LatentImage):
    TITLE = "Empty Latent Image"
    REQUIRED = {"width": pixels(512, 16), "height": pixels(512, 16), "batch_size": BATCH_SIZE}
    CHANNELS = 4


class KSampler(StockNode):
    TITLE = "KSampler"
    REQUIRED = {
        "model": ("MODEL", {}),
        "seed": SEED,
        "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
        "cfg": CFG,
        "sampler_name": (SAMPLERS, {}),
        "scheduler": (SCHEDULERS, {}),
        "positive": ("CONDITIONING", {}),
        "negative": ("CONDITIONING", {}),
        "latent_image": ("LATENT", {}),
        "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
    }
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"

    def sample(self, model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=1.0):
        if denoise == 0:
            return (latent_image,)
        dit = glm_dit(model)
        sigmas = partial_schedule(steps, denoise, dit.shift.of_size(*dit.schedule_of)).sigmas
        return (
            _sampled(Guider(model, positive, negative, cfg), latent_image, seed=seed, sampler_name=sampler_name, sigmas=sigmas),
        )


class RandomNoise(StockNode):
    """Hands on its seed: the latents say how much noise is drawn."""

    TITLE = "RandomNoise"
    REQUIRED = {"noise_seed": SEED}
    RETURN_TYPES = ("NOISE",)
    FUNCTION = "get_noise"

    def get_noise(self, noise_seed):
        return (noise_seed,)


class KSamplerSelect(StockNode):
    TITLE = "KSamplerSelect"
    REQUIRED = {"sampler_name": (SAMPLERS, {})}
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"

    def get_sampler(self, sampler_name):
        return (sampler_name,)


class CFGGuider(StockNode):
    TITLE = "CFG Guider"
    REQUIRED = {"model": ("MODEL", {}), "positive": ("CONDITIONING", {}), "negative": ("CONDITIONING", {}), "cfg": CFG}
    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "get_guider"

    def get_guider(self, model, positive, negative, cfg):
        return (Guider(model, positive, negative, cfg),)


class BasicGuider(StockNode):
    TITLE = "Basic Guider"
    REQUIRED = {"model": ("MODEL", {}), "conditioning": ("CONDITIONING", {})}
    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "get_guider"

    def get_guider(self, model, conditioning):
        return (Guider(model, conditioning, conditioning, 1.0),)


class SamplerCustomAdvanced(StockNode):
    """Both outputs are the finished latents: sigmas end at 0, where what was denoised last is the result."""

    TITLE = "SamplerCustomAdvanced"
    REQUIRED = {
        "noise": ("NOISE", {}),
        "guider": ("GUIDER", {}),
        "sampler": ("SAMPLER", {}),
        "sigmas": ("SIGMAS", {}),
        "latent_image": ("LATENT", {}),
    }
    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = ("output", "denoised_output")
    FUNCTION = "sample"

    def sample(self, noise, guider, sampler, sigmas, latent_image):
        if not len(sigmas):
            return latent_image, latent_image
        latent = _sampled(guider, latent_image, seed=noise, sampler_name=sampler, sigmas=sigmas)
        return latent, latent


def _sampled(guider: Guider, latent: dict, *, seed: int, sampler_name: str, sigmas: torch.Tensor) -> dict:
    """The latent after the steps between sigmas, [S + 1] from at most 1 to 0."""
    dit, start = glm_dit(guider.model), latent["samples"]
    if not start.any():  # ComfyUI gives empty latents the model's channels, and 0 of its own space
        channels = dit.model.config.in_channels
        start = dit.space.denormalise(start.new_zeros(len(start), channels, *start.shape[2:]))
    request = glm_image_request(
        guider.model,
        guider.positive,
        guider.negative,
        latent | {"samples": start},
        seed=seed,
        steps=len(sigmas) - 1,
        cfg=guider.cfg,
        denoise=sigmas[0].item(),
        batch=len(start),  # which the latents alone say in ComfyUI
        sampler_name=sampler_name,
        approximations=Approximations(),
    )
    noise = torch.randn(request.latents.shape, generator=torch.Generator().manual_seed(seed))
    return latent | {"samples": sample(host, guider.model, request, noise=noise, sigmas=sigmas)}
