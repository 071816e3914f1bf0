"""Folders, device, progress and placement in the running ComfyUI."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management as model_management
import comfy.samplers
import folder_paths
import torch
from comfy.cli_args import args
from comfy.model_patcher import ModelPatcher

from ....glmimage_core.component import Component
from ....glmimage_core.glm_image.tiles import Tiling
from ....glmimage_core.placement.residency import current
from ....glmimage_core.progress import Progress
from ....glmimage_core.units import human_bytes
from ....glmimage_core.vae import Vae
from ....glmimage_core.weights.lora import layer_of
from ..devices import device_of, warn_if_missing
from ..protocol import Result
from ..requests import SampleRequest
from .background import at_work, beside_nodes, others_compute, worker_for
from .glm_image import for_size, in_tiles
from .models import ComponentModel
from .patchers import READ_BY_EACH_TOKEN, ManagedComponent, is_dynamic, load, managed, streamed_bytes
from .progress import progress_bar, warn_on_node, write_on_node
from .vae import ComponentVae

log = logging.getLogger(__name__)


class ComfyHost:
    """The nodes' surroundings in ComfyUI.

    models: by component type, the function that makes a MODEL of a component for a device. samplers: by request type, the
    function that answers such a request.
    """

    sampler_names = comfy.samplers.KSampler.SAMPLERS
    saves_workflows = not args.disable_metadata

    def __init__(
        self,
        models: Mapping[type[Component], Callable[[Component, torch.device], ModelPatcher]],
        samplers: Mapping[type[SampleRequest], Callable[..., torch.Tensor]],
    ):
        self._wire_for = models
        self._sampler_for = samplers
        folder_paths.add_model_folder_path(
            "LLM", str(Path(folder_paths.models_dir) / "LLM")
        )  # ComfyUI has no folder of its own for language models

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

    def input_folder(self) -> Path:
        return Path(folder_paths.get_input_directory())

    def output_folder(self) -> Path:
        return Path(folder_paths.get_output_directory())

    def saved(self, files: Sequence[Path]) -> dict:
        output = self.output_folder().resolve()
        names = [file.resolve().relative_to(output) for file in files]
        self.say("\n".join(name.as_posix() for name in names))
        pictures = [name for name in names if name.suffix == ".png"]
        shown = [
            {"filename": name.name, "subfolder": name.parent.as_posix().removeprefix("."), "type": "output"} for name in pictures
        ]
        return {"ui": {"images": shown}}

    def device(self, choice: str = "default") -> torch.device:
        default = model_management.get_torch_device()
        return device_of(choice, default) or default

    def progress(self, label: str, unit: str = "") -> Progress:
        return progress_bar(unit)  # the running node stands for its label

    def say(self, text: str) -> None:
        log.info(text)
        write_on_node(text)

    def warn(self, text: str) -> None:
        log.warning(text)
        warn_on_node(text)

    def wire(self, component: Component, device: str = "default") -> Any:
        warn_if_missing(device, self)
        if isinstance(component, Vae):
            return ComponentVae(component, None if device == "default" else self.device(device))
        return self._wire_for.get(type(component), managed)(component, self.device(device))

    def component(self, wire: Any) -> Any:
        if isinstance(wire, ModelPatcher) and isinstance(wire.model, ComponentModel):
            return wire.model.component
        return wire.component if isinstance(wire, ManagedComponent | ComponentVae) else wire

    @contextmanager
    def placed(self, wire: ManagedComponent | ComponentVae, working_bytes: int = 0, part: str = "model") -> Iterator[Component]:
        with at_work(_patcher(wire, part)):
            component = self._place(wire, working_bytes, part)
            # A CUDA graph cannot be recorded while other work uses a GPU: the recording fails, and that work too.
            yield replace(component, may_record=component.may_record and not others_compute(_patcher(wire, part)))

    async def run_in_background(
        self, wire: ManagedComponent, working_bytes: int, part: str, work: Callable[[Component], Result]
    ) -> Result:
        patcher = _patcher(wire, part)
        if patcher.load_device == self.device():
            with self.placed(wire, working_bytes, part) as component:
                return work(component)
        worker = worker_for(patcher)
        placed = await worker.component(patcher, working_bytes, lambda room: self._place(wire, room, part))
        if not placed.weights_are_static:  # ComfyUI can stream layers for one thread at a time only
            try:
                with current(patcher.load_device):
                    return work(placed)
            finally:
                worker.give_up()

        def run() -> Result:
            with current(patcher.load_device):
                return work(replace(placed, may_record=False))  # as in `placed`

        return await beside_nodes(worker, run)

    def _place(self, wire: ManagedComponent | ComponentVae, working_bytes: int, part: str) -> Component:
        patcher = _patcher(wire, part)
        load(patcher, working_bytes)
        streamed = streamed_bytes(patcher, working_bytes)
        if streamed and part in READ_BY_EACH_TOKEN:
            self.warn(
                f"{human_bytes(streamed)} of {READ_BY_EACH_TOKEN[part]} do not fit on {patcher.load_device} and are copied there "
                "for every token, which is slow; choose a quantization in its loader"
            )
        may_record = not getattr(args, "disable_cuda_graphs", False)  # 0.3.64 has no such option
        static = not streamed and not is_dynamic(patcher)
        return replace(wire.component, weights_are_static=static, streamed=streamed > 0, may_record=may_record, may_join=False)

    def free_bytes(self, wire: ManagedComponent | ComponentVae) -> int | None:
        device = wire.patcher.load_device
        # A patcher that streams on demand also counts what other models would give up.
        free_memory = getattr(wire.patcher, "get_free_memory", model_management.get_free_memory)
        return free_memory(device) - model_management.extra_reserved_memory()

    def for_size(self, model: ModelPatcher, width: int, height: int) -> ModelPatcher:
        return for_size(model, width, height)

    def in_tiles(self, model: ModelPatcher, tiling: Tiling) -> ModelPatcher:
        return in_tiles(model, tiling)

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

    def sample(self, model: ModelPatcher, request: SampleRequest) -> torch.Tensor:
        return self._sampler_for[type(request)](model, request)


def _patcher(wire: ManagedComponent | ComponentVae, part: str) -> ModelPatcher:
    return wire.patchers[part] if isinstance(wire, ManagedComponent) else wire.patcher
