"""Keys and values of reference images: written by one pass of the DiT, read by others.

The DiT's attention takes one object a layer: one whose `mode` is "write" is given the layer's keys and values, one whose mode
is "read" joins its own to them. No such object at all is the mode "skip".
"""

from collections.abc import Sequence

import torch

LayerKeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, each [1, tokens, heads, head width]."""


class LayerKVCache:
    """Keys and values of all references for one layer, in the order of the references.

    Tensors that are not on the device are copied there each time they are read, which costs time and saves their memory.
    """

    mode = "read"

    def __init__(self, references: Sequence[LayerKeysValues]):
        self.references = references

    def get(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Join the references' keys and values to a picture's own, [B, tokens, heads, head width], along the tokens."""
        return tuple(
            torch.cat([*(one.to(own.device, non_blocking=True).expand(len(own), -1, -1, -1) for one in cached), own], dim=1)
            for cached, own in zip(zip(*self.references, strict=True), (keys, values), strict=True)
        )

    def on(self, device: torch.device) -> "LayerKVCache":
        return LayerKVCache([(keys.to(device), values.to(device)) for keys, values in self.references])


class LayerKVWriter:
    """Copies a reference's keys and values of one layer to the CPU at once, so that no two layers' are on the device."""

    mode = "write"

    def store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys_values: LayerKeysValues = _on_cpu(keys), _on_cpu(values)


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Pinned where it comes from a GPU, which can then read it without the CPU's help."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)
