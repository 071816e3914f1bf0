"""The DiT stage: from noise to the latents of the picture the prior plans."""

import torch
from torch.nn.functional import interpolate

from ..glmimage_core.glm_image.denoise import Approximations, check_sample
from ..glmimage_core.glm_image.geometry import check_size
from ..glmimage_core.glm_image.references import check_references
from ..glmimage_core.glm_image.schedule import partial_schedule
from .host import host
from .host.requests import REFERENCES_KEY, SampleRequest, applied_prior
from .sockets import CATEGORY, glm_dit, one_conditioning, seed_input, side_input, validation_message

STEPS = ("INT", {"default": 50, "min": 1, "max": 1000, "tooltip": "Denoising steps. 30 to 50 are usual."})


def cfg_input(default: float) -> tuple:
    """A widget for the guidance of a sampler."""
    return (
        "FLOAT",
        {
            "default": default,
            "min": 0.0,
            "max": 20.0,
            "step": 0.1,
            "tooltip": "Guidance: how far to steer from the negative to the positive. 1 is off and twice as fast.",
        },
    )


def fraction_input(default: float, tooltip: str) -> tuple:
    """A widget for a part of a whole, 0..1."""
    return ("FLOAT", {"default": default, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tooltip})


DENOISE = fraction_input(1.0, "1 starts from noise. Less starts from latent_image, partly noised, and keeps more of it.")


class GLMImageSampler:
    TITLE = "GLM-Image Sampler"
    DESCRIPTION = (
        "Paints the latents of the picture that the prior plans, with the reference implementation's schedule and guidance. "
        "References are run through the DiT once and stay cached as long as they do not change."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm ksampler", "glm denoise")
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("Latents of the picture or pictures, for GLM-Image VAE Decode.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "From Load GLM-Image DiT."}),
                "positive": ("CONDITIONING", {"tooltip": "From Apply Prior: carries the prior, and the size with it."}),
                "negative": ("CONDITIONING", {"tooltip": "From Apply Prior. Not used when cfg is 1."}),
                "seed": seed_input("the noise"),
                "steps": STEPS,
                "cfg": cfg_input(1.5),
                "denoise": DENOISE,
            },
            "optional": {
                "latent_image": (
                    "LATENT",
                    {
                        "tooltip": "Where a denoise below 1 starts from, of the prior's size. A noise mask on it is "
                        "honoured: what is masked out comes back unchanged."
                    },
                ),
                "sampler_name": (
                    list(host.samplers),
                    {
                        "default": "euler",
                        "tooltip": "How to step along the schedule. euler is the reference's; the others are ComfyUI's own.",
                    },
                ),
                "cfg_start": fraction_input(0.0, "Where in the run guidance begins; before it, steps cost half. 0 is exact."),
                "cfg_end": fraction_input(
                    1.0, "Where in the run guidance ends; after it, steps cost half and the picture changes a little. 1 is exact."
                ),
                "step_cache": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "0 is off and exact. Above, a pass whose first block changed by less than this since the last "
                        "whole one skips the other blocks: faster, and less like the exact picture. Begin with 0.1 and compare.",
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, cfg_start=0.0, cfg_end=1.0):
        if cfg_start is None or cfg_end is None:
            return True  # comes over a link and is checked when the node runs
        return validation_message(lambda: Approximations(cfg_start, cfg_end))

    def sample(
        self,
        model,
        positive,
        negative,
        seed,
        steps,
        cfg,
        denoise=1.0,
        latent_image=None,
        sampler_name="euler",
        cfg_start=0.0,
        cfg_end=1.0,
        step_cache=0.0,
    ):
        dit = glm_dit(model)
        approximations = Approximations(cfg_start, cfg_end, step_cache)
        glyphs, options = one_conditioning(positive, "positive")
        unwanted, _ = one_conditioning(negative, "negative")
        prior = applied_prior(options, "positive")
        references = options.get(REFERENCES_KEY, ())
        check_references(references, space=dit.space)
        start = latent_image or {}
        latents, mask = start.get("samples"), noise_mask(start)
        batch = max(prior.batch, 0 if latents is None else len(latents))
        check_sample(dit, prior, glyphs=(glyphs, unwanted), batch=batch, denoise=denoise, latents=latents, mask=mask)
        request = SampleRequest(
            *(
                prior,
                positive,
                negative,
                references,
                seed,
                batch,
                steps,
                cfg,
                denoise,
                latents,
                mask,
                sampler_name,
                approximations,
            )
        )
        return ({"samples": host.paint(model, request)},)


class GLMImageModelSampling:
    TITLE = "GLM-Image Model Sampling"
    DESCRIPTION = (
        "Spaces the steps of KSampler and ComfyUI's schedulers as GLM-Image does for a picture of this size. GLM-Image Sampler "
        "does so by itself. The scheduler simple has GLM-Image's own spacing."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm shift", "glm model sampling")
    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model with the schedule of that size, for KSampler and others.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "From Load GLM-Image DiT."}),
                "width": side_input("Width"),
                "height": side_input("Height"),
            }
        }

    def patch(self, model, width, height):
        glm_dit(model)
        check_size(width, height)
        return (host.for_size(model, width, height),)


class GLMImageScheduler:
    TITLE = "GLM-Image Scheduler"
    DESCRIPTION = "The sigmas of GLM-Image's own schedule, for SamplerCustom and SamplerCustomAdvanced."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm sigmas", "glm scheduler")
    FUNCTION = "schedule"
    RETURN_TYPES = ("SIGMAS",)
    RETURN_NAMES = ("sigmas",)
    OUTPUT_TOOLTIPS = ("Shifted sigmas [steps + 1] from 1 (or from where denoise begins) to 0.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": (
                    "MODEL",
                    {"tooltip": "From Load GLM-Image DiT. Its checkpoint says how the shift grows with the size."},
                ),
                "steps": STEPS,
                "denoise": fraction_input(
                    1.0, "1 is the whole schedule. Less is its end, with as many steps. 0 is no step at all."
                ),
                "width": side_input("Width"),
                "height": side_input("Height"),
            }
        }

    def schedule(self, model, steps, denoise, width, height):
        shift = glm_dit(model).shift
        check_size(width, height)
        if denoise == 0:
            return (torch.zeros(0),)
        return (partial_schedule(steps, denoise, shift.of_size(width, height)).sigmas,)


def noise_mask(latent: dict) -> torch.Tensor | None:
    """ComfyUI's noise mask, [B, H, W] or [B, 1, H, W] of any size, at the size of its latents: [B, 1, h, w]."""
    if "noise_mask" not in latent:
        return None
    mask = latent["noise_mask"]
    return interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), latent["samples"].shape[-2:], mode="bilinear")
