"""What the nodes share that load a checkpoint: their inputs, and a check before a graph runs.

ComfyUI repeats what VALIDATE_INPUTS answers at every input that it takes by position, and passes it no others. So each takes by
position the one input whose faults are told before a graph runs. What it takes by keyword is checked then by the command line,
and by ComfyUI when the node runs.
"""

from abc import ABC, abstractmethod
from pathlib import Path

from ..glmimage_core.checkpoints.report import ComponentReport, check_quantization
from .host import host
from .sockets import CATEGORY, validation_message
from .widgets import DEVICE, DTYPE, QUANTIZATION

NOTHING = "none"  # the choice where there is no checkpoint: the front end shows an empty list as undefined


class CheckpointLoader(ABC):
    """A loader names its checkpoints, finds one by its name, and inspects it without reading weights."""

    CATEGORY = CATEGORY
    FUNCTION = "load"

    @classmethod
    @abstractmethod
    def names(cls) -> list[str]:
        """The choices of the checkpoint input."""

    @classmethod
    @abstractmethod
    def where(cls) -> str:
        """The tooltip of the checkpoint input."""

    @classmethod
    @abstractmethod
    def find(cls, checkpoint: str) -> Path:
        """The folder or file of that name. Raises FileNotFoundError that says where it looked."""

    @classmethod
    @abstractmethod
    def inspect(cls, path: Path) -> ComponentReport | None:
        """What is stored there, where one report tells it. Raises FileNotFoundError, ValueError or ImportError for faults."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"checkpoint": (cls.names() or [NOTHING], {"tooltip": cls.where()}), "dtype": DTYPE},
            "optional": {"device": DEVICE},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint):
        """Read configs and file headers before a graph runs, so that no work is lost to a broken file."""
        return validation_message(lambda: cls.check(checkpoint))

    @classmethod
    def check(cls, checkpoint: str | None, quantization: str | None = "none", device: str | None = "default") -> None:
        """Raise what is wrong with the values of the widgets. None is a value over a link, unknown before the node runs."""
        if checkpoint is None:
            return
        report = cls.inspect(cls.find(checkpoint))
        if report is not None:
            check_quantization(report, quantization or "none", host.device(device or "default"))


class QuantizingLoader(CheckpointLoader):
    """A loader of a big model, which can quantize the weights."""

    @classmethod
    def INPUT_TYPES(cls):
        inputs = super().INPUT_TYPES()
        return inputs | {"required": inputs["required"] | {"quantization": QUANTIZATION}}

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint, *, quantization="none", device="default"):
        """Also check that installation and device can compute with weights of that quantization."""
        return validation_message(lambda: cls.check(checkpoint, quantization, device))
