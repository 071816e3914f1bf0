"""ComfyUI's nodes that make pictures out of pictures, all [B, H, W, C] in 0..1."""

import torch

from .base import StockNode, pixels
from .scaling import repeat_to, resize, resize_mask

IMAGE = ("IMAGE", {})
SPACING_COLOURS = {"white": (1, 1, 1), "black": (0, 0, 0), "red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


def _with_alpha(image: torch.Tensor, channels: int) -> torch.Tensor:
    """With as many channels: opaque where it had no alpha."""
    return torch.nn.functional.pad(image, (0, channels - image.shape[-1]), value=1.0)


class EmptyImage(StockNode):
    TITLE = "Empty Image"
    REQUIRED = {
        "width": pixels(512, 1),
        "height": pixels(512, 1),
        "batch_size": pixels(1, 1, 4096),
        "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF}),
    }
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"

    def make(self, width, height, batch_size, color):
        rgb = torch.tensor([color >> 16, color >> 8 & 0xFF, color & 0xFF], dtype=torch.float32) / 255
        return (rgb.repeat(batch_size, height, width, 1),)


class ImageBatch(StockNode):
    """The second takes the size of the first."""

    TITLE = "Batch Images"
    REQUIRED = {"image1": IMAGE, "image2": IMAGE}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "batch"

    def batch(self, image1, image2):
        channels = max(image1.shape[-1], image2.shape[-1])
        image1, image2 = (_with_alpha(image, channels) for image in (image1, image2))
        if image1.shape[1:] != image2.shape[1:]:
            image2 = resize(image2, (image1.shape[2], image1.shape[1]), crop=True)
        return (torch.cat([image1, image2]),)


class RepeatImageBatch(StockNode):
    TITLE = "Repeat Image Batch"
    REQUIRED = {"image": IMAGE, "amount": pixels(1, 1, 4096)}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "repeat"

    def repeat(self, image, amount):
        return (image.repeat(amount, 1, 1, 1),)


class ImageFromBatch(StockNode):
    """A negative index counts from the end."""

    TITLE = "Get Image from Batch"
    REQUIRED = {"image": IMAGE, "batch_index": pixels(0, -16384), "length": pixels(1, 1, 4096)}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "pick"

    def pick(self, image, batch_index, length):
        first = batch_index + len(image) if batch_index < 0 else batch_index
        first = max(0, min(len(image) - 1, first))
        return (image[first : first + length],)


class ImageCrop(StockNode):
    TITLE = "Crop Image"
    REQUIRED = {"image": IMAGE, "width": pixels(512, 1), "height": pixels(512, 1), "x": pixels(0), "y": pixels(0)}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "crop"

    def crop(self, image, width, height, x, y):
        x, y = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
        return (image[:, y : y + height, x : x + width],)


class ImageFlip(StockNode):
    TITLE = "Flip Image"
    REQUIRED = {"image": IMAGE, "flip_method": (["x-axis: vertically", "y-axis: horizontally"], {})}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "flip"

    def flip(self, image, flip_method):
        return (image.flip(1 if flip_method.startswith("x") else 2),)


class ImageRotate(StockNode):
    """Clockwise."""

    TITLE = "Rotate Image"
    TURNS = ["none", "90 degrees", "180 degrees", "270 degrees"]
    REQUIRED = {"image": IMAGE, "rotation": (TURNS, {})}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "rotate"

    def rotate(self, image, rotation):
        return (torch.rot90(image, self.TURNS.index(rotation), (2, 1)),)


class ImageInvert(StockNode):
    TITLE = "Invert Image Colors"
    REQUIRED = {"image": IMAGE}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "invert"

    def invert(self, image):
        return (1 - image,)


class ImageBlur(StockNode):
    """By a Gaussian whose sigma is in units of the radius."""

    TITLE = "Blur Image"
    REQUIRED = {
        "image": IMAGE,
        "blur_radius": pixels(1, 1, 31),
        "sigma": ("FLOAT", {"default": 1.0, "min": 0.1, "max": 10.0}),
    }
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "blur"

    def blur(self, image, blur_radius, sigma):
        line = torch.exp(-(torch.linspace(-1, 1, 2 * blur_radius + 1) ** 2) / (2 * sigma**2))
        line, channels = line / line.sum(), image.shape[-1]
        padded = torch.nn.functional.pad(image.movedim(-1, 1), (blur_radius,) * 4, "reflect")  # BHWC -> BCHW
        for kernel in (line[:, None], line[None]):
            padded = torch.nn.functional.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)
        return (padded.movedim(1, -1),)


