"""Pixels to latents and back, with the VAE of any family."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..glmimage_core.diffusion import LATENT_PX
from ..glmimage_core.vae import TILE_PX, Vae, check_latents, decode, encode, tiles_by_size, vae_decode_bytes, vae_encode_bytes
from .host import host
from .sockets import CATEGORY, any_vae


class GLMImageVAEEncode:
    TITLE = "GLM-Image VAE Encode"
    DESCRIPTION = "Encodes images into latents, for a sampler with denoise below 1. For an edit use Encode Reference."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm encode latent", "glm image to latent")
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("Latents of the images, 1/8 of their size.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vae": ("VAE", {"tooltip": "From Load GLM-Image VAE or the loader of a CogView3."}),
                "image": ("IMAGE", {"tooltip": "Images of the size that will be painted. Alpha is ignored."}),
            }
        }

    def encode(self, vae, image):
        with placed_vae(vae, "auto", vae_encode_bytes, width=image.shape[2], height=image.shape[1]) as (placed, tiled):
            return ({"samples": encode(placed, image, tiled)},)


class GLMImageVAEDecode:
    TITLE = "GLM-Image VAE Decode"
    DESCRIPTION = "Decodes latents into images."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm decode latent", "glm latent to image")
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The images [batch, height, width, 3], 0 to 1.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vae": ("VAE", {"tooltip": "From Load GLM-Image VAE or the loader of a CogView3."}),
                "samples": ("LATENT", {"tooltip": "From a sampler of the VAE's family, or from GLM-Image VAE Encode."}),
                "tiling": (
                    ["auto", "on", "off"],
                    {
                        "default": "auto",
                        "tooltip": f"Decode in blended tiles of {TILE_PX} pixels, which takes less memory. auto tiles "
                        "pictures above 2048 x 2048 pixels and those that do not fit whole.",
                    },
                ),
            }
        }

    def decode(self, vae, samples, tiling="auto"):
        latents = samples["samples"]
        check_latents(any_vae(vae), latents)
        height, width = (side * LATENT_PX for side in latents.shape[2:])
        with placed_vae(vae, tiling, vae_decode_bytes, width=width, height=height) as (placed, tiled):
            return (decode(placed, latents, tiled),)


@contextmanager
def placed_vae(vae: Any, tiling: str, stage_bytes: Callable[..., int], *, width: int, height: int) -> Iterator[tuple[Vae, bool]]:
    """Keep a VAE on the device with memory for a picture of width x height pixels. Yields the VAE and whether to tile.

    stage_bytes: `vae_encode_bytes` or `vae_decode_bytes`.
    """
    component = any_vae(vae)
    device = component.target_device or host.device()

    def needed(width: int, height: int) -> int:
        return stage_bytes(component.model.config, component.dtype.itemsize, width, height, on_cpu=device.type == "cpu")

    def short() -> bool:
        free = host.free_bytes(vae)
        return tiling == "auto" and free is not None and free < needed(width, height)

    tiled = tiles_by_size(tiling, width, height, device=device)
    tiled = tiled or (device.type == "cpu" and short())  # where nothing has to leave first
    with host.placed(vae, needed(TILE_PX, TILE_PX) if tiled else needed(width, height)) as placed:
        yield placed, tiled or short()
