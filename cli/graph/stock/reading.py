"""Pictures on disk as tensors, every frame of an animated one, upright."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import ExifTags, Image, ImageOps, ImageSequence, UnidentifiedImageError

FORMATS = {
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "GIF",
    "TIFF",
    "BMP",
    "DIB",
    "ICO",
    "AVIF",
    "TGA",
    "PPM",
    "JPEG2000",
    "QOI",
    "PCX",
    "PSD",
}
"""What is read. None of them hands the file to another program, as Pillow does with PostScript."""

ANIMATED = {"PNG", "WEBP", "GIF", "AVIF"}  # the pages of a TIFF and the second pictures of a phone's JPEG are no frames

_TURNED_BY = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where a file says how it was held
_BYTES_A_PIXEL = 3 * 4 + 4  # of a frame and its mask


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture of one of FORMATS, with its header read. Raises ValueError for what is none and for one that is too large."""
    Image.init()  # Pillow knows a format once it has loaded its plugin
    try:
        with Image.open(path, formats=sorted(FORMATS & Image.OPEN.keys())) as file:
            yield file
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture in a format that is read here, such as PNG, JPEG or WebP") from error
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise ValueError(f"{path} has more than {limit} megapixels, the most that is read; make it smaller") from error
    except OSError as error:
        if error.errno is not None:  # the system's own
            raise
        raise ValueError(f"{path} cannot be read to its end: {error}") from error


def check_picture(path: Path) -> None:
    """Raise ValueError, by the header, for what `read_frames` would refuse."""
    with opened(path) as file:
        _check_memory(path, file)


def read_frames(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Every frame of a picture: [frames, H, W, 3] float32, 0 to 1, and the masks, 1 where a frame is transparent.

    The masks are [frames, H, W], or as in ComfyUI [frames, 64, 64] of zeros where nothing is transparent. Raises ValueError for
    what is no picture, and for one that is cut off.
    """
    with opened(path) as file:
        _check_memory(path, file)
        frames = ImageSequence.Iterator(file) if file.format in ANIMATED else [file]
        pictures = [_upright(frame).copy() for frame in frames]
    pictures = [picture for picture in pictures if picture.size == pictures[0].size]
    images = torch.stack([_colours(picture) for picture in pictures])
    if not any(picture.has_transparency_data for picture in pictures):
        return images, torch.zeros(len(pictures), 64, 64)
    alphas = [np.asarray(picture.convert("RGBA").getchannel("A"), dtype=np.float32) for picture in pictures]
    return images, 1 - torch.from_numpy(np.stack(alphas)) / 255


def _check_memory(path: Path, file: Image.Image) -> None:
    frames = getattr(file, "n_frames", 1) if file.format in ANIMATED else 1
    needed, free = frames * file.width * file.height * _BYTES_A_PIXEL, psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"{path} has {frames} frame(s) of {file.width}x{file.height}, which take {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free"
        )


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its Exif data say; as it is where those are broken, since a picture needs none."""
    try:
        picture.getexif().get(ExifTags.Base.Orientation)  # which keeps what it read
    except (SyntaxError, struct.error, ValueError, LookupError):
        return picture
    for name in _TURNED_BY:  # what Pillow would rewrite, and fail where another entry is broken
        picture.info.pop(name, None)
    return ImageOps.exif_transpose(picture)


def _colours(picture: Image.Image) -> torch.Tensor:
    """[H, W, 3] float32. Floats are taken as they are, and whole numbers as a fraction of the largest."""
    if picture.mode.startswith(("I", "F")):  # 16 bits or a float a pixel, which Pillow would clip at 255
        grey = np.asarray(picture, dtype=np.float32) / (65535 if picture.mode.startswith("I") else 1)
        return torch.from_numpy(grey)[..., None].repeat(1, 1, 3)
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)
