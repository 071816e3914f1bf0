"""The headers of safetensors and GGUF files: names, shapes and formats, no weights."""

from pathlib import Path
from typing import NamedTuple

import torch

from ..weights.external import LIBRARY_MODULES, check_library
from ..weights.formats import FORMAT_KEY, Header, read_mark
from .folders import read_json

# A dtype that is not here is read as bytes.
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "U8": torch.uint8,
}
GGUF_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # GGUF's types that are not quantized


class FileHeader(NamedTuple):
    """A safetensors file without its weights. formats: the quantization of each quantized layer, by the layer's name."""

    tensors: dict[str, Header]
    formats: dict[str, str]
    metadata: dict[str, str]


def read_header(file: Path) -> FileHeader:
    """The header of a safetensors file. Raises ValueError for a file that is truncated or no safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118, not a dict
            headers = {
                key: Header(SAFETENSORS_DTYPES.get(piece.get_dtype(), torch.uint8), tuple(piece.get_shape()))
                for key, piece in slices.items()
            }
            layers = [key.removesuffix(f".{FORMAT_KEY}") for key in headers if key.endswith(f".{FORMAT_KEY}")]
            formats = {layer: read_mark(opened.get_tensor(f"{layer}.{FORMAT_KEY}")).quantization for layer in layers}
            return FileHeader(headers, formats, opened.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or corrupt ({error}); download it again") from error


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
    dtypes = {gguf.GGMLQuantizationType[name]: dtype for name, dtype in GGUF_DTYPES.items()}
    return {
        tensor.name: Header(dtypes[tensor.tensor_type], tuple(int(side) for side in reversed(tensor.shape)))
        if tensor.tensor_type in dtypes
        else Header(torch.uint8, (int(tensor.n_bytes),))
        for tensor in tensors
    }


def quant_method(folder: Path) -> str | None:
    """The library that quantized a component, or None. Raises ValueError for a library that is not known here."""
    if gguf_file(folder):
        return "gguf"
    try:
        config = read_json(folder / "config.json").get("quantization_config")
    except (OSError, ValueError):
        return None  # whoever reads the config reports that it is missing or damaged
    method = config.get("quant_method", FORMAT_KEY) if isinstance(config, dict) else FORMAT_KEY
    if method != FORMAT_KEY and method not in LIBRARY_MODULES:
        known = ", ".join(LIBRARY_MODULES)
        raise ValueError(f"{folder} is quantized by {method!r}, which is unknown here; known are {known} and `python . quantize`")
    return None if method == FORMAT_KEY else method
