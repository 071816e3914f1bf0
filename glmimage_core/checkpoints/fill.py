"""Give a model the weights of safetensors files, quantized as they come or as they are stored."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..weights.formats import MARK, PARTS, check_installed, read_format
from ..weights.linear import _from_parts, _give, quantizable, quantize_weight


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
                _give(layer, _from_parts(layer, tensor, scale, read_format(mark), dtype))
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
