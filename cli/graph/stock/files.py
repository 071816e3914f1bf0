"""ComfyUI's own nodes that read and write pictures, with the same files."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ....glmimage_core.checkpoints.names import inside
from ....glmimage_core.checkpoints.numbered import expanded, stem_of, write_numbered
from ....glmimage_core.checkpoints.outputs import check_writable
from ....workflows import shipped_picture
from .base import Folders, StockNode
from .reading import check_picture, read_frames


class LoadImage(StockNode):
    TITLE = "Load Image"
    REQUIRED = {"image": ("STRING", {})}
    HIDDEN = {"folders": "FOLDERS"}
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @staticmethod
    def _path(folders: Folders, image: str) -> Path:
        """The file of a name, which may end with the folder that it lies in, as in `x.png [output]`.

        The shipped workflows' own pictures are found too, as ComfyUI finds them: the pack puts them into its input folder.
        """
        name, _, place = image.rpartition(" ")
        places = {"[input]": folders.input, "[output]": folders.output, "[temp]": folders.temp}
        folder, name = (places[place], name) if place in places else (folders.input, image)
        path = inside(folder, name)
        if not path.is_file() and "\\" in name:  # a workflow from Windows
            path = inside(folder, name.replace("\\", "/"))
        if not path.is_file() and place not in ("[output]", "[temp]") and (shipped := shipped_picture(name)):
            return shipped
        if not path.is_file():
            option = "" if folder == folders.temp else f"; --{'output' if folder == folders.output else 'input'} DIR says which"
            raise FileNotFoundError(f"no picture {name!r} in {folder}{option}")
        return path

    @classmethod
    def VALIDATE_INPUTS(cls, image, folders):
        try:
            if image is not None:  # else it comes from a node that has to run first
                check_picture(cls._path(folders, image))
        except (ValueError, OSError) as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, image, folders):
        return hashlib.sha256(cls._path(folders, image).read_bytes()).hexdigest()

    def load(self, image, folders):
        return read_frames(self._path(folders, image))


class LoadImageMask(LoadImage):
    TITLE = "Load Image (as Mask)"
    REQUIRED = LoadImage.REQUIRED | {"channel": (["alpha", "red", "green", "blue"], {})}
    RETURN_TYPES = ("MASK",)
    FUNCTION = "load_mask"

    @classmethod
    def IS_CHANGED(cls, image, channel, folders):
        return super().IS_CHANGED(image, folders)

    def load_mask(self, image, channel, folders):
        colours, mask = self.load(image, folders)
        return (mask if channel == "alpha" else colours[..., "rgb".index(channel[0])],)


class SaveImage(StockNode):
    TITLE = "Save Image"
    REQUIRED = {"images": ("IMAGE", {}), "filename_prefix": ("STRING", {"default": "ComfyUI"})}
    HIDDEN = {"folders": "FOLDERS", "prompt": "PROMPT", "workflow": "WORKFLOW"}
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "save"
    OUTPUT_NODE = True
    SUBFOLDER = ""

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix, folders):
        try:
            stem = stem_of(folders.output / cls.SUBFOLDER, filename_prefix or "ComfyUI")
            check_writable(stem.with_name(f"{stem.name}_00001_.png"))
        except (ValueError, OSError) as error:
            return str(error)
        return True

    def save(self, images, folders, prompt, workflow, filename_prefix="ComfyUI"):
        info = PngInfo()
        info.add_text("prompt", json.dumps(prompt))
        if workflow is not None:
            info.add_text("workflow", json.dumps(workflow))
        height, width = images.shape[1:3]
        stem = stem_of(folders.output / self.SUBFOLDER, expanded(filename_prefix or "ComfyUI", width, height))
        for image in images:
            folders.written.append(_write_whole(stem, _truncated(image), info))
        return (images,)


class PreviewImage(SaveImage):
    """Saved too, below preview/, since there is no screen to show it on."""

    TITLE = "Preview Image"
    REQUIRED = {"images": ("IMAGE", {})}
    SUBFOLDER = "preview"

    @classmethod
    def VALIDATE_INPUTS(cls, folders):
        return super().VALIDATE_INPUTS("", folders)


class MaskPreview(PreviewImage):
    TITLE = "Preview Mask"
    REQUIRED = {"mask": ("MASK", {})}
    RETURN_TYPES = ("MASK",)
    FUNCTION = "save_mask"

    def save_mask(self, mask, folders, prompt, workflow):
        self.save(mask.reshape(-1, *mask.shape[-2:], 1).expand(-1, -1, -1, 3), folders, prompt, workflow)
        return (mask,)


def _truncated(image: torch.Tensor) -> Image.Image:
    """[H, W, 3] in 0..1 to a picture; truncated, not rounded, as ComfyUI does: the same graph writes the same bytes in both."""
    return Image.fromarray(np.clip(image.cpu().numpy() * 255, 0, 255).astype(np.uint8))


def _write_whole(stem: Path, picture: Image.Image, info: PngInfo) -> Path:
    """Write stem_00001_.png, or with a higher number, as `write_numbered` does."""
    return write_numbered(stem, ".png", lambda part: picture.save(part, format="PNG", pnginfo=info, compress_level=4))
