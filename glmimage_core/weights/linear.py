"""A linear layer that computes with quantized weights, and which layers of a model become one."""

import re

import torch

from .formats import FORMATS, MARK, check_installed, stored_headers

# Attention and feed-forward of every layer. Embeddings, head, norms with their AdaLN inputs, and projections stay as they are.
QUANTIZED_LAYERS = re.compile(r"model\.language_model\.layers\.\d+\..*|transformer_blocks\.\d+\.(attn1|ff)\..*")


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


def _from_parts(
    layer: torch.nn.Linear, codes: torch.Tensor, scale: torch.Tensor, quantization: str, dtype: torch.dtype
) -> torch.Tensor:
    from comfy_kitchen.tensor import QuantizedTensor, get_layout_class

    layout = FORMATS[quantization].layout
    shape = (layer.out_features, layer.in_features)
    return QuantizedTensor(codes, layout, get_layout_class(layout).Params(scale=scale, orig_dtype=dtype, orig_shape=shape))


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
