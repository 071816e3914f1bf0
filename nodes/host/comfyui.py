"""Inside ComfyUI: its folders, its progress bar and interrupt, its device."""

from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

import comfy.model_management as model_management
import comfy.utils
import folder_paths
import torch

from ...glmimage_core.prior import Progress
from ...glmimage_core.residency import Residency


class ComfyHost:
    """The running ComfyUI."""

    def checkpoint_roots(self) -> list[Path]:
        return [Path(folder) for folder in folder_paths.get_folder_paths("diffusers")]

    def progress(self, label: str) -> Progress:
        bar = comfy.utils.ProgressBar(1)

        def step(done: int, total: int) -> None:
            model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        model_management.throw_exception_if_processing_interrupted()
        return step

    def placed(self, model: torch.nn.Module, working_bytes: int = 0) -> AbstractContextManager[torch.device]:
        return self._residency.hold(model, working_bytes)

    def free_bytes(self) -> int | None:
        return None if self._residency.device.type == "cpu" else self._residency.free_bytes()

    @cached_property
    def _residency(self) -> Residency:
        device = model_management.get_torch_device()
        return Residency(
            device,
            free_bytes=lambda: model_management.get_free_memory(device) - model_management.extra_reserved_memory(),
            make_room=lambda needed: model_management.free_memory(needed, device),
        )
