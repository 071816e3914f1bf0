"""The formats of quantized weights: codes and scales in memory, names in files."""

import json
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..json_text import parse_json
from ..libraries import start

FORMAT_KEY = "comfy_quant"  # the tensor beside a quantized weight that names its format; the quant_method in a config.json
STORED_SUFFIXES = ("weight", "weight_scale", FORMAT_KEY)
"""A file holds a quantized weight as three tensors, LAYER.SUFFIX: the codes, their scales, and the format as JSON."""
NF4_BLOCK = 64  # weights of a row that share a scale, as in bitsandbytes


class Header(NamedTuple):
    """A stored tensor without its content. packed_bytes: of one that another library packed, else 0."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    packed_bytes: int = 0

    def __str__(self) -> str:
        return f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}"

    @property
    def bytes(self) -> int:
        return self.packed_bytes or self.dtype.itemsize * torch.Size(self.shape).numel()


class Format(NamedTuple):
    """How a weight [rows, columns] is quantized.

    layout: comfy-kitchen's name of the format. options: what comfy-kitchen quantizes with. stored: ComfyUI's name of the format
    in files. codes: the dtype of the codes; `packed` weights share a code. scale: the shape of the float32 scales of
    [rows, columns]. column_multiple: the number of columns must be a multiple of this. working, working_on_cpu: bytes per weight
    that a product in bfloat16 needs beside the weight: on CUDA as counted (tests/test_counts.py), on the CPU as measured
    (tests/test_quantization.py).
    """

    layout: str
    options: Mapping[str, Any]
    stored: str
    codes: torch.dtype
    packed: int
    scale: Callable[[int, int], tuple[int, ...]]
    column_multiple: int
    working: int
    working_on_cpu: int

    @property
    def widening(self) -> float:
        """Bytes that a product of many rows moves for a weight, over those of a product of a few rows (`compiled.FEW_ROWS`): what
        it widens is written and read once more."""
        stored = self.codes.itemsize / self.packed
        return (stored + 2 * self.working) / stored


FORMATS = {
    "int8": Format(
        layout="TensorWiseINT8Layout",
        options={"per_channel": True},
        stored="int8_tensorwise",
        codes=torch.int8,
        packed=1,
        scale=lambda rows, columns: (rows, 1),
        column_multiple=1,
        working=0,
        working_on_cpu=1,
    ),
    "fp8": Format(
        layout="TensorCoreFP8Layout",
        options={"scale": "recalculate"},
        stored="float8_e4m3fn",
        codes=torch.float8_e4m3fn,
        packed=1,
        scale=lambda rows, columns: (),
        column_multiple=1,
        working=2,
        working_on_cpu=4,
    ),
    "nf4": Format(
        layout="GlmImageNF4Layout",
        options={},
        stored="nf4",
        codes=torch.uint8,
        packed=2,
        scale=lambda rows, columns: (rows, columns // NF4_BLOCK),
        column_multiple=NF4_BLOCK,
        working=2,
        working_on_cpu=3,
    ),
}
CHOICES = ("none", *FORMATS)


def check_format(quantization: str, device: torch.device) -> None:
    """Raise ValueError for a device that cannot compute with a format, ImportError where comfy-kitchen is missing."""
    if quantization not in CHOICES:
        raise ValueError(f"quantization {quantization!r} is not one of {', '.join(CHOICES)}")
    if quantization == "none":
        return
    if device.type == "mps" and quantization != "nf4":
        raise ValueError(f"quantization {quantization} cannot be used on Apple's GPU; choose nf4")
    if quantization == "int8" and device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < (7, 5):
            raise ValueError(f"int8 needs a card of compute capability 7.5 or newer, not {capability}; choose fp8 or nf4")
    check_installed()


def check_installed() -> None:
    """Raise ImportError, with what to install, where comfy-kitchen is missing or too old."""
    comfy_kitchen_tensor()


def comfy_kitchen_tensor() -> ModuleType:
    """The module comfy_kitchen.tensor with the layouts of all FORMATS registered. Only this function imports it.

    Raises ImportError, with what to install, where comfy-kitchen is missing or too old.
    """
    try:
        tensor = start("comfy_kitchen.tensor")
    except ImportError as error:
        raise ImportError(f"quantized weights need comfy-kitchen: {error}") from error
    if not hasattr(tensor, "TensorWiseINT8Layout"):
        raise ImportError("quantized weights need a newer comfy-kitchen: pip install -U comfy-kitchen")
    from . import nf4  # noqa: F401, registers its layout

    return tensor


def inner_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The codes and scales of a quantized tensor; a plain tensor is its only inner tensor."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def map_inner_tensors(function: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same kind from the results of a function, such as a copy to a device, on each inner tensor."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return function(tensor.detach())
    names, context = tensor.__tensor_flatten__()
    mapped = {name: function(getattr(tensor, name)) for name in names}
    return type(tensor.data).__tensor_unflatten__(mapped, context, tensor.shape, tensor.stride())


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether a device can copy a tensor from CPU memory by itself."""
    return all(inner.is_pinned() for inner in inner_tensors(tensor))


