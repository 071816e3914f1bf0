"""The option --device."""

import torch

from ..nodes.host.standalone import best_device, usable_device


def device_option(name: str | None) -> torch.device:
    """The device that --device names; without it the best there is. Raises ValueError if the named one cannot be used."""
    if not name:
        return best_device()
    try:
        return usable_device(name)
    except ValueError as error:
        raise ValueError(f"--device {error}") from error
