"""Picture sizes by aspect and area, and those that z.ai recommends."""

import torch

from ..glmimage_core.glm_image.geometry import check_size, size_of, whole_tokens
from ..glmimage_core.glm_image.trained_on import RELEASED
from .host import host
from .sockets import AR, CATEGORY, glm_ar

LIKE_IMAGE, IMAGE_SIZE = "like image", "image size"
ASPECTS = {
    f"{width}:{height}": width / height
    for width, height in ((1, 1), (4, 3), (3, 2), (16, 9), (21, 9), (3, 4), (2, 3), (9, 16), (9, 21))
}
RECOMMENDED = {
    f"{width} x {height}": (width, height)
    for width, height in ((1280, 1280), (1568, 1056), (1056, 1568), (1472, 1088), (1088, 1472), (1728, 960), (960, 1728))
}
"""The sizes in pixels that z.ai recommends for its own service, of about 1.56 megapixels."""


class GLMImageSize:
    TITLE = "GLM-Image Size"
    DESCRIPTION = (
        "Width and height in the multiples of 32 that GLM-Image needs: for an aspect and a number of megapixels, or one of the "
        "sizes that z.ai recommends."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm aspect ratio", "glm resolution", "glm size preset")
    FUNCTION = "size"
    RETURN_TYPES = ("INT", "INT")
    RETURN_NAMES = ("width", "height")
    OUTPUT_TOOLTIPS = (
        "Width in pixels, for GLM-Image Generate Prior.",
        "Height in pixels, for GLM-Image Generate Prior.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "aspect": (
                    [*ASPECTS, LIKE_IMAGE, *RECOMMENDED, IMAGE_SIZE],
                    {
                        "default": "1:1",
                        "tooltip": f"Width to height. '{LIKE_IMAGE}' takes the aspect of the connected image, '{IMAGE_SIZE}' "
                        "its size, but not more megapixels than below. The sizes in pixels are those that z.ai recommends, of "
                        "about 1.56 megapixels.",
                    },
                ),
                "megapixels": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.06,
                        "max": 4.0,
                        "step": 0.05,  # the front end rounds to its two decimals
                        "tooltip": "Area in units of 1024 x 1024 pixels. GLM-Image was trained for 1 to 4, nano for 0.06 to "
                        "0.25. An aspect that is a size in pixels does without.",
                    },
                ),
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": f"Only its size is used, and only by '{LIKE_IMAGE}' and '{IMAGE_SIZE}'."}),
                "ar": (
                    AR,
                    {
                        "tooltip": "The AR model that plans the picture. The node warns of a size that this model was not "
                        "trained on; without it, of one that the released model was not."
                    },
                ),
                "fit": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Where the model was not trained on the size, take the nearest one that it was trained on, "
                        "and say so. Off: only warn.",
                    },
                ),
            },
        }

    def size(self, aspect, megapixels, image=None, ar=None, fit=False):
        trained_on = RELEASED if ar is None else glm_ar(ar).trained_on
        asked = _asked_size(aspect, megapixels, image)
        width, height = trained_on.nearest_size(*asked) if fit else whole_tokens(*asked)
        check_size(width, height)
        if trained_on.size_warnings(*asked) and fit:
            host.warn(f"{asked[0]}x{asked[1]} is no size that this model knows; the nearest one is taken: {width}x{height}")
        for warning in trained_on.size_warnings(width, height):
            host.warn(warning)
        return (width, height)


def _asked_size(aspect: str, megapixels: float, image: torch.Tensor | None) -> tuple[int, int]:
    """Width and height in pixels, of any image's. Raises ValueError where they follow an image that is not connected."""
    if aspect in RECOMMENDED:
        return RECOMMENDED[aspect]
    if aspect in ASPECTS:
        return size_of(ASPECTS[aspect], megapixels)
    if image is None:
        raise ValueError(f"aspect is '{aspect}', but no image is connected; connect one or choose an aspect")
    height, width = image.shape[1:3]
    if aspect == IMAGE_SIZE and width * height <= megapixels * 1024 * 1024:
        return (width, height)
    return size_of(width / height, megapixels)
