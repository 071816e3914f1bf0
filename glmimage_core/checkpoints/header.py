"""The headers of safetensors and GGUF files: names, shapes and formats, no weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..json_text import parse_json
from ..weights.external import LIBRARY_MODULES, check_library
from ..weights.formats import FORMAT_KEY, Header, Mark, NotUnderstood, mark_of, read_mark
from ..weights.unreadable import unreadable
from .folders import read_json

CONFIG_TENSOR = "config_json"
"""A model's config as a tensor of bytes beside its weights: ComfyUI lets a model add tensors to its file, and no metadata."""
MOST_CONFIG_BYTES = 2**20
LAYERS_KEY = "_quantization_metadata"  # in a file's metadata: the format of each layer, as ComfyUI documents it
# Others, of which torch has no numbers or a weight has no use, are refused by name.
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
GGUF_MAGIC, CONFIG_KEY = b"GGUF", "config"
GGUF_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # GGUF's types that are not quantized


class FileHeader(NamedTuple):
    """A safetensors file without its weights.

    tensors: by the names that this pack writes. stored_as: the names in the file, by these. marks: of the quantized layers, by
    the layer's name. configs: what each CONFIG_TENSOR holds, by what stands before its name.
    """

    tensors: dict[str, Header]
    stored_as: dict[str, str]
    marks: dict[str, Mark]
    metadata: dict[str, str]
    configs: Mapping[str, dict] = {}

    @property
    def formats(self) -> dict[str, str]:
        """The quantization of each quantized layer, by the layer's name."""
        return {layer: mark.quantization for layer, mark in self.marks.items()}


def read_header(file: Path) -> FileHeader:
    """The header of a safetensors file, with the configs that it carries as tensors.

    Raises ValueError for a file that is truncated or none and for a broken config, NotUnderstood for another file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118, not a dict
            if unknown := {
                key: piece.get_dtype() for key, piece in slices.items() if piece.get_dtype() not in SAFETENSORS_DTYPES
            }:
                key = min(unknown)
                raise NotUnderstood(f"{file} has {key} as {unknown[key]}, which is not understood")
            headers = {
                key: Header(SAFETENSORS_DTYPES[piece.get_dtype()], tuple(piece.get_shape())) for key, piece in slices.items()
            }
            metadata = opened.metadata() or {}
            carried = [key for key in headers if key.rpartition(".")[2] == CONFIG_TENSOR]
            if long := [key for key in carried if headers.pop(key).bytes > MOST_CONFIG_BYTES]:
                raise ValueError(f"{long[0]} in {file} is too long to be a config; save the model again")
            configs = {key.removesuffix(CONFIG_TENSOR): _config_in(file, key, opened.get_tensor(key)) for key in carried}
            layers = [key.removesuffix(f".{FORMAT_KEY}") for key in headers if key.endswith(f".{FORMAT_KEY}")]
            marks = {layer: _mark_at(file, layer, opened.get_tensor(f"{layer}.{FORMAT_KEY}")) for layer in layers}
    except SafetensorError as error:
        raise unreadable(file, error) from error
    marks = _marks_by_name(headers) | _marks_in_metadata(file, metadata) | marks
    stored_as = {name: key for key in headers if (name := _own_name(key, marks))}
    return FileHeader({name: headers[key] for name, key in stored_as.items()}, stored_as, marks, metadata, configs=configs)


def tensor_names(file: Path) -> list[str]:
    """The names of the tensors in a safetensors file, whatever else its header says. Raises ValueError as `read_header`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise unreadable(file, error) from error


def config_tensor(config: Mapping[str, Any]) -> torch.Tensor:
    """A config of JSON's values as the content of a CONFIG_TENSOR, uint8."""
    return torch.frombuffer(bytearray(json.dumps(config).encode()), dtype=torch.uint8)


def _config_in(file: Path, key: str, content: torch.Tensor) -> dict:
    try:
        config = parse_json(bytes(content.tolist()))
    except (TypeError, ValueError) as error:  # numbers that are no bytes, bytes that are no JSON
        raise ValueError(f"{key} in {file} is no config ({error}); save the model again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{key} in {file} is no config but {str(config)[:40]!r}; save the model again")
    return config


def _mark_at(file: Path, layer: str, format_tensor: torch.Tensor) -> Mark:
    try:
        return read_mark(format_tensor)
    except NotUnderstood as error:
        raise NotUnderstood(f"{layer} in {file}: {error}") from error


def _marks_in_metadata(file: Path, metadata: dict[str, str]) -> dict[str, Mark]:
    """Of a file whose metadata names the format of each layer."""
    try:
        said = parse_json(metadata.get(LAYERS_KEY, "{}"))
        layers = said.pop("layers", {})
        said.pop("format_version", None)
        marks = {layer: mark_of(entries) for layer, entries in layers.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise NotUnderstood(f"{LAYERS_KEY} in the metadata of {file} is not understood: {error}") from error
    if said:
        raise NotUnderstood(f"{LAYERS_KEY} in the metadata of {file} says {', '.join(map(repr, said))}, which is not understood")
    return marks


def _marks_by_name(headers: dict[str, Header]) -> dict[str, Mark]:
    """Of ComfyUI's older fp8 files: one tensor says that weights are scaled, and each scale has an older name."""
    if not any(key.rpartition(".")[2] == "scaled_fp8" for key in headers):
        return {}
    layers = (key.removesuffix(".scale_weight") for key in headers if key.endswith(".scale_weight"))
    return {layer: Mark("fp8") for layer in layers}


def _own_name(key: str, marks: Mapping[str, Mark]) -> str | None:
    """This pack's name of a tensor; None for one that says nothing of the weights, such as the scale of a layer's inputs."""
    layer, _, suffix = key.rpartition(".")
    if suffix == "scaled_fp8" or (layer in marks and suffix in ("input_scale", "scale_input")):
        return None
    return f"{layer}.weight_scale" if layer in marks and suffix == "scale_weight" else key


def gguf_file(folder: Path) -> Path | None:
    """The GGUF file that holds a component's weights, where there are no safetensors."""
    if any(folder.glob("*.safetensors")):
        return None
    return next(iter(sorted(folder.glob("*.gguf"))), None)


def read_gguf_header(file: Path) -> FileHeader:
    """The header of a GGUF file, by the names in it. A quantized tensor has its shape, and bytes as its dtype.

    Raises ImportError where gguf is missing, ValueError for a file that is truncated, none, or not understood.
    """
    check_library("gguf")
    import gguf

    with file.open("rb") as opened:
        if opened.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise ValueError(f"{file} is no GGUF file")
    try:
        reader = gguf.GGUFReader(file)
        config = reader.get_field(CONFIG_KEY)
        metadata = {} if config is None else {CONFIG_KEY: str(config.contents())}
    except (ValueError, IndexError, KeyError) as error:
        if "is not a valid" in str(error):  # an enumeration's word for a type that this gguf does not have
            raise NotUnderstood(f"{file} is not understood: {error}") from error
        raise ValueError(f"{file} is truncated or corrupt ({error}); download it again") from error
    dtypes = {gguf.GGMLQuantizationType[name]: dtype for name, dtype in GGUF_DTYPES.items()}
    headers = {}
    for tensor in reader.tensors:
        shape = tuple(int(side) for side in reversed(tensor.shape))
        dtype = dtypes.get(tensor.tensor_type)
        headers[tensor.name] = Header(torch.uint8, shape, int(tensor.n_bytes)) if dtype is None else Header(dtype, shape)
    return FileHeader(headers, {name: name for name in headers}, {}, metadata)


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
