"""Plans as clay: parts of one in another, a part alone, everything moved, and places that the DiT invents."""

from ..glmimage_core.glm_image.geometry import MAX_SIDE, MIN_SIDE, PRIOR_PX
from ..glmimage_core.glm_image.plans.mixed import cropped, dropped, mixed, pasted, shifted
from .sockets import CATEGORY, PRIOR

MIXED = ("The plan, for Apply Prior.",)


def _distance(what: str, *, least: int = -MAX_SIDE) -> tuple:
    """A distance in pixels, in whole tokens."""
    return (
        "INT",
        {"default": 0, "min": least, "max": MAX_SIDE, "step": PRIOR_PX, "tooltip": f"{what}, a multiple of 32 pixels."},
    )


def _side(name: str) -> tuple:
    options = {"default": 512, "min": MIN_SIDE, "max": MAX_SIDE, "step": PRIOR_PX}
    return ("INT", options | {"tooltip": f"{name} of the part in pixels, a multiple of 32."})


class GLMImageMixPriors:
    TITLE = "GLM-Image Mix Priors"
    DESCRIPTION = (
        "Takes the tokens of one plan, and where a mask covers them those of another one. Both plan pictures of one size."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("blend plans", "combine priors", "composite masked", "merge compositions", "regional")
    FUNCTION = "mix"
    RETURN_TYPES = (PRIOR,)
    RETURN_NAMES = ("prior",)
    OUTPUT_TOOLTIPS = MIXED

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prior": (PRIOR, {"tooltip": "The plan to begin with."}),
                "other": (PRIOR, {"tooltip": "The plan whose tokens come in where the mask is."}),
                "mask": ("MASK", {"tooltip": "Of any size. A token changes if one of its 32 x 32 pixels is masked."}),
            }
        }

    def mix(self, prior, other, mask):
        return (mixed(prior, other, mask),)


class GLMImageCropPrior:
    TITLE = "GLM-Image Crop Prior"
    DESCRIPTION = "The plan of a part of the picture."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("cut plan", "crop tokens", "crop composition")
    FUNCTION = "crop"
    RETURN_TYPES = (PRIOR,)
    RETURN_NAMES = ("prior",)
    OUTPUT_TOOLTIPS = ("The plan of the part, of its own size.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prior": (PRIOR, {"tooltip": "The plan to cut."}),
                "x": _distance("How far from the left the part begins", least=0),
                "y": _distance("How far from the top the part begins", least=0),
                "width": _side("Width"),
                "height": _side("Height"),
            }
        }

    def crop(self, prior, x, y, width, height):
        return (cropped(prior, x, y, width=width, height=height),)


class GLMImageShiftPrior:
    TITLE = "GLM-Image Shift Prior"
    DESCRIPTION = "Moves everything in a plan. What comes in at an edge repeats the tokens there."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("move plan", "translate composition", "offset tokens", "pan")
    FUNCTION = "shift"
    RETURN_TYPES = (PRIOR,)
    RETURN_NAMES = ("prior",)
    OUTPUT_TOOLTIPS = MIXED

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prior": (PRIOR, {"tooltip": "The plan to move."}),
                "right": _distance("How far to the right; below 0 to the left"),
                "down": _distance("How far down; below 0 up"),
            }
        }

    def shift(self, prior, right, down):
        return (shifted(prior, right, down),)


class GLMImagePastePrior:
    TITLE = "GLM-Image Paste Prior"
    DESCRIPTION = "Lays a smaller plan over another one. What reaches over its edges is cut off."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("paste tokens", "insert plan", "stamp composition", "collage")
    FUNCTION = "paste"
    RETURN_TYPES = (PRIOR,)
    RETURN_NAMES = ("prior",)
    OUTPUT_TOOLTIPS = MIXED

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prior": (PRIOR, {"tooltip": "The plan below."}),
                "piece": (PRIOR, {"tooltip": "The plan above, such as from Crop Prior."}),
                "x": _distance("Where the left edge of the piece comes to lie"),
                "y": _distance("Where its upper edge comes to lie"),
            }
        }

    def paste(self, prior, piece, x, y):
        return (pasted(prior, piece, x, y),)


class GLMImageDropPrior:
    TITLE = "GLM-Image Drop Prior"
    DESCRIPTION = (
        "Hides the tokens under a mask from the sampler, which then invents what is there. The plan still has them: nothing is "
        "planned anew, as Regrow Prior does."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("erase plan", "forget tokens", "mask tokens", "invent")
    FUNCTION = "drop"
    RETURN_TYPES = (PRIOR,)
    RETURN_NAMES = ("prior",)
    OUTPUT_TOOLTIPS = MIXED

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prior": (PRIOR, {"tooltip": "The plan to hide a part of."}),
                "mask": ("MASK", {"tooltip": "Of any size. A token is hidden if one of its 32 x 32 pixels is masked."}),
            }
        }

    def drop(self, prior, mask):
        return (dropped(prior, mask),)