def dequantized(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a quantized tensor as a plain one; a plain tensor as it is."""
    return tensor.dequantize() if hasattr(tensor, "__tensor_flatten__") else tensor


def stored_tensors(layer: str, weight: torch.Tensor, quantization: str) -> dict[str, torch.Tensor]:
    """The tensors that a file holds for a layer's quantized weight, by name."""
    return weight.state_dict(f"{layer}.weight") | {f"{layer}.{FORMAT_KEY}": mark_tensor(Mark(quantization))}


def stored_headers(layer: str, shape: tuple[int, ...], quantization: str) -> dict[str, Header]:
    """The headers of `stored_tensors` for a weight [rows, columns], by name."""
    form, (rows, columns), format_tensor = FORMATS[quantization], shape, mark_tensor(Mark(quantization))
    headers = (
        Header(form.codes, (rows, columns // form.packed)),
        Header(torch.float32, form.scale(rows, columns)),
        Header(format_tensor.dtype, tuple(format_tensor.shape)),
    )
    return {f"{layer}.{suffix}": header for suffix, header in zip(STORED_SUFFIXES, headers, strict=True)}


class NotUnderstood(ValueError):
    """What a file says of its weights and this pack does not know: nothing is wrong with the file."""


class Mark(NamedTuple):
    """What stands beside a stored quantized weight. options: fields of comfy-kitchen's layout parameters, such as a rotation."""

    quantization: str
    options: Mapping[str, Any] = {}


def mark_tensor(mark: Mark) -> torch.Tensor:
    """The FORMAT_KEY tensor that says a mark: ComfyUI's name of the format, and options, as the bytes of a JSON object, uint8."""
    return torch.tensor(
        list(json.dumps({"format": FORMATS[mark.quantization].stored, **mark.options}).encode()), dtype=torch.uint8
    )


def read_mark(format_tensor: torch.Tensor) -> Mark:
    """What a stored FORMAT_KEY tensor says, a JSON object. Raises NotUnderstood as `mark_of` does."""
    try:
        said = parse_json(bytes(format_tensor.tolist()))
    except (TypeError, ValueError) as error:  # numbers that are no bytes, bytes that are no JSON
        raise NotUnderstood(f"a quantized weight's format cannot be read ({error})") from error
    return mark_of(said)


def mark_of(said: Any) -> Mark:
    """A mark from its entries, of which ComfyUI puts some below `params`.

    Raises NotUnderstood for a format that is not in FORMATS, and for any entry that is not understood: who leaves one out, such
    as a rotation of the weights, computes something else.
    """
    try:
        entries = {key: value for key, value in said.items() if key != "params"} | said.get("params", {})
    except (AttributeError, TypeError) as error:
        raise NotUnderstood(f"a quantized weight's format cannot be read ({error})") from error
    stored = entries.pop("format", None)
    quantization = next((name for name, known in FORMATS.items() if known.stored == stored), None)
    if quantization is None:
        known = ", ".join(form.stored for form in FORMATS.values())
        raise NotUnderstood(f"a weight is quantized as {stored!r}, which is not one of {known}")
    in_full = entries.pop("full_precision_matrix_mult", False)
    if in_full and quantization == "int8":
        raise NotUnderstood(
            "a weight is to be multiplied in full precision, and int8 weights are not; quantize the original again"
        )
    rotated, group = entries.pop("convrot", False), entries.pop("convrot_groupsize", 256)
    if entries:
        raise NotUnderstood(f"a weight is quantized with {', '.join(map(repr, entries))}, which this pack does not understand")
    if not rotated:
        return Mark(quantization)
    if quantization != "int8" or type(group) is not int or group < 1:
        raise NotUnderstood(f"a weight is quantized as {stored!r} and rotated in groups of {group!r}, which is not understood")
    return Mark(quantization, {"convrot": True, "convrot_groupsize": group})
