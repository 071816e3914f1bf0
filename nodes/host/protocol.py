"""What a node needs from its surroundings."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from ...glmimage_core.component import Component
from ...glmimage_core.glm_image.tiles import Tiling
from ...glmimage_core.progress import Progress
from .requests import SampleRequest

Result = TypeVar("Result")


class Host(Protocol):
    """What a node needs from its surroundings. A new family of models adds a request type, and no method.

    A wire is the value that travels between nodes for a component: the component itself, or the object through which
    ComfyUI manages it.
    """

    sampler_names: Sequence[str]  # the choices of GLM-Image Sampler
    saves_workflows: bool  # whether pictures carry the workflow that made them

    def checkpoint_roots(self) -> list[Path]:
        """The folders below which checkpoint folders lie."""

    def model_roots(self, kind: str) -> list[Path]:
        """The folders of one of ComfyUI's kinds of model.

        diffusion_models, text_encoders and vae hold single files of GLM-Image's components; LLM holds folders of
        vision-language models.
        """

    def loras(self) -> list[str]:
        """The names of the LoRA files."""

    def lora_file(self, name: str) -> Path:
        """The LoRA file of that name. Raises FileNotFoundError if there is no such file."""

    def input_folder(self) -> Path:
        """The folder of the files that a user gives."""

    def output_folder(self) -> Path:
        """The folder of the files that nodes write."""

    def saved(self, files: Sequence[Path]) -> Any:
        """Show the user the files that an output node without outputs has written. Returns what the node returns."""

    def device(self, choice: str = "default") -> torch.device:
        """The device for one of DEVICES; the default device if this machine has no such GPU."""

    def progress(self, label: str, unit: str = "") -> Progress:
        """A fresh progress callback for one stage. Calling it raises when the user has asked to stop.

        label: the stage's name, which the command line shows; in ComfyUI the node itself stands for it. unit: what is
        counted, if ComfyUI is to write speed and time left on the node; the command line measures both for every stage.
        """

    def say(self, text: str) -> None:
        """Show the user of the running node what came of it."""

    def warn(self, text: str) -> None:
        """Show the user of the running node a text that is not an error. Texts of `progress` and `say` leave it there."""

    def wire(self, component: Component, device: str = "default") -> Any:
        """The wire for a component fresh from disk that is to compute on one of DEVICES."""

    def component(self, wire: Any) -> Any:
        """The component on a wire; any other value comes back as it is."""

    def placed(self, wire: Any, working_bytes: int = 0, part: str = "model") -> AbstractContextManager[Component]:
        """Keep a part of a component on its device, with working_bytes free, for the length of a with block.

        part: a name in `Component.parts`, such as one half of an AR model.
        """

    async def run_in_background(self, wire: Any, working_bytes: int, part: str, work: Callable[[Component], Result]) -> Result:
        """Call work with the component placed as by `placed`, in the background if its device is not the default one.

        Other nodes run meanwhile.
        """

    def free_bytes(self, wire: Any) -> int | None:
        """Memory of its device that a placed component can use for its work, or None where that is unknown."""

    def for_size(self, model: Any, width: int, height: int) -> Any:
        """A MODEL of GLM-Image with the noise schedule for width x height pixels, for samplers other than ours."""

    def in_tiles(self, model: Any, tiling: Tiling) -> Any:
        """A MODEL of GLM-Image that paints in tiles what is larger than one, with any sampler. The given one is unchanged."""

    def with_lora(self, wire: Any, lora: dict[str, torch.Tensor], strength: float) -> Any:
        """A wire whose component has a LoRA, as `lora.match` gives it, applied to its weights. The given wire is unchanged."""

    def sample(self, model: Any, request: SampleRequest) -> torch.Tensor:
        """Answer a request with the sampler of its family.

        Returns latents [B, channels, height / 8, width / 8] float32 in the VAE's space, on the CPU.
        """
