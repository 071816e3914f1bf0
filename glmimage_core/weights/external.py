"""Weights that another library quantized: whether the library is installed, whether it runs on a device, and loading them."""

import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from ..libraries import start

Named = TypeVar("Named")
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


def without_prefix(named: Mapping[str, Named], names: Collection[str]) -> dict[str, Named]:
    """What goes by a model's names, under these, where tools put one prefix in front of all of them; else as it is."""
    first = next(iter(names))
    for prefix in (key.removesuffix(first) for key in named if key.endswith(first)):
        if all(prefix + name in named for name in names):
            return {name: named[prefix + name] for name in names}
    return dict(named)


def fill_from_gguf(model: torch.nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Give a model on the meta device the weights of a GGUF file, in diffusers' layers for them, which compute in a dtype.

    Both of diffusers' functions are private. Its public from_single_file takes only the classes of a list (0.42), without
    GLM-Image's.
    """
    from diffusers.models.model_loading_utils import load_gguf_checkpoint
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, _replace_with_gguf_linear, dequantize_gguf_tensor
    from gguf import GGMLQuantizationType

    tensors = without_prefix(load_gguf_checkpoint(str(file)), model.state_dict())
    for key, tensor in tensors.items():
        if isinstance(tensor, GGUFParameter) and tensor.quant_type == GGMLQuantizationType.BF16:  # which diffusers keeps as bytes
            tensors[key] = tensor.as_tensor().view(torch.bfloat16)
    _replace_with_gguf_linear(model, dtype, tensors)
    for key, tensor in tensors.items():
        module, _, name = key.rpartition(".")
        if isinstance(tensor, GGUFParameter) and not isinstance(model.get_submodule(module), GGUFLinear):
            tensor = dequantize_gguf_tensor(tensor)  # of an embedding or a norm, whose layers compute with plain weights only
        if not isinstance(tensor, GGUFParameter):
            tensor = torch.nn.Parameter(tensor.to(dtype), requires_grad=False)
        model.get_submodule(module)._parameters[name] = tensor
