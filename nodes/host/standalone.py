"""Without ComfyUI: folders, device and progress are what the command line or a test says."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import torch

from ...glmimage_core.cogview3 import base as cogview3_base
from ...glmimage_core.cogview3.base import CogView3Unet
from ...glmimage_core.cogview3.memory import cogview3_bytes, unet_bytes
from ...glmimage_core.cogview3.plus import CogView3
from ...glmimage_core.cogview3.plus import sample as sample_cogview3
from ...glmimage_core.component import Component
from ...glmimage_core.diffusion import image_seeds
from ...glmimage_core.glm_image.denoise import sample
from ...glmimage_core.glm_image.dit import Dit
from ...glmimage_core.glm_image.memory import dit_bytes
from ...glmimage_core.glm_image.references import sizes_of
from ...glmimage_core.placement.prediction import Job
from ...glmimage_core.placement.residency import Residency, current, free_device_bytes
from ...glmimage_core.progress import Progress
from ...glmimage_core.weights.lora import WeightedLora, applied_loras
from .devices import device_of, warn_without
from .protocol import Result
from .requests import CogView3BaseRequest, CogView3Request, SampleRequest, micro_conditions

log = logging.getLogger(__name__)


def best_device() -> torch.device:
    """CUDA (or ROCm), else Metal, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def usable_device(name: str) -> torch.device:
    """The device of that name. Raises ValueError where this PyTorch has none such."""
    try:
        device = torch.empty(1, device=name).device
        if device.type != "cpu":
            free_device_bytes(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


class StandaloneHost:
    """Set `models`, a folder that holds diffusers/NAME, loras/ and those of single files, and `on_progress` before running nodes.

    on_progress is called with (label, done, total); what it raises stops the stage.
    """

    samplers = ("euler",)

    def __init__(self):
        self.models = Path("models")
        self.on_progress: Callable[[str, int, int], None] = lambda label, done, total: None
        self.residency: Residency | None = None  # of the default device
        self._others: dict[torch.device, Residency] = {}

    def checkpoint_roots(self) -> list[Path]:
        return [self.models / "diffusers"]

    def model_roots(self, kind: str) -> list[Path]:
        return [self.models / kind]

    def loras(self) -> list[str]:
        folder = self.models / "loras"
        return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]

    def lora_file(self, name: str) -> Path:
        if name not in self.loras():
            raise FileNotFoundError(f"there is no LoRA {name!r} in {self.models / 'loras'}")
        return self.models / "loras" / name

    def device(self, choice: str = "default") -> torch.device:
        default = self._placing().device
        return device_of(choice, default) or default

    def progress(self, label: str, unit: str = "") -> Progress:
        shown = None

        def step(done: int, total: int, preview=None) -> None:
            nonlocal shown
            if done != shown:
                shown = done
                self.on_progress(label, done, total)

        return step

    def warn(self, text: str) -> None:
        log.warning(text)

    def wire(self, component: Component, device: str = "default") -> Component:
        warn_without(device, self)
        return component if device == "default" else replace(component, target_device=self.device(device))

    def component(self, wire: Component) -> Component:
        return wire

    @contextmanager
    def placed(self, wire: Component, working_bytes: int = 0, part: str = "model") -> Iterator[Component]:
        model = wire.parts[part]
        with (
            self._placing(wire).hold(model, working_bytes, wire.blocks) as device,
            applied_loras(model, wire.loras),
            current(device),
        ):
            yield replace(wire.on(device), weights_are_static=not wire.blocks)  # which may come one by one

    async def aside(self, wire: Component, working_bytes: int, part: str, work: Callable[[Component], Result]) -> Result:
        with self.placed(wire, working_bytes, part) as component:
            return work(component)  # one node runs after another here

    def free_bytes(self, wire: Component) -> int | None:
        residency = self._placing(wire)
        return None if residency.device.type == "cpu" else residency.free_bytes()

    def for_size(self, model: Dit, width: int, height: int) -> Dit:
        return model  # the one sampler here knows the size from the prior

    def with_lora(self, wire: Component, lora: dict[str, torch.Tensor], strength: float) -> Component:
        return replace(wire, loras=(*wire.loras, WeightedLora(lora, strength)), weights_key=f"{uuid4()} ")

    def paint(self, model: Dit, request: SampleRequest) -> torch.Tensor:
        (positive, _), (negative, _) = request.positive[0], request.negative[0]
        prior = request.prior
        sizes = sizes_of(request.references)
        job = Job(
            *(prior.width, prior.height, request.batch, sizes),
            glyph_tokens=positive.shape[1],
            guided=request.cfg != 1,
            one_length=positive.shape == negative.shape,
            step_cache=request.approximations.step_cache > 0,
        )
        needed, lean = (dit_bytes(model.model.config, model.dtype.itemsize, job, there) for there in (True, False))
        whole = self._placing(model).fits(model.model, needed)
        with self.placed(model, needed if whole else lean) as dit:
            return sample(
                dit,
                prior,
                positive,
                negative,
                image_seeds(request.seed, request.batch),
                request.steps,
                request.cfg,
                request.denoise,
                request.latents,
                request.mask,
                request.references,
                self.progress("Sampler"),
                request.approximations,
                caches_on_device=whole,
            )

    def paint_cogview3(self, model: CogView3, request: CogView3Request) -> torch.Tensor:
        (positive, options), (negative, _) = request.positive[0], request.negative[0]
        job = Job(*(request.width, request.height, request.batch), glyph_tokens=positive.shape[1], guided=request.cfg != 1)
        with self.placed(model, cogview3_bytes(model.model.config, model.dtype.itemsize, job)) as dit:
            return sample_cogview3(
                dit,
                positive,
                negative,
                width=request.width,
                height=request.height,
                seeds=image_seeds(request.seed, request.batch),
                steps=request.steps,
                cfg=request.cfg,
                denoise=request.denoise,
                latents=request.latents,
                mask=request.mask,
                micro=micro_conditions(options, request.width, request.height),
                progress=self.progress("Sampler"),
            )

    def paint_cogview3_base(self, model: CogView3Unet, request: CogView3BaseRequest) -> torch.Tensor:
        (positive, options), (negative, _) = request.positive[0], request.negative[0]
        guided = request.cfg != 1 and not model.is_distilled
        job = Job(request.width, request.height, request.batch, glyph_tokens=positive.shape[1], guided=guided)
        settings = {
            "seeds": image_seeds(request.seed, request.batch),
            "steps": request.steps,
            "cfg": request.cfg,
            "micro": micro_conditions(options, request.width, request.height),
            "progress": self.progress("Sampler"),
        }
        with self.placed(model, unet_bytes(model.model.config, model.dtype.itemsize, job)) as unet:
            if request.latents is None:
                return cogview3_base.sample(unet, positive, negative, width=request.width, height=request.height, **settings)
            return cogview3_base.relay(unet, positive, negative, request.latents, relay_steps=request.relay_steps, **settings)

    def _placing(self, component: Component | None = None) -> Residency:
        if self.residency is None:
            self.residency = Residency(best_device())
        target_device = None if component is None else component.target_device
        if target_device in (None, self.residency.device):
            return self.residency
        return self._others.setdefault(target_device, Residency(target_device))
