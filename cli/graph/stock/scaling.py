"""Sizes of pictures, and the nodes that change them as ComfyUI's do."""

import math

import numpy as np
import torch
from PIL import Image

from .base import StockNode, pixels

METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]


def resize(image: torch.Tensor, size: tuple[int, int], method: str = "bilinear", *, crop: bool = False) -> torch.Tensor:
    """[B, H, W, C] to a size (width, height) in pixels. crop: first cut away, evenly, what its aspect has no room for."""
    width, height = size
    if crop:
        image = _cropped(image, width / height)
    if method == "lanczos":
        return torch.stack([_lanczos(one, width, height) for one in image])
    return torch.nn.functional.interpolate(image.movedim(-1, 1), (height, width), mode=method).movedim(1, -1)  # BHWC -> BCHW


def resize_mask(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[H, W] or [B, H, W] to [B, height, width]."""
    channels = mask.reshape(-1, 1, *mask.shape[-2:])
    return torch.nn.functional.interpolate(channels, (height, width), mode="bilinear")[:, 0]


def repeat_to(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """A batch of `count`: the first ones, or all of them again and again."""
    times = math.ceil(count / len(tensor))
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))[:count]


def _cropped(image: torch.Tensor, aspect: float) -> torch.Tensor:
    height, width = image.shape[1:3]
    here = width / height
    x = round((width - width * (aspect / here)) / 2) if here > aspect else 0
    y = round((height - height * (here / aspect)) / 2) if here < aspect else 0
    return image[:, y : height - y, x : width - x]


def _lanczos(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """[H, W, C] through 8 bits, truncated, as in ComfyUI."""
    levels = np.clip(image.cpu().numpy() * 255, 0, 255).astype(np.uint8)
    picture = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    scaled = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    return torch.from_numpy(scaled.reshape(height, width, -1))


class GetImageSize(StockNode):
    TITLE = "Get Image Size"
    REQUIRED = {"image": ("IMAGE", {})}
    RETURN_TYPES = ("INT", "INT", "INT")
    FUNCTION = "size"

    def size(self, image):
        return (image.shape[2], image.shape[1], image.shape[0])


class ImageScale(StockNode):
    """A side of 0 follows the other one."""

    TITLE = "Upscale Image"
    REQUIRED = {
        "image": ("IMAGE", {}),
        "upscale_method": (METHODS, {}),
        "width": pixels(512),
        "height": pixels(512),
        "crop": (["disabled", "center"], {}),
    }
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "scale"

    def scale(self, image, upscale_method, width, height, crop):
        if width == height == 0:
            return (image,)
        here_height, here_width = image.shape[1:3]
        width = width or max(1, round(here_width * height / here_height))
        height = height or max(1, round(here_height * width / here_width))
        return (resize(image, (width, height), upscale_method, crop=crop == "center"),)


class ImageScaleBy(StockNode):
    TITLE = "Upscale Image By"
    REQUIRED = {
        "image": ("IMAGE", {}),
        "upscale_method": (METHODS, {}),
        "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0}),
    }
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "scale"

    def scale(self, image, upscale_method, scale_by):
        size = round(image.shape[2] * scale_by), round(image.shape[1] * scale_by)
        return (resize(image, size, upscale_method),)


class ImageScaleToTotalPixels(StockNode):
    """A megapixel is 1024 x 1024 pixels. Sides are multiples of resolution_steps."""

    TITLE = "Scale Image to Total Pixels"
    REQUIRED = {
        "image": ("IMAGE", {}),
        "upscale_method": (METHODS, {}),
        "megapixels": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0}),
    }
    OPTIONAL = {"resolution_steps": ("INT", {"default": 1, "min": 1, "max": 256})}  # required in newer versions, absent in older
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "scale"

    def scale(self, image, upscale_method, megapixels, resolution_steps=1):
        height, width = image.shape[1:3]
        factor = math.sqrt(megapixels * 2**20 / (width * height))
        size = [round(side * factor / resolution_steps) * resolution_steps for side in (width, height)]
        return (resize(image, size, upscale_method),)


class ImageScaleToMaxDimension(StockNode):
    TITLE = "Scale Image to Max Dimension"
    REQUIRED = {
        "image": ("IMAGE", {}),
        "upscale_method": (["area", "lanczos", "bilinear", "nearest-exact", "bilinear", "bicubic"], {}),
        "largest_size": pixels(512),
    }
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "scale"

    def scale(self, image, upscale_method, largest_size):
        height, width = image.shape[1:3]
        if height > width:
            size = round(width / height * largest_size), largest_size
        else:
            size = largest_size, round(height / width * largest_size)
        return (resize(image, size, upscale_method),)
