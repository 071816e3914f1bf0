"""Picture sizes that the model was trained for, by aspect."""

from ..glmimage_core.glm_image.geometry import size_of
from .host import host
from .sockets import CATEGORY

TRAINED_MEGAPIXELS = 1.0  # in units of 1024 x 1024 pixels; the released model was trained for 1 to 4
ROUNDING = 0.95  # sides rounded to multiples of 32 may fall short of the area by this factor
LIKE_IMAGE = "like image"
ASPECTS = {
    f"{width}:{height}": width / height
    for width, height in ((1, 1), (4, 3), (3, 2), (16, 9), (21, 9), (3, 4), (2, 3), (9, 16), (9, 21))
}


class GLMImageSize:
    TITLE = "GLM-Image Size"
    DESCRIPTION = "Width and height for an aspect and a number of megapixels, in the multiples of 32 that GLM-Image needs."
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
                    [*ASPECTS, LIKE_IMAGE],
                    {"default": "1:1", "tooltip": f"Width to height. '{LIKE_IMAGE}' takes the aspect of the connected image."},
                ),
                "megapixels": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.06,
                        "max": 4.0,
                        "step": 0.05,  # the front end rounds to its two decimals
                        "tooltip": "Area in units of 1024 x 1024 pixels. GLM-Image was trained for 1 to 4, nano for 0.06.",
                    },
                ),
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": f"Only its aspect is used, and only by '{LIKE_IMAGE}'."}),
            },
        }

    def size(self, aspect, megapixels, image=None):
        if aspect == LIKE_IMAGE:
            if image is None:
                raise ValueError(f"aspect is '{LIKE_IMAGE}', but no image is connected; connect one or choose an aspect")
            ratio = image.shape[2] / image.shape[1]
        else:
            ratio = ASPECTS[aspect]
        width, height = size_of(ratio, megapixels)
        if width * height < ROUNDING * TRAINED_MEGAPIXELS * 1024 * 1024:
            host.warn(f"{width}x{height} has fewer pixels than 1024x1024, the smallest area that GLM-Image was trained for")
        return (width, height)
