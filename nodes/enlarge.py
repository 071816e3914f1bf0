"""Larger pictures: painted in tiles, by a plan of the enlarged picture."""

import torch

from ..glmimage_core.diffusion import LATENT_PX
from ..glmimage_core.glm_image.prior import Prior
from ..glmimage_core.glm_image.tiles import Tiling
from ..glmimage_core.images import to_pictures
from .from_image import read_plan
from .host import host
from .sockets import AR, CATEGORY, PRIOR, glm_ar, glm_dit, glm_vae, validation_message
from .vae import GLMImageVAEDecode


class GLMImageTiles:
    TITLE = "GLM-Image Tiles"
    DESCRIPTION = (
        "Paints large pictures in tiles that overlap, each with its part of the plan. At every step the tiles are blended, so no "
        "seam appears. Works with GLM-Image Sampler, KSampler and the others."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("tiled sampling", "tiled diffusion", "multidiffusion", "upscale", "hires fix", "ultimate upscale")
    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model, which paints in tiles what is larger than one.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "From Load GLM-Image DiT."}),
                "tile": (
                    "INT",
                    {
                        "default": 1024,
                        "min": 192,
                        "max": 4096,
                        "step": 32,
                        "tooltip": "Pixels along each side of a tile. What fits into one tile is painted in one piece.",
                    },
                ),
                "overlap": (
                    "INT",
                    {
                        "default": 256,
                        "min": 0,
                        "max": 2048,
                        "step": 32,
                        "tooltip": "Pixels that neighbours share at least, up to half a tile. More is smoother and slower.",
                    },
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, overlap, *, tile=None):
        if tile is None or overlap is None:
            return True  # a value over a link; it is checked when the node runs
        return validation_message(lambda: Tiling(tile, overlap))

    def patch(self, model, tile, overlap):
        glm_dit(model)
        return (host.in_tiles(model, Tiling(tile, overlap)),)


class GLMImagePriorFromLatent:
    TITLE = "GLM-Image Prior from Latent"
    DESCRIPTION = (
        "Reads the plan of latents, such as enlarged ones for a second KSampler: a plan is of one size, and what was painted "
        "smaller needs a new one. Decodes them and reads the pictures with the vision half of the AR model."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("hires fix", "latent upscale", "replan", "upscale latent", "second pass")
    FUNCTION = "read"
    RETURN_TYPES = (PRIOR,)
    RETURN_NAMES = ("prior",)
    OUTPUT_TOOLTIPS = ("The plan of each picture at the size of the latents, for Apply Prior.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "ar": (AR, {"tooltip": "From Load GLM-Image AR Model. Only its vision half goes to the device."}),
                "vae": ("VAE", {"tooltip": "From Load GLM-Image VAE."}),
                "samples": ("LATENT", {"tooltip": "What a sampler is to go on with, of the size that it is to paint."}),
            }
        }

    def read(self, ar, vae, samples):
        return (plan_of_latents(ar, vae, samples["samples"]),)


def plan_of_latents(ar, vae, latents: torch.Tensor) -> Prior:
    """The plans of latents, [B, 16, height / 8, width / 8] in the VAE's space, at their own size."""
    glm_ar(ar), glm_vae(vae)
    (images,) = GLMImageVAEDecode().decode(vae, {"samples": latents})
    height, width = (side * LATENT_PX for side in latents.shape[-2:])
    return read_plan(ar, to_pictures(images), width, height, label="Plan of the latents")
