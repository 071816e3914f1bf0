"""Components that another library quantized: which one it was, whether it is installed, and how it loads them.

transformers and diffusers call bitsandbytes, torchao, SDNQ and AutoRound themselves where config.json names the method; but
where the library is missing or the method unknown, some of their releases load noise without a word. Here that is an error,
told before anything is read. A GGUF file of the DiT takes the place of its safetensors.
"""

from pathlib import Path

import torch

from .folders import read_json
from .weights.external import MODULES, check_library
from .weights.formats import MARK, Header


def quant_method(folder: Path) -> str | None:
    """The library that quantized a component, or None. Raises ValueError for one that is not known here."""
    if gguf_file(folder):
        return "gguf"
    try:
        stated = read_json(folder / "config.json").get("quantization_config")
    except (OSError, ValueError):
        return None  # a missing or damaged config is told by whoever reads it
    method = stated.get("quant_method", MARK) if isinstance(stated, dict) else MARK
    if method != MARK and method not in MODULES:
        known = ", ".join(MODULES)
        raise ValueError(f"{folder} is quantized by {method!r}, which is unknown here; known are {known} and `python . quantize`")
    return None if method == MARK else method


def gguf_file(folder: Path) -> Path | None:
    """The GGUF file that holds a component's weights, where there are no safetensors."""
    if any(folder.glob("*.safetensors")):
        return None
    return next(iter(sorted(folder.glob("*.gguf"))), None)


def gguf_headers(file: Path) -> dict[str, Header]:
    """The headers of a GGUF file by name. Quantized tensors are bytes. Raises ValueError for a broken file."""
    check_library("gguf")
    import gguf

    try:
        tensors = gguf.GGUFReader(file).tensors
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{file} is truncated or corrupt ({error}); download it again") from error
    wide = {gguf.GGMLQuantizationType[name]: dtype for name, dtype in _WIDE.items()}
    return {
        tensor.name: Header(wide[tensor.tensor_type], tuple(int(side) for side in reversed(tensor.shape)))
        if tensor.tensor_type in wide
        else Header(torch.uint8, (int(tensor.n_bytes),))
        for tensor in tensors
    }


_WIDE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
