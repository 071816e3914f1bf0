"""Where the nodes run: inside ComfyUI or on their own. The only code that knows the difference."""

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from ...glmimage_core.prior import Progress


class Host(Protocol):
    """What a node needs from its surroundings."""

    def checkpoint_roots(self) -> list[Path]:
        """The folders below which checkpoints lie."""

    def progress(self, label: str) -> Progress:
        """A fresh progress bar for one stage; it raises when the user has asked to stop."""

    def placed(self, model: torch.nn.Module, working_bytes: int = 0) -> AbstractContextManager[torch.device]:
        """Have a model on the device, with room to work, for the length of a with block."""

    def free_bytes(self) -> int | None:
        """Free memory of the device, or None where the device is the CPU."""


def _find_host() -> Host:
    if "comfy.model_management" in sys.modules:  # ComfyUI imports it long before any pack
        from .comfyui import ComfyHost

        return ComfyHost()
    from .standalone import StandaloneHost

    return StandaloneHost()


host = _find_host()
