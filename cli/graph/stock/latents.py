"""ComfyUI's nodes for latents, with a VAE of this pack."""

import torch

from ....glmimage_core.diffusion import LATENT_PX
from ....nodes.vae import GLMImageVAEDecode, GLMImageVAEEncode
from .base import StockNode, pixels
from .scaling import METHODS, resize, resize_mask

LATENT_METHODS = [method for method in METHODS if method != "lanczos"]  # ComfyUI has bislerp too


def _whole_latents(tensor: torch.Tensor) -> torch.Tensor:
    """[B, H, W, ...] without the edges, in even parts, that fill no latent."""
    for dim in (1, 2):
        left = tensor.shape[dim] % LATENT_PX
        tensor = tensor.narrow(dim, left // 2, tensor.shape[dim] - left)
    return tensor


class SetLatentNoiseMask(StockNode):
    TITLE = "Set Latent Noise Mask"
    REQUIRED = {"samples": ("LATENT", {}), "mask": ("MASK", {})}
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "set_mask"

    def set_mask(self, samples, mask):
        return (samples | {"noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])},)


class LatentUpscale(StockNode):
    """A side of 0 follows the other one."""

    TITLE = "Upscale Latent"
    REQUIRED = {
        "samples": ("LATENT", {}),
        "upscale_method": (LATENT_METHODS, {}),
        "width": pixels(512),
        "height": pixels(512),
        "crop": (["disabled", "center"], {}),
    }
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "upscale"

    def upscale(self, samples, upscale_method, width, height, crop):
        if width == height == 0:
            return (samples,)
        rows, columns = samples["samples"].shape[-2:]
        width = max(64, width or round(columns * max(64, height) / rows))
        height = max(64, height or round(rows * width / columns))
        return (_resized(samples, (width // LATENT_PX, height // LATENT_PX), upscale_method, crop=crop == "center"),)


class LatentUpscaleBy(StockNode):
    TITLE = "Upscale Latent By"
    REQUIRED = {
        "samples": ("LATENT", {}),
        "upscale_method": (LATENT_METHODS, {}),
        "scale_by": ("FLOAT", {"default": 1.5, "min": 0.01, "max": 8.0, "step": 0.01}),
    }
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "upscale"

    def upscale(self, samples, upscale_method, scale_by):
        rows, columns = samples["samples"].shape[-2:]
        return (_resized(samples, (round(columns * scale_by), round(rows * scale_by)), upscale_method),)


def _resized(latent: dict, size: tuple[int, int], method: str, *, crop: bool = False) -> dict:
    """size: columns and rows."""
    samples = resize(latent["samples"].movedim(1, -1), size, method, crop=crop).movedim(-1, 1)
    return latent | {"samples": samples}


class VAEEncode(StockNode):
    TITLE = "VAE Encode"
    REQUIRED = {"pixels": ("IMAGE", {}), "vae": ("VAE", {})}
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"

    def encode(self, pixels, vae):
        return GLMImageVAEEncode().encode(vae, _whole_latents(pixels))


class VAEDecode(StockNode):
    TITLE = "VAE Decode"
    REQUIRED = {"samples": ("LATENT", {}), "vae": ("VAE", {})}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"

    def decode(self, samples, vae):
        return GLMImageVAEDecode().decode(vae, samples)


class VAEEncodeForInpaint(StockNode):
    """Latents of the image with its masked part grey, and the mask, grown, as their noise mask. For a denoise of 1."""

    TITLE = "VAE Encode (for Inpainting)"
    REQUIRED = {"pixels": ("IMAGE", {}), "vae": ("VAE", {}), "mask": ("MASK", {}), "grow_mask_by": pixels(6, 0, 64)}
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"

    def encode(self, pixels, vae, mask, grow_mask_by):
        mask = _whole_latents(resize_mask(mask, *pixels.shape[1:3])).round()
        pixels = _whole_latents(pixels)
        grey = 0.5 + (pixels - 0.5) * (1 - mask)[..., None]
        (latent,) = GLMImageVAEEncode().encode(vae, grey)
        height, width = mask.shape[1:]
        if grow_mask_by:  # an even square reaches one pixel further up and left, as ComfyUI's does
            mask = torch.nn.functional.max_pool2d(mask, grow_mask_by, 1, grow_mask_by // 2)[:, :height, :width]
        return (latent | {"noise_mask": mask[:, None]},)
