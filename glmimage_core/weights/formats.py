"""The formats of quantized weights: codes, scales, names in files."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

MARK = "comfy_quant"  # beside a quantized weight in a file, and the quant_method in its component's config
PARTS = ("weight", "weight_scale", MARK)


class Header(NamedTuple):
    """A stored tensor without its content."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}"

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Format(NamedTuple):
    """How a weight [rows, columns] is quantized.

    layout: comfy-kitchen's name of it, and options it is quantized with. stored: ComfyUI's name of it in files. codes: their
    dtype, with `packed` weights in each. working: bytes a weight that a product needs beside them, as measured on the CPU.
    scale: the shape of the float32 scales of [rows, columns].
    """

    layout: str
    options: Mapping[str, Any]
    stored: str
    codes: torch.dtype
    packed: int
    working: int
    scale: Callable[[int, int], tuple[int, ...]]


FORMATS = {
    "int8": Format(
        "TensorWiseINT8Layout", {"per_channel": True}, "int8_tensorwise", torch.int8, 1, 1, lambda rows, columns: (rows, 1)
    ),
    "fp8": Format(
        "TensorCoreFP8Layout", {"scale": "recalculate"}, "float8_e4m3fn", torch.float8_e4m3fn, 1, 4, lambda rows, columns: ()
    ),
    "nf4": Format("GlmImageNF4Layout", {}, "nf4", torch.uint8, 2, 3, lambda rows, columns: (rows, columns // 64)),
}
CHOICES = ("none", *FORMATS)


def check_format(quantization: str, device: torch.device) -> None:
    """Raise where weights of that format cannot be computed with: ValueError for a device, ImportError for an installation."""
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
    try:
        from comfy_kitchen.tensor import TensorWiseINT8Layout  # noqa: F401

        from ..weights import nf4  # noqa: F401, registers its layout
    except ImportError as error:
        raise ImportError(f"quantized weights need comfy-kitchen ({error}): pip install -U comfy-kitchen") from error


def inner_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a tensor consists of: codes and scale of a quantized one, else itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def rebuilt(tensor: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A tensor with each of its parts changed, such as copied to another place."""
    if len(inner_tensors(tensor)) == 1:
        return change(tensor.detach())
    names, context = tensor.__tensor_flatten__()
    parts = {name: change(getattr(tensor, name)) for name in names}
    return type(tensor.data).__tensor_unflatten__(parts, context, tensor.shape, tensor.stride())


def dequantized(tensor: torch.Tensor) -> torch.Tensor:
    """A quantized tensor at full width, another one as it is."""
    return tensor.dequantize() if len(inner_tensors(tensor)) > 1 else tensor


def stored_parts(layer: str, weight: torch.Tensor, quantization: str) -> dict[str, torch.Tensor]:
    """The tensors of a quantized weight as they are stored, by name. `stored_headers` gives their headers without it."""
    return weight.state_dict(f"{layer}.weight") | {f"{layer}.{MARK}": _mark(quantization)}


def stored_headers(layer: str, shape: tuple[int, ...], quantization: str) -> dict[str, Header]:
    """The headers of a weight [rows, columns] as it is stored in that format, by name."""
    form, (rows, columns), mark = FORMATS[quantization], shape, _mark(quantization)
    codes, scale = Header(form.codes, (rows, columns // form.packed)), Header(torch.float32, form.scale(rows, columns))
    return dict(zip((f"{layer}.{part}" for part in PARTS), (codes, scale, Header(mark.dtype, tuple(mark.shape))), strict=True))


def _mark(quantization: str) -> torch.Tensor:
    return torch.tensor(list(json.dumps({"format": FORMATS[quantization].stored}).encode()), dtype=torch.uint8)


def read_format(mark: torch.Tensor) -> str:
    """The format that a mark names. Raises ValueError for one that is not ours."""
    try:
        stored = json.loads(bytes(mark.tolist())).get("format")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"a quantized weight's format cannot be read ({error})") from error
    for name, known in FORMATS.items():
        if known.stored == stored:
            return name
    raise ValueError(f"a weight is quantized as {stored!r}, which is not one of {', '.join(f.stored for f in FORMATS.values())}")
