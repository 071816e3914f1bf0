"""Without ComfyUI: folders, device and progress are what the command line or a test says."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from ...glmimage_core.prior import Progress
from ...glmimage_core.residency import Residency


def best_device() -> torch.device:
    """CUDA (or ROCm), else Metal, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class StandaloneHost:
    """Set `models`, a folder that holds diffusers/NAME, and `on_progress` before running nodes.

    on_progress is called with (label, done, total); what it raises stops the stage.
    """

    def __init__(self):
        self.models = Path("models")
        self.on_progress: Callable[[str, int, int], None] = lambda label, done, total: None
        self.residency: Residency | None = None

    def checkpoint_roots(self) -> list[Path]:
        return [self.models / "diffusers"]

    def progress(self, label: str) -> Progress:
        return lambda done, total: self.on_progress(label, done, total)

    def placed(self, model: torch.nn.Module, working_bytes: int = 0) -> AbstractContextManager[torch.device]:
        return self._placing().hold(model, working_bytes)

    def free_bytes(self) -> int | None:
        residency = self._placing()
        return None if residency.device.type == "cpu" else residency.free_bytes()

    def _placing(self) -> Residency:
        if self.residency is None:
            self.residency = Residency(best_device())
        return self.residency
