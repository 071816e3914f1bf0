"""Weights in fewer bits: which layers, in which formats, and a linear layer that computes with them.

    int8   8 bits, a scale for each row; the products are of int8 too, with a scale for each row of the input
    fp8    float8_e4m3fn, one scale for the whole weight; brought back to full width for each product
    nf4    4 bits, a scale for each 64 weights (nf4.py); brought back likewise

The weight of a quantized layer is a QuantizedTensor of comfy-kitchen, which ComfyUI's memory manager moves, streams and
patches. In files it takes ComfyUI's names: `weight`, `weight_scale`, and `comfy_quant`, the format as JSON.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Attention and feed-forward of every layer. Embeddings, head, norms with their AdaLN inputs, and projections stay as they are.
QUANTIZED_LAYERS = re.compile(r"model\.language_model\.layers\.\d+\..*|transformer_blocks\.\d+\.(attn1|ff)\..*")
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

        from . import nf4  # noqa: F401, registers its layout
    except ImportError as error:
        raise ImportError(f"quantized weights need comfy-kitchen ({error}): pip install -U comfy-kitchen") from error


class QuantizedLinear(torch.nn.Linear):
    """A linear layer whose weight is a QuantizedTensor. It computes in the precision of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.numel():  # the text of a reference has no tokens, which comfy-kitchen's int8 does not take
            return x.new_empty(*x.shape[:-1], self.out_features)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return torch.nn.functional.linear(x, self.weight.to(x.dtype), bias)

    def requantized(self, weight: torch.Tensor, rounding_seed: int = 0) -> torch.Tensor:
        """Another weight in this layer's format. With a seed, rounding is random where the format can."""
        quantized = self.weight.requantize_from_float(weight, scale="recalculate", stochastic_rounding=rounding_seed)
        return quantized.to(self.weight.dtype)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """The parts of the weight, which is how files and ComfyUI's size of a model want it."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}weight"]
        destination.update(self.weight.state_dict(f"{prefix}weight"))

    def _apply(self, fn, recurse=True):
        """What `to` does, with new parameters: PyTorch would move the outside of a QuantizedTensor only."""
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = torch.nn.Parameter(fn(parameter), requires_grad=False)
        return self


def quantizable(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The layers of a model that are quantized, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and QUANTIZED_LAYERS.fullmatch(name)
    }


def quantize(model: torch.nn.Module, quantization: str) -> torch.nn.Module:
    """Quantize a model in place, layer by layer, so that there is never a second copy of it. Returns the model."""
    check_installed()
    for layer in quantizable(model).values():
        _give(layer, quantize_weight(layer.weight.detach(), quantization))
    return model


def quantize_weight(weight: torch.Tensor, quantization: str) -> torch.Tensor:
    """A weight [N, K] as a QuantizedTensor of the same shape and dtype."""
    from comfy_kitchen.tensor import QuantizedTensor

    return QuantizedTensor.from_float(weight.contiguous(), FORMATS[quantization].layout, **FORMATS[quantization].options)


def _give(layer: torch.nn.Linear, weight: torch.Tensor) -> None:
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.__class__ = QuantizedLinear


def quantization_of(model: torch.nn.Module) -> str:
    """The format of a model's quantized layers, or none."""
    layouts = {FORMATS[name].layout: name for name in FORMATS}
    found = (layouts[layer.weight._layout_cls] for layer in model.modules() if isinstance(layer, QuantizedLinear))
    return next(found, "none")


def sizes_when(model: torch.nn.Module, quantization: str, itemsize: int) -> dict[str, int]:
    """Bytes that each parameter of a model would take, by name; itemsize is that of what is not quantized.

    The model may be on the meta device.
    """
    sizes = {name: parameter.numel() * itemsize for name, parameter in model.named_parameters()}
    for name, layer in quantizable(model).items() if quantization != "none" else ():
        headers = stored_headers(name, tuple(layer.weight.shape), quantization)
        sizes[f"{name}.weight"] = sum(header.bytes for part, header in headers.items() if not part.endswith(MARK))
    return sizes


def product_bytes(model: torch.nn.Module, quantization: str) -> int:
    """Bytes that the product with the widest quantized weight of a model needs beside it."""
    if quantization == "none":
        return 0
    return FORMATS[quantization].working * max(layer.weight.numel() for layer in quantizable(model).values())


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a tensor consists of: codes and scale of a quantized one, else itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def rebuilt(tensor: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A tensor with each of its parts changed, such as copied to another place."""
    if len(parts_of(tensor)) == 1:
        return change(tensor.detach())
    names, context = tensor.__tensor_flatten__()
    parts = {name: change(getattr(tensor, name)) for name in names}
    return type(tensor.data).__tensor_unflatten__(parts, context, tensor.shape, tensor.stride())


def dequantized(tensor: torch.Tensor) -> torch.Tensor:
    """A quantized tensor at full width, another one as it is."""
    return tensor.dequantize() if len(parts_of(tensor)) > 1 else tensor


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


def read_mark(mark: torch.Tensor) -> str:
    """The format that a mark names. Raises ValueError for one that is not ours."""
    try:
        stored = json.loads(bytes(mark.tolist())).get("format")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"a quantized weight's format cannot be read ({error})") from error
    for name, known in FORMATS.items():
        if known.stored == stored:
            return name
    raise ValueError(f"a weight is quantized as {stored!r}, which is not one of {', '.join(f.stored for f in FORMATS.values())}")


def fill(
    model: torch.nn.Module,
    files: Iterable[Path],
    dtype: torch.dtype,
    quantization: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Give a model without weights those of files, quantized as they come or as they are stored.

    names: of the tensors in the files, by their names in the model, where they differ. No more than one tensor is in memory
    beside the model. What the model does not know is left out.
    """
    from safetensors import safe_open

    check_installed()
    chosen = {} if quantization == "none" else quantizable(model)
    expected = set(model.state_dict())
    for file in files:
        with safe_open(file, framework="pt") as opened:
            keys = {key: key for key in opened.keys()} if names is None else names  # noqa: SIM118, not a dict
        for key in sorted(keys.keys() & expected):
            name, _, kind = key.rpartition(".")
            layer, tensor = model.get_submodule(name), read_tensor(file, keys[key])
            if kind == "weight" and f"{name}.{MARK}" in keys:
                scale, mark = (read_tensor(file, keys[f"{name}.{part}"]) for part in PARTS[1:])
                _give(layer, _from_parts(layer, tensor, scale, read_mark(mark), dtype))
                continue
            if kind == "weight" and name in chosen:  # from the precision it is stored in
                _give(layer, quantize_weight(tensor, quantization).to(dtype))
                continue
            tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if kind in layer._buffers:
                layer._buffers[kind] = tensor
            else:
                layer._parameters[kind] = torch.nn.Parameter(tensor, requires_grad=False)
    if missing := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise ValueError(f"{len(missing)} tensors are not found by their names, such as {missing[0]}; choose quantization none")


def read_tensor(file: Path, key: str) -> torch.Tensor:
    """One tensor of a safetensors file, which is opened for it alone: what an open file was asked for stays in memory."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(key)


def _from_parts(
    layer: torch.nn.Linear, codes: torch.Tensor, scale: torch.Tensor, quantization: str, dtype: torch.dtype
) -> torch.Tensor:
    from comfy_kitchen.tensor import QuantizedTensor, get_layout_class

    layout = FORMATS[quantization].layout
    shape = (layer.out_features, layer.in_features)
    return QuantizedTensor(codes, layout, get_layout_class(layout).Params(scale=scale, orig_dtype=dtype, orig_shape=shape))
