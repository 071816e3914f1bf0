"""Where the nodes run: inside ComfyUI or on their own. The only code that knows the difference."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from ...glmimage_core.cogview3.text import MicroConditions
from ...glmimage_core.component import Component
from ...glmimage_core.glm_image.denoise import Shortcuts
from ...glmimage_core.glm_image.prior import Prior
from ...glmimage_core.glm_image.references import Reference
from ...glmimage_core.progress import Progress

# Entries that Apply Prior puts into a conditioning
PRIOR_KEY = "glm_image_prior"
REFERENCES_KEY = "glm_image_references"
DROP_KEY = "glm_image_drop_prior"  # true where the prior only gives the size
# And CogView3 Encode Prompt
MICRO_CONDITIONS_KEY = "cogview3_micro_conditions"


class Painting(NamedTuple):
    """What GLM-Image Sampler is asked to paint.

    positive, negative: conditionings of one entry, the positive one with the prior and the references in it. latents and
    mask as `denoise.sample` takes them.
    """

    prior: Prior
    positive: list
    negative: list
    references: Sequence[Reference]
    seed: int
    batch: int
    steps: int
    cfg: float
    denoise: float
    latents: torch.Tensor | None
    mask: torch.Tensor | None
    sampler_name: str
    shortcuts: Shortcuts


class CogView3Painting(NamedTuple):
    """What CogView3-Plus Sampler is asked to paint: conditionings of one entry, and what `cogview3.sample` takes."""

    positive: list
    negative: list
    width: int
    height: int
    seed: int
    batch: int
    steps: int
    cfg: float
    denoise: float
    latents: torch.Tensor | None
    mask: torch.Tensor | None


class CogView3BasePainting(NamedTuple):
    """What CogView3-Base Sampler is asked to paint, or CogView3 Relay: in relay_steps, from latents of the enlarged picture."""

    positive: list
    negative: list
    width: int
    height: int
    seed: int
    batch: int
    steps: int
    cfg: float
    relay_steps: int | None = None
    latents: torch.Tensor | None = None
    mask: None = None


def micro_conditions_of(options: dict, width: int, height: int) -> MicroConditions:
    """What a conditioning says of its picture of so many pixels; sides of 0 are the picture's own."""
    original, cropped, target = options.get(MICRO_CONDITIONS_KEY, ((0, 0), (0, 0), (0, 0)))
    return MicroConditions((original[0] or height, original[1] or width), cropped, (target[0] or height, target[1] or width))


def applied_prior(options: dict, side: str) -> Prior:
    """The prior in a conditioning that is painted by one. Raises ValueError where none was applied to this side."""
    if options.get(DROP_KEY):
        raise ValueError(f"{side} is the negative output of Apply Prior, which has no plan; swap positive and negative")
    if PRIOR_KEY not in options:
        raise ValueError(
            f"the {side} conditioning carries no prior tokens, without which GLM-Image paints nothing; "
            "connect GLM-Image Apply Prior between prompt and sampler"
        )
    return options[PRIOR_KEY]


DEVICES = ("default", "cpu", *(f"gpu:{index}" for index in range(8)))
"""What a loader can be told of where its model computes; ComfyUI's own names."""

Result = TypeVar("Result")


def device_of(choice: str, default: torch.device) -> torch.device | None:
    """The device of one of DEVICES, or None where this machine has no such GPU. Raises ValueError for what is none of them."""
    if choice not in DEVICES:
        raise ValueError(f"device is {choice!r}; choose from {', '.join(DEVICES)}")
    if choice == "default":
        return default
    if choice == "cpu":
        return torch.device("cpu")
    index = int(choice.removeprefix("gpu:"))
    if default.index is None:  # of a kind of which there is one
        return default if index == 0 and default.type != "cpu" else None
    there = default.type != "cpu" and index < torch.get_device_module(default).device_count()
    return torch.device(default.type, index) if there else None


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

    async def aside(self, wire: Any, working_bytes: int, part: str, work: Callable[[Component], Result]) -> Result:
        """The same for a function: it runs beside other nodes, where the component is not on the default device."""

    def free_bytes(self, wire: Any) -> int | None:
        """Memory of its device that a placed component can work with, or None where the device is the CPU."""

    def for_size(self, model: Any, width: int, height: int) -> Any:
        """A MODEL whose noise schedule is that of a picture of width x height pixels, for samplers other than ours."""

    def with_lora(self, wire: Any, lora: dict[str, torch.Tensor], strength: float) -> Any:
        """The component with a LoRA over its weights, as `lora.match` gives it. The one on the wire stays as it is."""

    def paint(self, model: Any, painting: Painting) -> torch.Tensor:
        """Latents [B, 16, height / 8, width / 8] in the VAE's space, on the CPU."""

    def paint_cogview3(self, model: Any, painting: CogView3Painting) -> torch.Tensor:
        """The same by CogView3-Plus."""

    def paint_cogview3_base(self, model: Any, painting: CogView3BasePainting) -> torch.Tensor:
        """The same by CogView3-Base, [B, 4, height / 8, width / 8]."""


def warn_without(choice: str, host: Host) -> None:
    """Warn of a choice of a device that this machine does not have."""
    default = host.device()
    if device_of(choice, default) is None:
        host.warn(f"there is no {choice} on this machine; {default} is taken")


def _find_host() -> Host:
    if "comfy.model_management" in sys.modules:  # ComfyUI imports it long before any pack
        from .comfyui import ComfyHost

        return ComfyHost()
    from .standalone import StandaloneHost

    return StandaloneHost()


host = _find_host()
