"""The headers of safetensors and GGUF files: names, shapes and formats, no weights."""

from pathlib import Path
from typing import NamedTuple

import torch

from ..weights.external import MODULES, check_library
from ..weights.formats import MARK, Header, read_format
from .folders import read_json


class FileHeader(NamedTuple):
    """What a safetensors file says: its tensors by name, the quantization of each layer that is quantized, and its metadata."""

    tensors: dict[str, Header]
    marks: dict[str, str]
    metadata: dict[str, str]


def read_header(file: Path) -> FileHeader:
    """Raises ValueError for a file that is truncated or no safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            pieces = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118, not a dict
            headers = {
                key: Header(_SAFETENSORS_DTYPES.get(piece.get_dtype(), torch.uint8), tuple(piece.get_shape()))
                for key, piece in pieces.items()
            }
            layers = [key.removesuffix(f".{MARK}") for key in headers if key.endswith(f".{MARK}")]
            marks = {layer: read_format(tensors.get_tensor(f"{layer}.{MARK}")) for layer in layers}
            return FileHeader(headers, marks, tensors.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or corrupt ({error}); download it again") from error


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "U8": torch.uint8,
}


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
