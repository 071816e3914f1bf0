"""Inside ComfyUI: its folders, progress bar and interrupt, its memory manager, its samplers."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management as model_management
import comfy.samplers
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from comfy_execution.utils import get_executing_context
from PIL import Image

from ....glmimage_core.cogview3.base import CogView3Unet, Step, steps_of
from ....glmimage_core.cogview3.plus import CogView3, timesteps_of
from ....glmimage_core.component import Component
from ....glmimage_core.diffusion import image_seeds, initial_noise, latent_grid, whole_steps
from ....glmimage_core.glm_image.denoise import Approximations
from ....glmimage_core.glm_image.dit import Dit
from ....glmimage_core.glm_image.schedule import partial_schedule, progress_of
from ....glmimage_core.glm_image.step_cache import StepCache
from ....glmimage_core.placement.residency import current
from ....glmimage_core.progress import Progress
from ....glmimage_core.vae import LatentSpace, Vae
from ....glmimage_core.weights.lora import layer_of
from ..devices import device_of, warn_without
from ..protocol import Result
from ..requests import CogView3BaseRequest, CogView3Request, SampleRequest
from .background import at_work, beside_nodes, others_compute, stop_if_asked, worker_for
from .cogview3 import CogView3ModelBase, cogview3_patcher
from .glm_image import STEP_CACHE_KEY, GlmImageModel, ModelSampling, dit_patcher, model_sampling
from .patchers import READ_BY_EACH_TOKEN, ManagedComponent, is_dynamic, load, managed, streamed_bytes
from .vae import GlmImageVae

log = logging.getLogger(__name__)

PREVIEW_SECONDS = 0.25  # between two pictures or two texts of one stage
PREVIEW_SIDE = 1024  # pixels; larger pictures are made smaller


class ComfyHost:
    """The running ComfyUI."""

    samplers = comfy.samplers.KSampler.SAMPLERS

    def __init__(self):
        folder_paths.add_model_folder_path("LLM", str(Path(folder_paths.models_dir) / "LLM"))  # ComfyUI has none for these

    def checkpoint_roots(self) -> list[Path]:
        return [Path(folder) for folder in folder_paths.get_folder_paths("diffusers")]

    def model_roots(self, kind: str) -> list[Path]:
        return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]

    def loras(self) -> list[str]:
        return folder_paths.get_filename_list("loras")

    def lora_file(self, name: str) -> Path:
        path = folder_paths.get_full_path("loras", name)
        if path is None:
            raise FileNotFoundError(f"there is no LoRA {name!r}; put it below models/loras")
        return Path(path)

    def device(self, choice: str = "default") -> torch.device:
        default = model_management.get_torch_device()
        return device_of(choice, default) or default

    def progress(self, label: str, unit: str = "") -> Progress:
        check = stop_if_asked()
        check()
        bar = comfy.utils.ProgressBar(1)
        started = shown = time.monotonic()

        def step(done: int, total: int, preview: Callable[[], Image.Image] | None = None) -> None:
            nonlocal shown
            check()
            now = time.monotonic()
            picture = None
            if now - shown >= PREVIEW_SECONDS or done == total:
                shown = now
                if preview is not None and args.preview_method != LatentPreviewMethod.NoPreviews:
                    drawn = preview()
                    picture = ("JPEG", drawn, PREVIEW_SIDE if max(drawn.size) > PREVIEW_SIDE else None)
                if unit:
                    _write_on_node(_speed(done, total, now - started, unit))
            bar.update_absolute(done, total, picture)

        return step

    def warn(self, text: str) -> None:
        log.warning(text)
        _write_on_node(text)

    def wire(self, component: Component, device: str = "default") -> Any:
        warn_without(device, self)
        if isinstance(component, Vae):
            return GlmImageVae(component, None if device == "default" else self.device(device))
        chosen = self.device(device)
        if isinstance(component, Dit):
            return dit_patcher(component, chosen)
        if isinstance(component, CogView3 | CogView3Unet):
            return cogview3_patcher(component, chosen)
        return managed(component, chosen)

    def component(self, wire: Any) -> Any:
        if isinstance(wire, ModelPatcher) and isinstance(wire.model, GlmImageModel | CogView3ModelBase):
            return wire.model.dit
        return wire.component if isinstance(wire, ManagedComponent | GlmImageVae) else wire

    @contextmanager
    def placed(self, wire: ManagedComponent | GlmImageVae, working_bytes: int = 0, part: str = "model") -> Iterator[Component]:
        with at_work(_patcher(wire, part)):
            component = self._place(wire, working_bytes, part)
            # Recording the steps of a model that stays there fails, and makes others fail, while something else uses a GPU.
            yield replace(component, weights_are_static=component.weights_are_static and not others_compute(_patcher(wire, part)))

    async def run_in_background(self, wire: ManagedComponent, working_bytes: int, part: str, work: Callable[[Component], Result]) -> Result:
        patcher = _patcher(wire, part)
        if patcher.load_device == self.device():
            with self.placed(wire, working_bytes, part) as component:
                return work(component)
        worker = worker_for(patcher)
        placed = await worker.component(patcher, working_bytes, lambda room: self._place(wire, room, part))
        if not placed.weights_are_static:  # what ComfyUI brings layer by layer, it brings for one thread at a time
            try:
                with current(patcher.load_device):
                    return work(placed)
            finally:
                worker.give_up()

        def run() -> Result:
            with current(patcher.load_device):
                return work(replace(placed, weights_are_static=False))  # nothing is recorded, as in placed

        return await beside_nodes(worker, run)

    def _place(self, wire: ManagedComponent | GlmImageVae, working_bytes: int, part: str) -> Component:
        patcher = _patcher(wire, part)
        load(patcher, working_bytes)
        streamed = streamed_bytes(patcher, working_bytes)
        if streamed and part in READ_BY_EACH_TOKEN:
            self.warn(
                f"{streamed / 1e9:.1f} GB of {READ_BY_EACH_TOKEN[part]} do not fit on {patcher.load_device} and are brought "
                "there again for every token, which is slow: choose a quantization where it is loaded"
            )
        return replace(wire.component, weights_are_static=not streamed and not is_dynamic(patcher))

    def free_bytes(self, wire: ManagedComponent | GlmImageVae) -> int | None:
        device = wire.patcher.load_device
        if model_management.is_device_cpu(device):
            return None
        # A patcher that streams on demand knows what other models would give up.
        free_memory = getattr(wire.patcher, "get_free_memory", model_management.get_free_memory)
        return free_memory(device) - model_management.extra_reserved_memory()

    def for_size(self, model: ModelPatcher, width: int, height: int) -> ModelPatcher:
        model = model.clone()
        model.add_object_patch("model_sampling", model_sampling(self.component(model), width, height))
        return model

    def with_lora(self, wire: ModelPatcher | ManagedComponent, lora: dict[str, torch.Tensor], strength: float) -> Any:
        wire = wire.clone()
        patchers = wire.get_models() if isinstance(wire, ManagedComponent) else [wire]
        prefix = "model" if isinstance(wire, ManagedComponent) else "diffusion_model"
        left = lora
        for patcher in patchers:
            layers = patcher.model.get_submodule(prefix).named_modules()
            names = {name: f"{prefix}.{name}.weight" for name, layer in layers if hasattr(layer, "comfy_cast_weights")}
            if own := {key: tensor for key, tensor in left.items() if layer_of(key) in names}:
                patcher.add_patches(comfy.lora.load_lora(own, names), strength)
                left = {key: tensor for key, tensor in left.items() if key not in own}
        if left:
            self.warn(f"ComfyUI cannot patch every layer: {len(left)} keys of the LoRA are left out, such as {next(iter(left))}")
        return wire

    def paint(self, model: ModelPatcher, request: SampleRequest) -> torch.Tensor:
        """Through ComfyUI's sampler, so that every patch on the MODEL takes effect."""
        prior, latents = request.prior, request.latents
        if request.denoise == 0:
            return latents.expand(request.batch, -1, -1, -1).clone()
        dit = self.component(model)
        noise = _noise(dit.space, request.seed, request.batch, prior.width, prior.height)
        if isinstance(model.get_model_object("model_sampling"), ModelSampling):
            model = self.for_size(model, prior.width, prior.height)
            mu = dit.shift.of_size(prior.width, prior.height)
            sigmas = partial_schedule(request.steps, request.denoise, mu).sigmas
        else:  # a node put another schedule on the MODEL; GLM-Image's own spacing is what ComfyUI calls simple
            whole = whole_steps(request.steps, request.denoise)
            sampling = model.get_model_object("model_sampling")
            sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", whole)[-request.steps - 1 :]
        approximations = request.approximations
        if approximations.step_cache:
            model = model.clone()
            step_cache = StepCache(approximations.step_cache)
            model.model_options["transformer_options"][STEP_CACHE_KEY] = step_cache
        guider = IntervalGuider(model, approximations) if approximations.interval else comfy.samplers.CFGGuider(model)
        samples = self._sampled(guider, request, noise, request.sampler_name, sigmas)
        if approximations.step_cache:
            log.info(str(step_cache))
            _write_on_node(str(step_cache))
        return samples

    def paint_cogview3(self, model: ModelPatcher, request: CogView3Request) -> torch.Tensor:
        if request.denoise == 0:
            return request.latents.expand(request.batch, -1, -1, -1).clone()
        dit = self.component(model)
        noise = _noise(dit.space, request.seed, request.batch, request.width, request.height)
        sampling = model.get_model_object("model_sampling")
        timesteps = timesteps_of(dit.scheduler, request.steps, request.denoise)
        sigmas = torch.cat([sampling.sigmas[timesteps], sampling.sigmas.new_zeros(1)]).cpu()
        return self._sampled(comfy.samplers.CFGGuider(model), request, noise, "euler", sigmas)  # which is DDIM here

    def paint_cogview3_base(self, model: ModelPatcher, request: CogView3BaseRequest) -> torch.Tensor:
        unet = self.component(model)
        noise = _noise(unet.space, request.seed, request.batch, request.width, request.height)
        run = steps_of(unet, request.steps, request.relay_steps)
        sampling = model.get_model_object("model_sampling")
        sigmas = torch.cat([sampling.sigmas[[step.timestep for step in run]], sampling.sigmas.new_zeros(1)]).cpu()
        sampler = "euler"
        if request.latents is not None:
            low = unet.space.normalise(request.latents)
            sampler = Relay(_relay, {"run": run, "low": low})
        if unet.is_distilled:
            positive = [[text, options | {"guidance": request.cfg}] for text, options in request.positive]
            request = request._replace(positive=positive, cfg=1.0)
        return self._sampled(comfy.samplers.CFGGuider(model), request, noise, sampler, sigmas)

    def _sampled(
        self,
        guider: comfy.samplers.CFGGuider,
        request: SampleRequest | CogView3Request | CogView3BaseRequest,
        noise: torch.Tensor,
        sampler: str | comfy.samplers.Sampler,
        sigmas: torch.Tensor,
    ) -> torch.Tensor:
        """A painting along sigmas, as host.paint returns it."""
        guider.set_conds(request.positive, request.negative)
        guider.set_cfg(request.cfg)
        samples = guider.sample(
            noise,
            torch.zeros_like(noise) if request.latents is None else request.latents.expand_as(noise),
            comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler,
            sigmas,
            denoise_mask=request.mask,
            callback=latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=request.seed,
        )
        return samples.float().cpu()


