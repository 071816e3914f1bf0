"""The names of devices in a loader's widget."""

import torch

from .protocol import Host

DEVICES = ("default", "cpu", *(f"gpu:{index}" for index in range(8)))
"""What a loader can be told of where its model computes; ComfyUI's own names."""


def device_of(choice: str, default: torch.device) -> torch.device | None:
    """The device of one of DEVICES, or None where this machine has no such GPU. Raises ValueError for what is none of them."""
    if choice not in DEVICES:
        raise ValueError(f"device is {choice!r}; choose from {', '.join(DEVICES)}")
    if choice == "default":
        return default
    if choice == "cpu":
        return torch.device("cpu")
    index = int(choice.removeprefix("gpu:"))
    if default.index is None:  # of a kind of which there is one
        return default if index == 0 and default.type != "cpu" else None
    there = default.type != "cpu" and index < torch.get_device_module(default).device_count()
    return torch.device(default.type, index) if there else None


def warn_without(choice: str, host: Host) -> None:
    """Warn of a choice of a device that this machine does not have."""
    default = host.device()
    if device_of(choice, default) is None:
        host.warn(f"there is no {choice} on this machine; {default} is taken")
