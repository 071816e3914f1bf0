"""ComfyUI's nodes for latents, with a VAE of this pack."""

import torch

from ....glmimage_core.diffusion import LATENT_PX
from ....nodes.vae import GLMImageVAEDecode, GLMImageVAEEncode
from .base import StockNode, pixels
from .scaling import resize_mask


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
