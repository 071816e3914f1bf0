"""Writes the components of a checkpoint folder as single files."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def write_file(
    component: Path, file: Path, prefix: str = "", dtype: torch.dtype = torch.float32, config: bool = True, **changes
) -> Path:
    """Write the weights in a component's folder as one file, with its config in the metadata.

    `prefix` goes before every name; the one that ends with "-model." is put in place of the AR model's own `model.`. changes
    maps names to tensors that stand in for others, or to None for those to leave out.
    """
    tensors = load_file(next(component.glob("*.safetensors"))) | changes
    if prefix.endswith("-model."):
        prefix = prefix.removesuffix("-model.")
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    stored = {prefix + name: tensor.to(dtype) for name, tensor in tensors.items() if tensor is not None}
    metadata = {"config": (component / "config.json").read_text()} if config else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(stored, file, metadata={"format": "pt"} | metadata)
    return file
