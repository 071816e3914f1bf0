"""Folders, device, progress and placement without ComfyUI."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import torch

from ....glmimage_core.component import Component
from ....glmimage_core.glm_image.dit import Dit
from ....glmimage_core.glm_image.tiles import Tiling
from ....glmimage_core.placement.residency import Residency, current, free_device_bytes
from ....glmimage_core.progress import Progress
from ....glmimage_core.units import human_bytes
from ....glmimage_core.weights.lora import WeightedLora, applied_loras, applied_loras_bytes
from ..devices import device_of, warn_if_missing
from ..protocol import Result
from ..requests import SampleRequest

log = logging.getLogger(__name__)
OLDER_FOLDERS = {"diffusion_models": ("unet",), "text_encoders": ("clip",)}
"""The names that ComfyUI gave its folders before; it still looks there."""


def best_device() -> torch.device:
    """CUDA (or ROCm), else Metal, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def usable_device(name: str) -> torch.device:
    """The device of that name in PyTorch, such as cuda:1. Raises ValueError if it cannot be used."""
    try:
        device = torch.empty(1, device=name).device
        if device.type != "cpu":
            free_device_bytes(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


class StandaloneHost:
    """The nodes' surroundings without ComfyUI. Set what its __init__ sets in public before running nodes.

    models: a folder laid out like ComfyUI's: diffusers/NAME, loras, and the kinds of `Host.model_roots`. input, output: the
    folders that nodes read and write. on_saved is called with each file that was written. on_progress is called with (label,
    done, total); any exception that it raises stops the stage. samplers: by request type, the function that answers such a
    request.
    """

    sampler_names = ("euler",)
    saves_workflows = True

    def __init__(self, samplers: Mapping[type[SampleRequest], Callable[..., torch.Tensor]]):
        self._sampler_for = samplers
        self.models = Path("models")
        self.input, self.output = Path("input"), Path("output")
        self.on_saved: Callable[[Path], object] = lambda file: None
        self.on_progress: Callable[[str, int, int], None] = lambda label, done, total: None
        self.residency: Residency | None = None  # the default device's; set on first use if nobody has set it
        self._others: dict[torch.device, Residency] = {}

    def checkpoint_roots(self) -> list[Path]:
        return [self.models / "diffusers"]

    def model_roots(self, kind: str) -> list[Path]:
        return [self.models / name for name in (kind, *OLDER_FOLDERS.get(kind, ()))]

    def loras(self) -> list[str]:
        folder = self.models / "loras"
        return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]

    def lora_file(self, name: str) -> Path:
        if name not in self.loras():
            raise FileNotFoundError(f"there is no LoRA {name!r} in {self.models / 'loras'}")
        return self.models / "loras" / name

    def input_folder(self) -> Path:
        return self.input

    def output_folder(self) -> Path:
        return self.output

    def saved(self, files: Sequence[Path]) -> tuple:
        for file in files:
            self.on_saved(file)
        return ()

    def device(self, choice: str = "default") -> torch.device:
        default = self._residency_of().device
        return device_of(choice, default) or default

    def progress(self, label: str, unit: str = "") -> Progress:
        shown = None

        def step(done: int, total: int, preview=None) -> None:
            nonlocal shown
            if done != shown:
                shown = done
                self.on_progress(label, done, total)

        return step

    def say(self, text: str) -> None:
        log.info(text)

    def warn(self, text: str) -> None:
        log.warning(text)

    def wire(self, component: Component, device: str = "default") -> Component:
        warn_if_missing(device, self)
        place = self.device(device)
        if place.type == "cuda" and component.dtype == torch.bfloat16 and torch.cuda.get_device_capability(place) < (8, 0):
            self.warn("this card has no bfloat16 of its own, and no quick attention for it; choose dtype float16 or float32")
        return component if device == "default" else replace(component, target_device=self.device(device))

    def component(self, wire: Component) -> Component:
        return wire

    @contextmanager
    def placed(self, wire: Component, working_bytes: int = 0, part: str = "model") -> Iterator[Component]:
        model, residency = wire.parts[part], self._residency_of(wire)
        # LoRAs are applied before the stage works.
        needed = max(working_bytes, applied_loras_bytes(model, wire.loras, residency.device))
        if residency.device.type == "cpu" and needed > (free := residency.free_bytes()):
            self.warn(
                f"this stage works with about {human_bytes(needed)} of memory and {human_bytes(max(0, free))} are free: it may "
                "be slow, or end; choose a smaller picture, or close other programs"
            )
        with (
            residency.hold(model, needed, wire.blocks) as device,
            applied_loras(model, wire.loras),
            current(device),
        ):
            yield replace(wire.on(device), weights_are_static=not wire.blocks)  # blocks may be streamed

    async def run_in_background(
        self, wire: Component, working_bytes: int, part: str, work: Callable[[Component], Result]
    ) -> Result:
        with self.placed(wire, working_bytes, part) as component:
            return work(component)  # no background here: the runner runs one node after another

    def free_bytes(self, wire: Component) -> int | None:
        return self._residency_of(wire).free_bytes()

    def for_size(self, model: Dit, width: int, height: int) -> Dit:
        return replace(model, schedule_of=(width, height))

    def in_tiles(self, model: Dit, tiling: Tiling) -> Dit:
        return replace(model, tiling=tiling)

    def with_lora(self, wire: Component, lora: dict[str, torch.Tensor], strength: float) -> Component:
        return replace(wire, loras=(*wire.loras, WeightedLora(lora, strength)), weights_key=f"{uuid4()} ")

    def sample(self, model: Component, request: SampleRequest) -> torch.Tensor:
        return self._sampler_for[type(request)](self, model, request)

    def fits(self, wire: Component, working_bytes: int) -> bool:
        """Whether the whole model fits on its device beside its working memory, once all other models have left."""
        return self._residency_of(wire).fits(wire.model, working_bytes)

    def _residency_of(self, component: Component | None = None) -> Residency:
        if self.residency is None:
            self.residency = Residency(best_device())
        target_device = None if component is None else component.target_device
        if target_device in (None, self.residency.device):
            return self.residency
        return self._others.setdefault(target_device, Residency(target_device))
