"""The DiT stage: from noise to the latents of the picture the prior plans."""

import torch
from torch.nn.functional import interpolate

from ..glmimage_core import memory
from ..glmimage_core.denoise import check_sample, sample
from ..glmimage_core.prior import image_seeds
from ..glmimage_core.references import check_references
from .host import host
from .sockets import CATEGORY, REFERENCES_KEY, applied_prior, glm_dit, one_conditioning, seed_input


class GLMImageSampler:
    TITLE = "GLM-Image Sampler"
    DESCRIPTION = (
        "Paints the latents of the picture that the prior plans, with the reference implementation's schedule and guidance. "
        "References are run through the DiT once and stay cached as long as they do not change."
    )
    CATEGORY = CATEGORY
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
                "steps": (
                    "INT",
                    {"default": 50, "min": 1, "max": 1000, "tooltip": "Denoising steps. 30 to 50 are usual."},
                ),
                "cfg": (
                    "FLOAT",
                    {
                        "default": 1.5,
                        "min": 0.0,
                        "max": 20.0,
                        "step": 0.1,
                        "tooltip": "Guidance: how far to steer from the negative to the positive. 1 is off and twice as fast.",
                    },
                ),
                "denoise": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "1 starts from noise. Less starts from latent_image, partly noised, and keeps more of it.",
                    },
                ),
            },
            "optional": {
                "latent_image": (
                    "LATENT",
                    {
                        "tooltip": "Where a denoise below 1 starts from, of the prior's size. A noise mask on it is "
                        "honoured: what is masked out comes back unchanged."
                    },
                ),
            },
        }

    def sample(self, model, positive, negative, seed, steps, cfg, denoise=1.0, latent_image=None):
        dit = glm_dit(model)
        glyphs, options = one_conditioning(positive, "positive")
        unwanted, _ = one_conditioning(negative, "negative")
        prior = applied_prior(options)
        references = options.get(REFERENCES_KEY, ())
        check_references(references, space=dit.space)
        start = latent_image or {}
        batch = max(prior.batch, len(start.get("samples", [])))
        mask = _noise_mask(start)
        check_sample(dit, prior, (glyphs, unwanted), batch, denoise, start.get("samples"), mask)

        sizes = tuple((reference.width, reference.height) for reference in references)
        job = memory.Job(prior.width, prior.height, batch, sizes, glyph_tokens=glyphs.shape[1], guided=cfg != 1)
        with host.placed(dit.model, memory.dit_bytes(dit.model.config, dit.model.dtype.itemsize, job)):
            latents = sample(
                dit,
                prior,
                glyphs,
                unwanted,
                image_seeds(seed, batch),
                steps,
                cfg,
                denoise,
                start.get("samples"),
                mask,
                references,
                host.progress("Sampler"),
            )
        return ({"samples": latents},)


def _noise_mask(latent: dict) -> torch.Tensor | None:
    """ComfyUI's noise mask, [B, H, W] or [B, 1, H, W] of any size, at the size of its latents: [B, 1, h, w]."""
    if "noise_mask" not in latent:
        return None
    mask = latent["noise_mask"]
    return interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), latent["samples"].shape[-2:], mode="bilinear")