def _noise(space: LatentSpace, seed: int, batch: int, width: int, height: int) -> torch.Tensor:
    """Of pictures of width x height pixels."""
    return initial_noise(image_seeds(seed, batch), len(space.mean), latent_grid(width, height))


def _patcher(wire: ManagedComponent | GlmImageVae, part: str) -> ModelPatcher:
    return wire.patchers[part] if isinstance(wire, ManagedComponent) else wire.patcher


class Relay(comfy.samplers.KSAMPLER):
    """Starts from a latent, however strong the noise on it is."""

    def max_denoise(self, model_wrap, sigmas):
        return False


def _relay(model, x, sigmas, extra_args=None, callback=None, disable=None, *, run: list[Step], low: torch.Tensor):
    """ComfyUI's signature of a sampler."""
    low = low.to(x)
    for done, step in enumerate(run):
        predicted = model(x, sigmas[done].expand(len(x)), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": done, "sigma": sigmas[done], "sigma_hat": sigmas[done], "denoised": predicted})
        x = step.taken(x, predicted, low)
    return x


class IntervalGuider(comfy.samplers.CFGGuider):
    """Guidance in a part of the run."""

    def __init__(self, model: ModelPatcher, approximations: Approximations):
        super().__init__(model)
        self._shortcuts = approximations

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006, ComfyUI's signature
        cfg = self.cfg
        clock = float(self.inner_model.clock(timestep[:1], x))
        self.cfg = self._shortcuts.cfg_at(progress_of(clock), cfg)
        try:
            return super().predict_noise(x, timestep, model_options, seed)
        finally:
            self.cfg = cfg


def _speed(done: int, total: int, seconds: float, unit: str) -> str:
    rate = done / max(seconds, 1e-6)
    left = f", {(total - done) / rate:.0f} s left" if rate else ""
    return f"{done} of {total} {unit}, {rate:.1f} a second{left}"


def _write_on_node(text: str) -> None:
    """Show a text on the node that runs, where there is a browser and a node."""
    context = get_executing_context()
    if context is None:
        return
    from server import PromptServer

    PromptServer.instance.send_progress_text(text, context.node_id)
