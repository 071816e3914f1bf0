"""Give a model the weights of safetensors files: quantized on the way, or as they are stored."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..weights.formats import map_inner_tensors
from ..weights.linear import assemble_weight, quantizable, quantize_weight, set_quantized_weight
from .header import read_header

CPU = torch.device("cpu")


def fill(
    model: torch.nn.Module,
    files: Iterable[Path],
    *,
    dtype: torch.dtype,
    quantization: str = "none",
    device: torch.device = CPU,
    names: Mapping[str, str] | None = None,
) -> None:
    """Give a model on the meta device the weights of files. At most one tensor is in memory beside the model.

    dtype: of the weights that are not quantized. quantization: the format for layers that are stored at full width; layers
    that are stored quantized stay so. device: the one that quantizes, if it has room; the weights come back to the CPU. names:
    from names in the model to names in the files, where they differ. Tensors that the model does not know are left out.

    Raises ValueError where the files lack a parameter of the model, ImportError where comfy-kitchen is needed and missing.
    """
    layers = quantizable(model, quantization)
    expected = set(model.state_dict())
    for file in files:
        header = read_header(file)
        quantized = {form: quantizable(model, form) for form in set(header.formats.values())}
        file_keys = {key: key for key in header.tensors} if names is None else names
        for key in sorted(file_keys.keys() & expected):
            layer_name, _, kind = key.rpartition(".")
            layer, file_key = model.get_submodule(layer_name), file_keys[key]
            tensor = read_tensor(file, header.stored_as[file_key])
            mark = header.marks.get(file_key.removesuffix(".weight")) if kind == "weight" else None
            if mark is not None:
                scale = read_tensor(file, header.stored_as[f"{file_key}_scale"])
                weight = assemble_weight(layer, tensor, scale, mark=mark, dtype=dtype)
                if layer_name in quantized[mark.quantization]:
                    set_quantized_weight(layer, weight)
                else:  # a layer that is computed at full width
                    layer.weight = torch.nn.Parameter(weight.dequantize(), requires_grad=False)
                continue
            if kind == "weight" and layer_name in layers:  # from the precision it is stored in
                set_quantized_weight(layer, _quantized_on(device, tensor, quantization).to(dtype))
                continue
            tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if kind in layer._buffers:
                layer._buffers[kind] = tensor
            else:
                layer._parameters[kind] = torch.nn.Parameter(tensor, requires_grad=False)
    if missing := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise ValueError(f"{len(missing)} tensors are not found by their names, such as {missing[0]}; choose quantization none")


def _quantized_on(device: torch.device, tensor: torch.Tensor, quantization: str) -> torch.Tensor:
    """A weight that a CUDA device quantized, on the CPU. Elsewhere, and where others leave it no room, the CPU quantizes."""
    if device.type != "cuda":
        return quantize_weight(tensor, quantization)
    try:
        with torch.cuda.device(device):  # comfy-kitchen's kernels go by the current one
            weight = quantize_weight(tensor.to(device), quantization)
    except torch.OutOfMemoryError:
        return quantize_weight(tensor, quantization)
    return map_inner_tensors(torch.Tensor.cpu, weight)


def read_tensor(file: Path, key: str) -> torch.Tensor:
    """One tensor of a safetensors file. An open file keeps in memory what was read from it, so it is opened for each tensor."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(key)
