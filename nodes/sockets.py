"""What travels on the wires: names of sockets, and the checks of what is connected to a node."""

from collections.abc import Callable

from ..glmimage_core.cogview3.base import CogView3Unet
from ..glmimage_core.cogview3.plus import CogView3
from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.dit import Dit
from ..glmimage_core.libraries import import_failure
from ..glmimage_core.vae import Vae
from .host import host

CATEGORY = "GLM-Image"

AR = "GLM_IMAGE_AR"
GLYPH_ENCODER = "GLM_IMAGE_GLYPH_ENCODER"
REFERENCES = "GLM_IMAGE_REFERENCES"
PRIOR = "GLM_IMAGE_PRIOR"
VARIATION = "GLM_IMAGE_VARIATION"
VLM = "GLM_IMAGE_VLM"
COGVIEW3_TEXT = "COGVIEW3_TEXT_ENCODER"  # T5, which encodes prompts for both CogView3s

MODEL_LOADERS = {
    Dit: ("a GLM-Image DiT", "Load GLM-Image DiT"),
    CogView3: ("CogView3-Plus", "Load CogView3-Plus"),
    CogView3Unet: ("CogView3-Base", "Load CogView3-Base"),
}
"""What a node calls its model, and the node that loads it."""
VAE_LOADERS = {
    "GLM-Image": "Load GLM-Image VAE",
    "CogView3-Plus": "Load CogView3-Plus",
    "CogView3-Base": "Load CogView3-Base",
}
"""The node that loads a family's VAE."""


def validation_message(check: Callable[[], object]) -> bool | str:
    """The answer of VALIDATE_INPUTS: True, or the message of what a check raises for a value, a file or something missing."""
    try:
        check()
    except (ValueError, OSError, ImportError) as error:
        return import_failure(error) if isinstance(error, ModuleNotFoundError) else str(error)
    return True


def glm_ar(ar) -> ArModel:
    """The AR model on its wire. Raises ValueError for an empty wire."""
    return _connected(ar, "ar")


def glm_dit(model) -> Dit:
    """The DiT on a MODEL wire. Raises ValueError for an empty wire and for a model of another family."""
    return _model_of(Dit, _connected(model, "model"))


def cogview3_dit(model) -> CogView3:
    """The CogView3-Plus on a MODEL wire. Raises ValueError for a model of another family."""
    return _model_of(CogView3, host.component(model))


def cogview3_unet(model) -> CogView3Unet:
    """The UNet of CogView3-Base on a MODEL wire. Raises ValueError for a model of another family."""
    return _model_of(CogView3Unet, host.component(model))


def _connected(wire, name: str):
    if wire is None:
        raise ValueError(f"{name} is empty: Load GLM-Image LoRA passes on only what is connected to it; connect its {name} too")
    return host.component(wire)


def _model_of(kind: type, component):
    if not isinstance(component, kind):
        name, loader = MODEL_LOADERS[kind]
        raise ValueError(f"model is not {name}; connect {loader}")
    return component


def any_vae(vae) -> Vae:
    """The VAE on a VAE wire, of whatever family. Raises ValueError for a VAE that another pack or ComfyUI loaded."""
    component = host.component(vae)
    if not isinstance(component, Vae):
        *others, last = VAE_LOADERS.values()
        raise ValueError(f"vae was loaded by another node; connect {', '.join(others)} or {last}, whichever loaded the model")
    return component


def glm_vae(vae) -> Vae:
    """GLM-Image's VAE on a VAE wire. Raises ValueError for a VAE of another family."""
    return _vae_of("GLM-Image", vae, lambda space: not space.is_uniform)


def cogview3_base_vae(vae, unet: CogView3Unet) -> Vae:
    """The VAE on a VAE wire whose latents the UNet was trained on. Raises ValueError for any other VAE."""
    return _vae_of("CogView3-Base", vae, lambda space: space == unet.space)


def _vae_of(family: str, vae, has_space: Callable) -> Vae:
    component = host.component(vae)
    if not isinstance(component, Vae) or not has_space(component.space):
        raise ValueError(f"vae is not {family}'s; connect {VAE_LOADERS[family]}")
    return component


def one_conditioning(conditioning: list, name: str, sampler: str = "GLM-Image Sampler") -> tuple:
    """The embeddings and options of a conditioning with one entry. Raises ValueError for combined conditionings."""
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} holds {len(conditioning)} combined conditionings, and {sampler} takes one; KSampler takes several"
        )
    return conditioning[0]
