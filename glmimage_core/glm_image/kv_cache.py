"""Keys and values of references: written by one pass of the DiT, read by others."""

from collections.abc import Sequence

import torch

LayerKeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, each [1, tokens, heads, head width]."""


class ReferenceLayer:
    """Keys and values of all references for one layer, [1, tokens, heads, head width] each, as the DiT's attention asks for them.

    Those that are not on the device are brought there each time they are read, which costs time and saves their memory.
    """

    mode = "read"

    def __init__(self, keys_values: Sequence[LayerKeysValues]):
        self.keys_values = keys_values

    def get(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The references' and a picture's own, [B, tokens, heads, head width], joined along the tokens."""
        return tuple(
            torch.cat([*(kept.to(own.device, non_blocking=True).expand(len(own), -1, -1, -1) for kept in all_kept), own], dim=1)
            for all_kept, own in zip(zip(*self.keys_values, strict=True), (keys, values), strict=True)
        )

    def on(self, device: torch.device) -> "ReferenceLayer":
        return ReferenceLayer([(keys.to(device), values.to(device)) for keys, values in self.keys_values])


class WrittenLayer:
    """Takes the keys and values of a reference out of one layer, to the CPU at once, so that no two layers' are on the device."""

    mode = "write"

    def store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys_values = _kept(keys), _kept(values)


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, where a GPU can fetch it by itself."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)
