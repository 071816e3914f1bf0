"""Picture sizes by aspect and area, and those that z.ai recommends."""

import torch

from ..glmimage_core.glm_image.geometry import size_of
from ..glmimage_core.glm_image.trained_on import RELEASED
from .host import host
from .sockets import AR, CATEGORY, glm_ar

LIKE_IMAGE = "like image"
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
                    [*ASPECTS, LIKE_IMAGE, *RECOMMENDED],
                    {
                        "default": "1:1",
                        "tooltip": f"Width to height. '{LIKE_IMAGE}' takes the aspect of the connected image. The sizes in "
                        "pixels are those that z.ai recommends, of about 1.56 megapixels.",
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
                        "0.14. An aspect that is a size in pixels does without.",
                    },
                ),
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": f"Only its aspect is used, and only by '{LIKE_IMAGE}'."}),
                "ar": (
                    AR,
                    {
                        "tooltip": "The AR model that plans the picture. The node warns of a size that this model was not "
                        "trained on; without it, of one that the released model was not."
                    },
                ),
            },
        }

    def size(self, aspect, megapixels, image=None, ar=None):
        width, height = RECOMMENDED[aspect] if aspect in RECOMMENDED else size_of(_ratio(aspect, image), megapixels)
        for warning in (RELEASED if ar is None else glm_ar(ar).trained_on).size_warnings(width, height):
            host.warn(warning)
        return (width, height)


def _ratio(aspect: str, image: torch.Tensor | None) -> float:
    """Width to height. Raises ValueError for the aspect of an image that is not connected."""
    if aspect != LIKE_IMAGE:
        return ASPECTS[aspect]
    if image is None:
        raise ValueError(f"aspect is '{LIKE_IMAGE}', but no image is connected; connect one or choose an aspect")
    return image.shape[2] / image.shape[1]