class ImagePadForOutpaint(StockNode):
    """Grey around the image, and a mask of what is new, which fades into the image over `feathering` pixels."""

    TITLE = "Pad Image for Outpainting"
    REQUIRED = {"image": IMAGE} | {side: pixels(0) for side in ("left", "top", "right", "bottom")} | {"feathering": pixels(40)}
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "pad"

    def pad(self, image, left, top, right, bottom, feathering):
        padded = torch.nn.functional.pad(image, (0, 0, left, right, top, bottom), value=0.5)
        fade = self._fade(image.shape[1:3], (left, top, right, bottom), feathering)
        return (padded, torch.nn.functional.pad(fade, (left, right, top, bottom), value=1.0)[None])

    @staticmethod
    def _fade(size: tuple[int, int], sides: tuple[int, int, int, int], feathering: int) -> torch.Tensor:
        """[H, W]: 1 at an edge with something new behind it, falling to 0 with the square of the distance."""
        height, width = size
        if not 0 < 2 * feathering < min(height, width):
            return torch.zeros(height, width)
        left, top, right, bottom = (side > 0 for side in sides)
        x, y = torch.arange(width), torch.arange(height)
        across = torch.minimum(x if left else torch.full_like(x, width), width - x if right else torch.full_like(x, width))
        down = torch.minimum(y if top else torch.full_like(y, height), height - y if bottom else torch.full_like(y, height))
        distance = torch.minimum(across[None], down[:, None])
        return ((feathering - distance) / feathering).clamp(min=0) ** 2


class ImageCompositeMasked(StockNode):
    """The source over the destination, from (x, y) on, where the mask is 1."""

    TITLE = "Image Composite Masked"
    REQUIRED = {
        "destination": IMAGE,
        "source": IMAGE,
        "x": pixels(0),
        "y": pixels(0),
        "resize_source": ("BOOLEAN", {"default": False}),
    }
    OPTIONAL = {"mask": ("MASK", {})}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "composite"

    def composite(self, destination, source, x, y, resize_source, mask=None):
        source = _with_alpha(source, destination.shape[-1])
        height, width = destination.shape[1:3]
        if resize_source:
            source = resize(source, (width, height))
        source = repeat_to(source, len(destination))
        if mask is None:
            mask = torch.ones(1, *source.shape[1:3])
        share = repeat_to(resize_mask(mask, *source.shape[1:3]), len(source))[..., None]
        result = destination.clone()
        here = result[:, y : y + source.shape[1], x : x + source.shape[2]]  # what of the source lies on the destination
        share, source = (tensor[:, : here.shape[1], : here.shape[2]] for tensor in (share, source))
        here.copy_(share * source + (1 - share) * here)
        return (result,)


class SplitImageWithAlpha(StockNode):
    TITLE = "Split Image with Alpha"
    REQUIRED = {"image": IMAGE}
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "split"

    def split(self, image):
        return (image[..., :3], 1 - _with_alpha(image, 4)[..., 3])


class JoinImageWithAlpha(StockNode):
    TITLE = "Join Image with Alpha"
    REQUIRED = {"image": IMAGE, "alpha": ("MASK", {})}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "join"

    def join(self, image, alpha):
        alpha = 1 - resize_mask(alpha, *image.shape[1:3])
        count = max(len(image), len(alpha))
        return (torch.cat([repeat_to(image, count)[..., :3], repeat_to(alpha, count)[..., None]], -1),)


class ImageStitch(StockNode):
    """image2 beside image1. An image of fewer pictures repeats its last one."""

    TITLE = "Stitch Images"
    REQUIRED = {
        "image1": IMAGE,
        "direction": (["right", "down", "left", "up"], {"default": "right"}),
        "match_image_size": ("BOOLEAN", {"default": True}),
        "spacing_width": pixels(0, 0, 1024),
        "spacing_color": (list(SPACING_COLOURS), {"default": "white"}),
    }
    OPTIONAL = {"image2": IMAGE}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "stitch"

    def stitch(self, image1, direction, match_image_size, spacing_width, spacing_color, image2=None):
        if image2 is None:
            return (image1,)
        along = 2 if direction in ("left", "right") else 1  # the side along which they lie
        count, channels = max(len(image1), len(image2)), max(image1.shape[-1], image2.shape[-1])
        images = [torch.cat([image, image[-1:].repeat(count - len(image), 1, 1, 1)]) for image in (image1, image2)]
        if match_image_size:
            images[1] = self._matched(images[1], images[0], along)
        colour = SPACING_COLOURS[spacing_color]
        pad = colour[0] if len({*colour}) == 1 else 0
        images = [_with_alpha(image, channels) for image in self._level(images, 3 - along, pad)]
        if direction in ("left", "up"):
            images.reverse()
        if spacing_width:
            shape = [*images[0].shape]
            shape[along] = spacing_width + spacing_width % 2
            images.insert(1, torch.tensor([*colour, 1.0])[:channels].expand(shape))
        return (torch.cat(images, along),)

    @staticmethod
    def _matched(image: torch.Tensor, other: torch.Tensor, along: int) -> torch.Tensor:
        height, width = other.shape[1:3]
        aspect = image.shape[2] / image.shape[1]
        size = (int(height * aspect), height) if along == 2 else (width, int(width / aspect))
        return resize(image, size, "lanczos")

    @staticmethod
    def _level(images: list[torch.Tensor], side: int, value: float) -> list[torch.Tensor]:
        """Padded to the same length of a side (1 height, 2 width), in the middle."""
        longest = max(image.shape[side] for image in images)
        levelled = []
        for image in images:
            missing = longest - image.shape[side]
            both = (missing // 2, missing - missing // 2)
            levelled.append(torch.nn.functional.pad(image, (0, 0, *((0, 0, *both) if side == 1 else both)), value=value))
        return levelled
