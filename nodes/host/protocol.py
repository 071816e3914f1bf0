"""What a node needs from its surroundings."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from ...glmimage_core.component import Component
from ...glmimage_core.progress import Progress
from .requests import CogView3BaseRequest, CogView3Request, SampleRequest

Result = TypeVar("Result")


class Host(Protocol):
    """What a node needs from its surroundings.

    A wire is what travels between nodes for a component: the component itself, or what ComfyUI needs to manage it.
    """

    samplers: Sequence[str]

    def checkpoint_roots(self) -> list[Path]:
        """The folders below which checkpoints lie."""

    def model_roots(self, kind: str) -> list[Path]:
        """The folders for single files of a kind: diffusion_models, text_encoders or vae."""

    def loras(self) -> list[str]:
        """The names of the LoRA files there are."""

    def lora_file(self, name: str) -> Path:
        """The LoRA of that name. Raises FileNotFoundError where there is none."""

    def device(self, choice: str = "default") -> torch.device:
        """Where models compute, by one of DEVICES: the default one where there is no such GPU."""

    def progress(self, label: str, unit: str = "") -> Progress:
        """A fresh progress bar for one stage; it raises when the user has asked to stop. With a unit, speed is shown too."""

    def warn(self, text: str) -> None:
        """Tell the user of the running node something that is not an error."""

    def wire(self, component: Component, device: str = "default") -> Any:
        """What travels on the wire for a component fresh from disk that is to compute on one of DEVICES."""

    def component(self, wire: Any) -> Any:
        """The component on a wire; something else comes back as it is."""

    def placed(self, wire: Any, working_bytes: int = 0, part: str = "model") -> AbstractContextManager[Component]:
        """Have a part of a component on the device, with room to work, for the length of a with block.

        The part goes by its name in `Component.parts`: half an AR model, the whole of another.
        """

    async def run_in_background(self, wire: Any, working_bytes: int, part: str, work: Callable[[Component], Result]) -> Result:
        """The same for a function: it runs beside other nodes, where the component is not on the default device."""

    def free_bytes(self, wire: Any) -> int | None:
        """Memory of its device that a placed component can work with, or None where the device is the CPU."""

    def for_size(self, model: Any, width: int, height: int) -> Any:
        """A MODEL whose noise schedule is that of a picture of width x height pixels, for samplers other than ours."""

    def with_lora(self, wire: Any, lora: dict[str, torch.Tensor], strength: float) -> Any:
        """The component with a LoRA over its weights, as `lora.match` gives it. The one on the wire stays as it is."""

    def paint(self, model: Any, request: SampleRequest) -> torch.Tensor:
        """Latents [B, 16, height / 8, width / 8] in the VAE's space, on the CPU."""

    def paint_cogview3(self, model: Any, request: CogView3Request) -> torch.Tensor:
        """The same by CogView3-Plus."""

    def paint_cogview3_base(self, model: Any, request: CogView3BaseRequest) -> torch.Tensor:
        """The same by CogView3-Base, [B, 4, height / 8, width / 8]."""
