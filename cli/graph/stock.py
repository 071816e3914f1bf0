"""ComfyUI's own nodes that the shipped workflows use, with the same ids, inputs and files."""

import hashlib
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ...glmimage_core.checkpoints.outputs import check_writable
from ...glmimage_core.images import from_picture


@dataclass(frozen=True)
class Folders:
    """Where pictures are read and written. `written` collects the paths of what was saved."""

    input: Path
    output: Path
    written: list[Path]


def inside(folder: Path, name: str) -> Path:
    """folder / name. Raises ValueError for a name that leaves the folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leaves the folder {folder}")
    return path


class StockNode:
    """A node with fixed inputs. HIDDEN are those that the runner adds: its folders and the workflow in both formats."""

    REQUIRED: ClassVar[dict[str, tuple]] = {}
    HIDDEN: ClassVar[dict[str, str]] = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": cls.REQUIRED, "hidden": cls.HIDDEN}


class LoadImage(StockNode):
    TITLE = "Load Image"
    REQUIRED = {"image": ("STRING", {})}
    HIDDEN = {"folders": "FOLDERS"}
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @staticmethod
    def _path(folders: Folders, image: str) -> Path:
        path = inside(folders.input, image.removesuffix(" [input]"))
        if not path.is_file():
            raise FileNotFoundError(f"no picture {image!r} in {folders.input}; --input DIR says where pictures are")
        return path

    @classmethod
    def VALIDATE_INPUTS(cls, image, folders):
        try:
            if image is not None:  # else it comes from a node that has to run first
                cls._path(folders, image)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, image, folders):
        return hashlib.sha256(cls._path(folders, image).read_bytes()).hexdigest()

    def load(self, image, folders):
        try:
            with Image.open(self._path(folders, image)) as file:
                picture = ImageOps.exif_transpose(file)
                if picture.mode.startswith("I"):  # 16 bits a channel, which convert would clip
                    picture = picture.convert("I").point(lambda level: level * (1 / 257))
                alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
                rgb = np.array(picture.convert("RGB"), dtype=np.float32) / 255
        except UnidentifiedImageError as error:
            raise ValueError(f"{image} is not a picture") from error
        mask = torch.zeros(1, 64, 64)
        if alpha is not None:
            mask = 1 - torch.from_numpy(np.array(alpha, dtype=np.float32) / 255)[None]
        return (torch.from_numpy(rgb)[None], mask)


class SaveImage(StockNode):
    TITLE = "Save Image"
    REQUIRED = {"images": ("IMAGE", {}), "filename_prefix": ("STRING", {"default": "ComfyUI"})}
    HIDDEN = {"folders": "FOLDERS", "prompt": "PROMPT", "workflow": "WORKFLOW"}
    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    SUBFOLDER = ""

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix, folders):
        try:
            stem = _stem(folders.output / cls.SUBFOLDER, filename_prefix or "ComfyUI")
            check_writable(stem.with_name(f"{stem.name}.{uuid4().hex}.part"))
        except (ValueError, OSError) as error:
            return str(error)
        return True

    def save(self, images, folders, prompt, workflow, filename_prefix="ComfyUI"):
        info = PngInfo()
        info.add_text("prompt", json.dumps(prompt))
        if workflow is not None:
            info.add_text("workflow", json.dumps(workflow))
        height, width = images.shape[1:3]
        stem = _stem(folders.output / self.SUBFOLDER, _expand(filename_prefix or "ComfyUI", width, height))
        for image in images:
            folders.written.append(_write_whole(stem, _truncated(image), info))
        return ()


class PreviewImage(SaveImage):
    """Saved too, below preview/, since there is no screen to show it on."""

    TITLE = "Preview Image"
    REQUIRED = {"images": ("IMAGE", {})}
    SUBFOLDER = "preview"

    @classmethod
    def VALIDATE_INPUTS(cls, folders):
        return super().VALIDATE_INPUTS("", folders)


def _truncated(image: torch.Tensor) -> Image.Image:
    """[H, W, 3] in 0..1 to a picture; truncated, not rounded, as ComfyUI does: the same graph writes the same bytes in both."""
    return Image.fromarray(np.clip(image.cpu().numpy() * 255, 0, 255).astype(np.uint8))


def _stem(folder: Path, prefix: str) -> Path:
    """What the names of a prefix's pictures begin with. Raises ValueError for a prefix that leaves the folder or is all of it."""
    stem = inside(folder, prefix)
    if stem == folder.resolve():
        raise ValueError(f"{prefix!r} is the folder {folder} itself, and names no picture in it")
    return stem


