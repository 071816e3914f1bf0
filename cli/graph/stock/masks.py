"""ComfyUI's nodes for masks, [B, H, W] in 0..1."""

import torch
from torch.nn.functional import max_pool2d

from .base import MOST_PIXELS, StockNode, pixels

MASK = ("MASK", {})
UNIT = {"min": 0.0, "max": 1.0}


def _batch(mask: torch.Tensor) -> torch.Tensor:
    """[H, W], [B, H, W] or [B, 1, H, W] to [B, H, W]."""
    return mask.reshape(-1, *mask.shape[-2:])


class SolidMask(StockNode):
    TITLE = "Create Solid Mask"
    REQUIRED = {"value": ("FLOAT", {"default": 1.0} | UNIT), "width": pixels(512, 1), "height": pixels(512, 1)}
    RETURN_TYPES = ("MASK",)
    FUNCTION = "make"

    def make(self, value, width, height):
        return (torch.full((1, height, width), value),)


class InvertMask(StockNode):
    TITLE = "Invert Mask"
    REQUIRED = {"mask": MASK}
    RETURN_TYPES = ("MASK",)
    FUNCTION = "invert"

    def invert(self, mask):
        return (1 - mask,)


class CropMask(StockNode):
    TITLE = "Crop Mask"
    REQUIRED = {"mask": MASK, "x": pixels(0), "y": pixels(0), "width": pixels(512, 1), "height": pixels(512, 1)}
    RETURN_TYPES = ("MASK",)
    FUNCTION = "crop"

    def crop(self, mask, x, y, width, height):
        return (_batch(mask)[:, y : y + height, x : x + width],)


class MaskComposite(StockNode):
    """Combines the source with the destination from (x, y) on. Of the last three operations each side counts from 0.5 on."""

    TITLE = "Combine Masks"
    OPERATIONS = {
        "multiply": torch.mul,
        "add": torch.add,
        "subtract": torch.sub,
        "and": lambda below, above: below.round().logical_and(above.round()),
        "or": lambda below, above: below.round().logical_or(above.round()),
        "xor": lambda below, above: below.round().logical_xor(above.round()),
    }
    REQUIRED = {"destination": MASK, "source": MASK, "x": pixels(0), "y": pixels(0), "operation": (list(OPERATIONS), {})}
    RETURN_TYPES = ("MASK",)
    FUNCTION = "combine"

    def combine(self, destination, source, x, y, operation):
        result, source = _batch(destination).clone(), _batch(source)
        here = result[:, y : y + source.shape[1], x : x + source.shape[2]]
        here.copy_(self.OPERATIONS[operation](here, source[:, : here.shape[1], : here.shape[2]]))
        return (result.clamp(0, 1),)


class FeatherMask(StockNode):
    """Fades from each edge over as many pixels."""

    TITLE = "Feather Mask"
    REQUIRED = {"mask": MASK} | {side: pixels(0) for side in ("left", "top", "right", "bottom")}
    RETURN_TYPES = ("MASK",)
    FUNCTION = "feather"

    def feather(self, mask, left, top, right, bottom):
        mask = _batch(mask)
        height, width = mask.shape[1:]
        across = self._ramp(width, left) * self._ramp(width, right).flip(0)
        down = self._ramp(height, top) * self._ramp(height, bottom).flip(0)
        return (mask * across * down[:, None],)

    @staticmethod
    def _ramp(length: int, fade: int) -> torch.Tensor:
        """[length]: from 1 / fade to 1, and 1 from there on. A fade is at most the whole length."""
        return (torch.arange(1, length + 1) / max(1, min(fade, length))).clamp(max=1)


class GrowMask(StockNode):
    """Grows a mask by as many pixels, or shrinks it by a negative number; tapered: along rows and columns only."""

    TITLE = "Grow Mask"
    REQUIRED = {
        "mask": MASK,
        "expand": pixels(0, -MOST_PIXELS),
        "tapered_corners": ("BOOLEAN", {"default": True}),
    }
    RETURN_TYPES = ("MASK",)
    FUNCTION = "grow"

    def grow(self, mask, expand, tapered_corners):
        grown = _batch(mask) if expand >= 0 else -_batch(mask)  # to shrink is to grow what is dark
        for _ in range(min(abs(expand), sum(grown.shape[1:]))):  # by then the largest value is everywhere
            across, down = max_pool2d(grown, (1, 3), 1, (0, 1)), max_pool2d(grown, (3, 1), 1, (1, 0))
            grown = torch.maximum(across, down) if tapered_corners else max_pool2d(across, (3, 1), 1, (1, 0))
        return (grown if expand >= 0 else -grown,)


class ThresholdMask(StockNode):
    TITLE = "Threshold Mask"
    REQUIRED = {"mask": MASK, "value": ("FLOAT", {"default": 0.5} | UNIT)}
    RETURN_TYPES = ("MASK",)
    FUNCTION = "compare"

    def compare(self, mask, value):
        return ((mask > value).float(),)


class MaskToImage(StockNode):
    TITLE = "Convert Mask to Image"
    REQUIRED = {"mask": MASK}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "convert"

    def convert(self, mask):
        return (_batch(mask)[..., None].expand(-1, -1, -1, 3),)


class ImageToMask(StockNode):
    TITLE = "Convert Image to Mask"
    CHANNELS = ["red", "green", "blue", "alpha"]
    REQUIRED = {"image": ("IMAGE", {}), "channel": (CHANNELS, {})}
    RETURN_TYPES = ("MASK",)
    FUNCTION = "convert"

    def convert(self, image, channel):
        index = self.CHANNELS.index(channel)
        if index >= image.shape[-1]:
            raise ValueError(
                f"the image has no channel {channel}, only {image.shape[-1]} channels; Load Image gives the mask apart"
            )
        return (image[..., index],)


class ImageColorToMask(StockNode):
    """1 where a pixel has just this colour."""

    TITLE = "Convert Image Color to Mask"
    REQUIRED = {"image": ("IMAGE", {}), "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF})}
    RETURN_TYPES = ("MASK",)
    FUNCTION = "compare"

    def compare(self, image, color):
        levels = image[..., :3].clamp(0, 1).mul(255).round()
        wanted = torch.tensor([color >> 16, color >> 8 & 0xFF, color & 0xFF])
        return ((levels == wanted).all(-1).float(),)
