"""A picture's own plan."""

from PIL import Image

from ..glmimage_core.glm_image.geometry import MAX_SIDE, MIN_SIDE, PRIOR_PX, check_size
from ..glmimage_core.glm_image.layout import check_length
from ..glmimage_core.glm_image.memory import vision_bytes
from ..glmimage_core.glm_image.plans.from_picture import plan_size, prior_from_pictures, read_size
from ..glmimage_core.glm_image.prior import Prior
from ..glmimage_core.images import to_pictures
from .host import host
from .planning import warn_of_size
from .sockets import AR, CATEGORY, PRIOR, glm_ar, validation_message


def _side_input(name: str) -> tuple:
    return (
        "INT",
        {
            "default": 0,
            "min": 0,
            "max": MAX_SIDE,
            "step": PRIOR_PX,
            "tooltip": f"{name} of the picture to paint in pixels, a multiple of {PRIOR_PX}. 0 follows from the other side and "
            "the image's aspect; with both 0 it is the image's own size.",
        },
    )


class GLMImagePriorFromImage:
    TITLE = "GLM-Image Prior from Image"
    DESCRIPTION = (
        "Reads the plan of any picture, a photo or a drawing, with the vision half of the AR model. Painted from noise, it "
        "becomes a variation: what is in the picture and where stays, the pixels are new. Nothing is generated, so it takes "
        "no seed."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("variation", "image variation", "img2img", "image to image", "image to prior", "restyle", "sketch to image")
    FUNCTION = "read"
    RETURN_TYPES = (PRIOR, "INT", "INT")
    RETURN_NAMES = ("prior", "width", "height")
    OUTPUT_TOOLTIPS = (
        "The plan of each image, for Apply Prior.",
        "Width of the planned picture in pixels, for the latent of another sampler.",
        "Height of the planned picture in pixels, for the latent of another sampler.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "ar": (AR, {"tooltip": "From Load GLM-Image AR Model. Only its vision half goes to the device."}),
                "image": ("IMAGE", {"tooltip": "One picture of any size, or a batch. Alpha is ignored."}),
                "width": _side_input("Width"),
                "height": _side_input("Height"),
            },
            "optional": {
                "prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "Words for the picture, which Save Prior keeps with the plan. They change no token. Text to "
                        "be drawn goes into Encode Prompt.",
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width, *, height=None, prompt=None):
        return validation_message(lambda: _check_values(prompt, width, height))

    def read(self, ar, image, width, height, prompt=""):
        glm_ar(ar)
        pictures = to_pictures(image)
        width, height = plan_size(pictures[0].size, width, height)
        return (read_plan(ar, pictures, width, height, prompt=prompt, label="Prior from Image"), width, height)


def read_plan(ar, pictures: list[Image.Image], width: int, height: int, *, prompt: str = "", label: str) -> Prior:
    """The plans of pictures, each resized to width x height pixels, read where the host places the AR model on an `ar` wire.

    label: what the progress is called.
    """
    check_size(width, height)
    reader = glm_ar(ar)
    warn_of_size(reader, width, height)
    working = vision_bytes(reader.model.config, reader.dtype.itemsize, *read_size(reader, width, height))
    with host.placed(ar, working, "vision") as reader:
        return prior_from_pictures(reader, pictures, width, height, prompt=prompt, progress=host.progress(label))


def _check_values(prompt: str | None, width: int | None, height: int | None) -> None:
    """0 and None, a value over a link, are known when the node runs."""
    check_length(prompt or "")
    check_size(width or MIN_SIDE, height or MIN_SIDE)
