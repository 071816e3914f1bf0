"""A linear layer that computes with quantized weights, and the layers of a model that become one."""

import re
from dataclasses import fields

import torch

from .compiled import product
from .formats import FORMAT_KEY, FORMATS, Mark, comfy_kitchen_tensor, mark_tensor, stored_headers

# Attention and feed-forward of every layer, by transformers' names in a language model and diffusers' names in a transformer.
# Embeddings, the head, norms with their AdaLN inputs, and projections stay as they are.
QUANTIZED_LAYERS = re.compile(r"model\.language_model\.layers\.\d+\..*|transformer_blocks\.\d+\.(attn1|ff)\..*")


class QuantizedLinear(torch.nn.Linear):
    """A linear layer whose weight is a QuantizedTensor. It computes in the precision of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.numel():  # a reference's empty text: comfy-kitchen's int8 refuses an input without rows
            return x.new_empty(*x.shape[:-1], self.out_features)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return product(x, self.weight, bias)

    def requantized(self, weight: torch.Tensor, rounding_seed: int = 0) -> torch.Tensor:
        """Another weight in this layer's format. A seed above 0 rounds at random in formats that can."""
        quantized = self.weight.requantize_from_float(weight, scale="recalculate", stochastic_rounding=rounding_seed)
        return quantized.to(self.weight.dtype)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """Put codes and scales in place of the weight, as files have them and as ComfyUI counts a model's bytes."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}weight"]
        destination.update(self.weight.state_dict(f"{prefix}weight"))

    def _apply(self, fn, recurse=True):
        """What `to` does, with new parameters: PyTorch would move the outside of a QuantizedTensor only."""
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = torch.nn.Parameter(fn(parameter), requires_grad=False)
        return self


def quantizable(model: torch.nn.Module, quantization: str) -> dict[str, torch.nn.Linear]:
    """The layers of a model that a format quantizes, by name; `none` quantizes no layer.

    A layer whose columns the format cannot divide into its blocks stays as it is.
    """
    if quantization == "none":
        return {}
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and QUANTIZED_LAYERS.fullmatch(name)
        and layer.in_features % FORMATS[quantization].column_multiple == 0
    }


def quantize(model: torch.nn.Module, quantization: str) -> torch.nn.Module:
    """Quantize a model in place and return it. Layer by layer, so that memory never holds a second copy.

    Raises ImportError, with what to install, where comfy-kitchen is missing.
    """
    for layer in quantizable(model, quantization).values():
        set_quantized_weight(layer, quantize_weight(layer.weight.detach(), quantization))
    return model


def quantize_weight(weight: torch.Tensor, quantization: str) -> torch.Tensor:
    """A weight [rows, columns] as a QuantizedTensor of the same shape and dtype."""
    form, kitchen = FORMATS[quantization], comfy_kitchen_tensor()
    return kitchen.QuantizedTensor.from_float(weight.contiguous(), form.layout, **form.options)


def assemble_weight(
    layer: torch.nn.Linear, codes: torch.Tensor, scale: torch.Tensor, *, mark: Mark, dtype: torch.dtype
) -> torch.Tensor:
    """A layer's weight as a QuantizedTensor of its stored codes and scales. dtype: of the dequantized weight.

    Raises ImportError where comfy-kitchen is too old for what the mark says, ValueError where that does not fit the layer.
    """
    form, kitchen = FORMATS[mark.quantization], comfy_kitchen_tensor()
    parameters = kitchen.get_layout_class(form.layout).Params
    if missing := mark.options.keys() - {field.name for field in fields(parameters)}:
        raise ImportError(f"weights with {', '.join(sorted(missing))} need a newer comfy-kitchen: pip install -U comfy-kitchen")
    group = mark.options.get("convrot_groupsize", 1)
    if layer.in_features % group:
        raise ValueError(f"a weight of {layer.in_features} columns cannot have been rotated in groups of {group}")
    shape = (layer.out_features, layer.in_features)
    scale = scale.reshape(form.scale(*shape) if scale.numel() > 1 else ())
    scale = scale.expand(form.scale(*shape)).contiguous()  # one for all rows may stand for each of them
    params = parameters(scale=scale, orig_dtype=dtype, orig_shape=shape, **mark.options)
    return kitchen.QuantizedTensor(codes, form.layout, params)


def set_quantized_weight(layer: torch.nn.Linear, weight: torch.Tensor) -> None:
    """Give a layer a QuantizedTensor as its weight, which makes it a QuantizedLinear."""
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.__class__ = QuantizedLinear


def quantization_of(model: torch.nn.Module) -> str:
    """The format of a model's quantized layers, or none."""
    return next((mark.quantization for mark in marks(model).values()), "none")


def marks(model: torch.nn.Module) -> dict[str, Mark]:
    """What stands beside the weight of each quantized layer of a model in a file, by the layer's name."""
    formats = {form.layout: name for name, form in FORMATS.items()}
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            params = layer.weight.params
            rotated = getattr(params, "convrot", False)
            options = {"convrot": True, "convrot_groupsize": params.convrot_groupsize} if rotated else {}
            found[name] = Mark(formats[layer.weight._layout_cls], options)
    return found


def mark_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a file must hold beside a model's state dict so that its quantized weights are understood, by name."""
    return {f"{layer}.{FORMAT_KEY}": mark_tensor(mark) for layer, mark in marks(model).items()}


def parameter_bytes(model: torch.nn.Module, quantization: str, itemsize: int) -> dict[str, int]:
    """Bytes of each parameter of a model if it were quantized, by name. The model may be on the meta device.

    itemsize: bytes of each number that is not quantized.
    """
    sizes = {name: parameter.numel() * itemsize for name, parameter in model.named_parameters()}
    for name, layer in quantizable(model, quantization).items():
        headers = stored_headers(name, tuple(layer.weight.shape), quantization)
        sizes[f"{name}.weight"] = sum(header.bytes for key, header in headers.items() if not key.endswith(FORMAT_KEY))
    return sizes


def product_bytes(model: torch.nn.Module, quantization: str, *, on_cpu: bool = False) -> int:
    """Bytes that the product with the widest quantized weight of a model needs beside the weight."""
    widest = max((layer.weight.numel() for layer in quantizable(model, quantization).values()), default=0)
    form = FORMATS.get(quantization)
    return 0 if form is None else widest * (form.working_on_cpu if on_cpu else form.working)
