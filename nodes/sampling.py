"""The DiT stage: from noise to the latents of the picture that the prior plans."""

import torch
from torch.nn.functional import interpolate

from ..glmimage_core.glm_image.denoise import Approximations, check_glyphs, check_sample
from ..glmimage_core.glm_image.geometry import check_size
from ..glmimage_core.glm_image.references import check_references
from ..glmimage_core.glm_image.schedule import partial_schedule
from .host import host
from .host.requests import PRIOR_KEY, REFERENCES_KEY, GlmImageRequest, applied_prior, fitting_prior
from .sockets import CATEGORY, glm_dit, one_conditioning, validation_message
from .widgets import DENOISE, STEPS, cfg_input, fraction_input, seed_input, side_input


class GLMImageSampler:
    TITLE = "GLM-Image Sampler"
    DESCRIPTION = (
        "Paints the latents of the picture that the prior plans, with the schedule and guidance of diffusers. References run "
        "through the DiT once and stay cached until they change."
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
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "From Apply Prior. It carries the prior, which sets the size of the picture."},
                ),
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
                        "tooltip": "Start of a run with denoise below 1, of the prior's size. Its noise mask is honoured: what "
                        "is masked out comes back unchanged."
                    },
                ),
                "sampler_name": (
                    list(host.sampler_names),
                    {
                        "default": "euler",
                        "tooltip": "How to step along the schedule. euler is what diffusers uses; the others are ComfyUI's own.",
                    },
                ),
                "cfg_start": fraction_input(
                    0.0,
                    "Fraction of the run at which guidance begins. The steps before it take half the time. 0 is exact. With "
                    "denoise below 1 the run is the part of the schedule that is painted.",
                ),
                "cfg_end": fraction_input(
                    1.0,
                    "Fraction of the run at which guidance ends. The steps after it take half the time and change the picture a "
                    "little. 1 is exact.",
                ),
                "step_cache": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "0 is off and exact. Above 0, a pass skips all blocks after the first if the first block's "
                        "output has changed by less than this fraction since the last whole pass. Faster, and further from the "
                        "exact picture. Begin with 0.1 and compare.",
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, cfg_start=0.0, cfg_end=1.0):
        """Of both: which of them is wrong cannot be said."""
        if cfg_start is None or cfg_end is None:
            return True  # a value over a link; it is checked when the node runs
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
        request = glm_image_request(
            model,
            positive,
            negative,
            latent_image,
            seed=seed,
            steps=steps,
            cfg=cfg,
            denoise=denoise,
            sampler_name=sampler_name,
            approximations=Approximations(cfg_start, cfg_end, step_cache),
        )
        return ({"samples": host.sample(model, request)},)


def glm_image_request(
    model, positive, negative, latent_image: dict | None, *, denoise: float, batch: int | None = None, **settings
) -> GlmImageRequest:
    """A run of a sampler, from what is connected to it. settings: the other widgets, by the names of the request.

    batch: the pictures to paint, by default as many as the plan or the latents have, whichever are more. Raises
    ValueError for inputs that do not go together.
    """
    dit = glm_dit(model)
    glyphs, options = one_conditioning(positive, "positive")
    unwanted, _ = one_conditioning(negative, "negative")
    check_glyphs(dit, glyphs, unwanted)
    applied_prior(options, "positive")
    references = options.get(REFERENCES_KEY, ())
    check_references(references, space=dit.space)
    start = latent_image or {}
    latents, mask = start.get("samples"), noise_mask(start)
    prior = fitting_prior(options, latents)
    positive, negative = (
        [[embeddings, of_side | {PRIOR_KEY: prior}] for embeddings, of_side in side] for side in (positive, negative)
    )
    batch = batch or max(prior.batch, 0 if latents is None else len(latents))
    check_sample(dit, prior, glyphs=(glyphs, unwanted), batch=batch, denoise=denoise, latents=latents, mask=mask)
    return GlmImageRequest(
        positive=positive,
        negative=negative,
        batch=batch,
        prior=prior,
        references=references,
        denoise=denoise,
        latents=latents,
        mask=mask,
        **settings,
    )


class GLMImageModelSampling:
    TITLE = "GLM-Image Model Sampling"
    DESCRIPTION = (
        "Spaces the steps of KSampler and of ComfyUI's schedulers as GLM-Image does for a picture of this size. The scheduler "
        "simple has GLM-Image's own spacing. GLM-Image Sampler does not need this node."
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
    OUTPUT_TOOLTIPS = ("Shifted sigmas [steps + 1], from 1 down to 0; with denoise below 1 from a later sigma.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": (
                    "MODEL",
                    {"tooltip": "From Load GLM-Image DiT. Its checkpoint's scheduler sets how the shift grows with the size."},
                ),
                "steps": STEPS,
                "denoise": fraction_input(
                    1.0, "1 is the whole schedule. A lower value is the end of it, in the same number of steps. 0 is no step."
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
    """The noise mask of a ComfyUI LATENT, resized to its latents: [B, 1, h, w], or None without a mask.

    ComfyUI's masks are [B, H, W] or [B, 1, H, W] of any size.
    """
    if "noise_mask" not in latent:
        return None
    mask = latent["noise_mask"]
    return interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), latent["samples"].shape[-2:], mode="bilinear")