def _expand(prefix: str, width: int, height: int) -> str:
    """ComfyUI's placeholders: %width% and %height% of the picture, %year% to %second% of the clock."""
    now = time.localtime()
    values = {"width": width, "height": height, "year": now.tm_year, "month": f"{now.tm_mon:02}", "day": f"{now.tm_mday:02}"}
    values |= {"hour": f"{now.tm_hour:02}", "minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}"}
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", str(value))
    return prefix


def _write_whole(stem: Path, picture: Image.Image, info: PngInfo) -> Path:
    """Write stem_00001_.png, with the first number above all that are there, whole or not at all: a kill leaves a .part.

    Raises OSError that names the file.
    """
    part = stem.with_name(f"{stem.name}.{uuid4().hex}.part")
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        picture.save(part, format="PNG", pnginfo=info, compress_level=4)
        return _named(part, stem)
    except OSError as error:
        raise OSError(f"could not write {stem}_00001_.png: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _named(part: Path, stem: Path) -> Path:
    """Give a finished file the next free name, which another process cannot take at the same time."""
    pattern = re.compile(rf"{re.escape(stem.name)}_(\d+)_.*")
    while True:
        taken = [int(match[1]) for file in stem.parent.iterdir() if (match := pattern.fullmatch(file.name))]
        path = stem.with_name(f"{stem.name}_{max(taken, default=0) + 1:05}_.png")
        try:
            os.link(part, path)  # a second name, unless there is such a file
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                continue
            part.replace(path)
        return path


class SetLatentNoiseMask(StockNode):
    TITLE = "Set Latent Noise Mask"
    REQUIRED = {"samples": ("LATENT", {}), "mask": ("MASK", {})}
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "set_mask"

    def set_mask(self, samples, mask):
        return (samples | {"noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])},)


class ImageScale(StockNode):
    TITLE = "Upscale Image"
    REQUIRED = {
        "image": ("IMAGE", {}),
        "upscale_method": (["nearest-exact", "bilinear", "area", "bicubic", "lanczos"], {}),
        "width": ("INT", {"default": 512, "min": 0, "max": 16384}),
        "height": ("INT", {"default": 512, "min": 0, "max": 16384}),
        "crop": (["disabled", "center"], {}),
    }
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "scale"

    def scale(self, image, upscale_method, width, height, crop):
        """A side of 0 follows the other one. center cuts away what the new aspect has no room for."""
        if width == height == 0:
            return (image,)
        here_height, here_width = image.shape[1:3]
        width = width or max(1, round(here_width * height / here_height))
        height = height or max(1, round(here_height * width / here_width))
        if crop == "center":
            across, down = here_width / here_height, width / height
            x = round((here_width - here_width * (down / across)) / 2) if across > down else 0
            y = round((here_height - here_height * (across / down)) / 2) if across < down else 0
            image = image[:, y : here_height - y, x : here_width - x]
        if upscale_method == "lanczos":
            pictures = [_truncated(one).resize((width, height), Image.Resampling.LANCZOS) for one in image]
            return (torch.cat([from_picture(picture) for picture in pictures]),)
        scaled = torch.nn.functional.interpolate(image.movedim(-1, 1), (height, width), mode=upscale_method)  # BHWC -> BCHW
        return (scaled.movedim(1, -1),)


class PreviewAny(StockNode):
    """Shown on standard error, since there is no screen: standard output is for the paths of pictures."""

    TITLE = "Preview as Text"
    REQUIRED = {"source": ("*", {})}
    RETURN_TYPES = ("STRING",)
    FUNCTION = "show"
    OUTPUT_NODE = True

    def show(self, source):
        print(f"{self.TITLE}: {source}", file=sys.stderr)
        return (str(source),)


class Primitive(StockNode):
    """A node that hands on its one widget. CONSTANT says that its value is known before anything runs."""

    CONSTANT = True
    FUNCTION = "value"

    def value(self, value):
        return (value,)


def _primitive(node_id: str, title: str, kind: str) -> type[Primitive]:
    options = {"control_after_generate": True} if kind == "INT" else {}
    return type(node_id, (Primitive,), {"TITLE": title, "RETURN_TYPES": (kind,), "REQUIRED": {"value": (kind, options)}})


STOCK_NODES = {
    "LoadImage": LoadImage,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
    "PreviewAny": PreviewAny,
    "SetLatentNoiseMask": SetLatentNoiseMask,
    "ImageScale": ImageScale,
    "PrimitiveInt": _primitive("PrimitiveInt", "Int", "INT"),
    "PrimitiveFloat": _primitive("PrimitiveFloat", "Float", "FLOAT"),
    "PrimitiveString": _primitive("PrimitiveString", "String", "STRING"),
    "PrimitiveStringMultiline": _primitive("PrimitiveStringMultiline", "String (Multiline)", "STRING"),
    "PrimitiveBoolean": _primitive("PrimitiveBoolean", "Boolean", "BOOLEAN"),
}
