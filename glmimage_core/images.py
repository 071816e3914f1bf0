"""Picture tensors, as they travel between nodes, to and from PIL. Checked here once."""

import io

import numpy as np
import torch
from PIL import Image


def check_image(image: torch.Tensor) -> None:
    """Raise ValueError unless image is a finite [B, H, W, C] tensor with 1, 3 or 4 channels."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f"an image is a tensor [batch, height, width, 1, 3 or 4 channels], this one is {list(image.shape)}")
    if not torch.isfinite(image).all():
        raise ValueError("the image has pixels that are NaN or infinite; the node that made it went wrong")


def to_rgb(image: torch.Tensor) -> torch.Tensor:
    """[B, H, W, 1, 3 or 4] to [B, H, W, 3]: grey is repeated, alpha is dropped as ComfyUI's own nodes do."""
    check_image(image)
    return image.expand(-1, -1, -1, 3) if image.shape[-1] == 1 else image[..., :3]


def to_pictures(image: torch.Tensor) -> list[Image.Image]:
    """[B, H, W, C] float 0..1 to B RGB pictures, rounded to 8 bits. Raises as `check_image` does."""
    levels = to_rgb(image).clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(picture) for picture in levels]


def from_picture(picture: Image.Image) -> torch.Tensor:
    """A picture to [1, H, W, 3] float32 0..1."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def to_png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
