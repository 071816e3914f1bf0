"""Weights that another library quantized: is it installed, does it run on this device, load it."""

import importlib.util
from pathlib import Path

import torch

MODULES = {  # quant_method in a config, which is also the name to install -> the module that must be there
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "sdnq": "sdnq",
    "auto-round": "auto_round",
    "gguf": "gguf",
}


def check_library(method: str) -> None:
    """Raise ImportError, with what to install, where the library of a method is missing."""
    if importlib.util.find_spec(MODULES[method]) is None:
        raise ImportError(f"these weights are quantized by {method}, which is missing: pip install {method}")


def check_library_device(method: str, name: str, device: torch.device) -> None:
    """Raise ValueError where a component quantized so cannot be loaded."""
    if method == "bitsandbytes" and name == "transformer" and device.type != "cuda":
        raise ValueError(
            f"diffusers loads a DiT quantized by bitsandbytes on CUDA only, not on {device.type}; "
            "take the original checkpoint and quantization nf4"
        )


def import_library(method: str) -> None:
    """Import the library: SDNQ makes itself known to transformers and diffusers that way."""
    importlib.import_module(MODULES[method])


def fill_from_gguf(model: torch.nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Give a DiT without weights those of a GGUF file, through diffusers' layers for them."""
    from diffusers.models.model_loading_utils import load_gguf_checkpoint
    from diffusers.quantizers.gguf.utils import GGUFParameter, _replace_with_gguf_linear

    tensors = load_gguf_checkpoint(str(file))
    _replace_with_gguf_linear(model, dtype, tensors)
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        if not isinstance(tensor, GGUFParameter):
            tensor = torch.nn.Parameter(tensor.to(dtype), requires_grad=False)
        model.get_submodule(name)._parameters[kind] = tensor
