"""What travels on the wires: names of sockets and of entries in a conditioning, and the checks at a node's door."""

from collections.abc import Callable

from ..glmimage_core.cogview3.base import CogView3Unet
from ..glmimage_core.cogview3.plus import CogView3
from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.dit import Dit
from ..glmimage_core.glm_image.geometry import MAX_SIDE, MIN_SIDE, PRIOR_PX
from ..glmimage_core.vae import Vae
from .host import host

CATEGORY = "GLM-Image"

AR = "GLM_IMAGE_AR"
GLYPH_ENCODER = "GLM_IMAGE_GLYPH_ENCODER"
REFERENCES = "GLM_IMAGE_REFERENCES"
PRIOR = "GLM_IMAGE_PRIOR"
VLM = "GLM_IMAGE_VLM"
COGVIEW3_TEXT = "COGVIEW3_TEXT_ENCODER"  # T5, whose embeddings both CogView3s read

SEED_MAX = 2**64 - 1


def validation_message(check: Callable[[], object]) -> bool | str:
    """What VALIDATE_INPUTS answers: True, or what a check raises because of a value or of what is not there."""
    try:
        check()
    except (ValueError, FileNotFoundError, ImportError) as error:
        return str(error)
    return True


def seed_input(what: str) -> tuple:
    """A 64-bit seed widget. `what` completes "Seed of ..."."""
    return (
        "INT",
        {
            "default": 0,
            "min": 0,
            "max": SEED_MAX,
            "control_after_generate": True,
            "tooltip": f"Seed of {what}. Image i of a batch uses seed + i, so it can be made again alone.",
        },
    )


def side_input(name: str) -> tuple:
    """A widget for one side of the picture in pixels."""
    return (
        "INT",
        {
            "default": 1024,
            "min": MIN_SIDE,
            "max": MAX_SIDE,
            "step": PRIOR_PX,
            "tooltip": f"{name} of the picture in pixels, a multiple of {PRIOR_PX}. Trained for 1 to 4 megapixels.",
        },
    )


def glm_ar(ar) -> ArModel:
    """The AR model on its wire. Raises ValueError for an empty one."""
    return _component(ar, "ar")


def glm_dit(model) -> Dit:
    """The DiT on a MODEL wire. Raises ValueError for an empty one and for a model of another family."""
    dit = _component(model, "model")
    if not isinstance(dit, Dit):
        raise ValueError("model is not a GLM-Image DiT; connect Load GLM-Image DiT")
    return dit


def cogview3_dit(model) -> CogView3:
    """The CogView3-Plus on a MODEL wire. Raises ValueError for a model of another family."""
    dit = host.component(model)
    if not isinstance(dit, CogView3):
        raise ValueError("model is not CogView3-Plus; connect Load CogView3-Plus")
    return dit


def cogview3_unet(model) -> CogView3Unet:
    """The UNet of CogView3-Base on a MODEL wire. Raises ValueError for a model of another family."""
    unet = host.component(model)
    if not isinstance(unet, CogView3Unet):
        raise ValueError("model is not CogView3-Base; connect Load CogView3-Base")
    return unet


def _component(wire, name: str):
    if wire is None:
        raise ValueError(f"{name} is empty: Load GLM-Image LoRA passes on only what is connected to it; connect its {name} too")
    return host.component(wire)


def glm_vae(vae) -> Vae:
    """The VAE on a VAE wire. Raises ValueError for a VAE of another family."""
    component = host.component(vae)
    if not isinstance(component, Vae):
        raise ValueError("vae is not GLM-Image's; connect Load GLM-Image VAE")
    return component


def one_conditioning(conditioning: list, name: str, sampler: str = "GLM-Image Sampler") -> tuple:
    """The embeddings and options of a conditioning with one entry. Raises ValueError for combined ones."""
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} holds {len(conditioning)} combined conditionings, and {sampler} takes one; KSampler takes several"
        )
    return conditioning[0]
