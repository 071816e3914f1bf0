"""Side streams of CUDA devices, one for each purpose: PyTorch keeps a workspace for each stream on which it ever multiplied."""

from functools import cache

import torch


@cache
def side_stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """The stream of a device for a purpose, such as recording or copying; the same one every time."""
    return torch.cuda.Stream(device)
