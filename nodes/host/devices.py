"""The names of devices in a loader's widget."""

import torch

from .protocol import Host

DEVICES = ("default", "cpu", *(f"gpu:{index}" for index in range(8)))
"""The choices of a loader's device widget, named as in ComfyUI."""


def device_of(choice: str, default: torch.device) -> torch.device | None:
    """The device for one of DEVICES, or None if this machine has no such GPU. Raises ValueError for any other choice."""
    if choice not in DEVICES:
        raise ValueError(f"device is {choice!r}; choose from {', '.join(DEVICES)}")
    if choice == "default":
        return default
    if choice == "cpu":
        return torch.device("cpu")
    index = int(choice.removeprefix("gpu:"))
    if default.index is None:  # a machine has at most one device of this kind, such as Metal
        return default if index == 0 and default.type != "cpu" else None
    exists = default.type != "cpu" and index < torch.get_device_module(default).device_count()
    return torch.device(default.type, index) if exists else None


def warn_if_missing(choice: str, host: Host) -> None:
    """Warn if this machine does not have the chosen device, in whose place the default one is used."""
    default = host.device()
    if device_of(choice, default) is None:
        host.warn(f"there is no {choice} on this machine; {default} is used instead")
