"""Weights that another library quantized: whether the library is installed, whether it runs on a device, and loading them."""

import importlib.util
from pathlib import Path

import torch

from ..libraries import start

LIBRARY_MODULES = {  # quant_method in a config.json, which is also the name to install -> the module to import
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "sdnq": "sdnq",
    "auto-round": "auto_round",
    "gguf": "gguf",
}


def check_library(method: str) -> None:
    """Raise ImportError, with what to install, where the library of a method is missing."""
    if importlib.util.find_spec(LIBRARY_MODULES[method]) is None:
        raise ImportError(f"these weights are quantized by {method}, which is missing: pip install {method}")


def check_library_device(method: str, framework: str, device: torch.device) -> None:
    """Raise ValueError where a model that a library quantized cannot be loaded for a device.

    framework: the library of the model's class, transformers or diffusers.
    """
    if method == "bitsandbytes" and framework == "diffusers" and device.type != "cuda":
        raise ValueError(
            f"diffusers loads a model quantized by bitsandbytes on CUDA only, not on {device.type}; "
            "take the original checkpoint and quantization nf4"
        )


def import_library(method: str) -> None:
    """Import the library of a method. SDNQ registers itself with transformers and diffusers when it is imported.

    Raises ImportError, with the reason, where it does not start.
    """
    start(LIBRARY_MODULES[method])


def fill_from_gguf(model: torch.nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Give a model on the meta device the weights of a GGUF file, in diffusers' layers for them, which compute in a dtype.

    Both of diffusers' functions are private. Its public from_single_file takes only the classes of a list (0.42), without
    GLM-Image's.
    """
    from diffusers.models.model_loading_utils import load_gguf_checkpoint
    from diffusers.quantizers.gguf.utils import GGUFParameter, _replace_with_gguf_linear

    tensors = load_gguf_checkpoint(str(file))
    _replace_with_gguf_linear(model, dtype, tensors)
    for key, tensor in tensors.items():
        module, _, name = key.rpartition(".")
        if not isinstance(tensor, GGUFParameter):
            tensor = torch.nn.Parameter(tensor.to(dtype), requires_grad=False)
        model.get_submodule(module)._parameters[name] = tensor
