"""Between pixels and latents."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..glmimage_core import memory
from ..glmimage_core.geometry import LATENT_PX
from ..glmimage_core.vae import TILE_PX, Vae, check_latents, decode, encode, tiles_by_size
from .host import host
from .sockets import CATEGORY, glm_vae


class GLMImageVAEEncode:
    TITLE = "GLM-Image VAE Encode"
    DESCRIPTION = "Encodes images into latents, for a sampler run with denoise below 1. For an edit use Encode Reference."
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("Latents of the images, 1/8 of their size.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vae": ("VAE", {"tooltip": "From Load GLM-Image VAE."}),
                "image": ("IMAGE", {"tooltip": "Images of the size that the prior plans. Alpha is ignored."}),
            }
        }

    def encode(self, vae, image):
        vae = glm_vae(vae)
        with placed_vae(vae, "auto", memory.vae_encode_bytes, image.shape[2], image.shape[1]) as tiled:
            return ({"samples": encode(vae, image, tiled)},)


class GLMImageVAEDecode:
    TITLE = "GLM-Image VAE Decode"
    DESCRIPTION = "Decodes latents into images."
    CATEGORY = CATEGORY
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The images [batch, height, width, 3], 0 to 1.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vae": ("VAE", {"tooltip": "From Load GLM-Image VAE."}),
                "samples": ("LATENT", {"tooltip": "From GLM-Image Sampler or GLM-Image VAE Encode."}),
                "tiling": (
                    ["auto", "on", "off"],
                    {
                        "default": "auto",
                        "tooltip": f"Decode in blended tiles of {TILE_PX} pixels, which takes less memory. auto does so "
                        "above 2048 x 2048 pixels or when the whole picture does not fit.",
                    },
                ),
            }
        }

    def decode(self, vae, samples, tiling="auto"):
        vae = glm_vae(vae)
        latents = samples["samples"]
        check_latents(vae, latents)
        height, width = (side * LATENT_PX for side in latents.shape[2:])
        with placed_vae(vae, tiling, memory.vae_decode_bytes, width, height) as tiled:
            return (decode(vae, latents, tiled),)


@contextmanager
def placed_vae(vae: Vae, tiling: str, stage_bytes: Callable[..., int], width: int, height: int) -> Iterator[bool]:
    """Have the VAE on the device with room for a stage of width x height pixels; gives whether to tile there."""
    config, itemsize = vae.model.config, vae.model.dtype.itemsize
    tiled = tiles_by_size(tiling, width, height)
    needed = stage_bytes(config, itemsize, *((TILE_PX, TILE_PX) if tiled else (width, height)))
    with host.placed(vae.model, needed):
        free = host.free_bytes()
        yield tiled or (tiling == "auto" and free is not None and free < needed)
