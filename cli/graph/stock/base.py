"""What ComfyUI's own nodes have here: fixed inputs, and the folders in which they read and write."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

MOST_PIXELS = 16384
"""ComfyUI's largest side of a picture."""


@dataclass(frozen=True)
class Folders:
    """Where pictures are read and written. `written` collects the paths of what was saved."""

    input: Path
    output: Path
    written: list[Path]

    @property
    def temp(self) -> Path:
        """Where previews go, since there is no screen to show them on."""
        return self.output / "preview"


class StockNode:
    """A node with fixed inputs. HIDDEN are those that the runner adds: its folders and the workflow in both formats."""

    REQUIRED: ClassVar[dict[str, tuple]] = {}
    OPTIONAL: ClassVar[dict[str, tuple]] = {}
    HIDDEN: ClassVar[dict[str, str]] = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": cls.REQUIRED, "optional": cls.OPTIONAL, "hidden": cls.HIDDEN}


def pixels(default: int, low: int = 0, high: int = MOST_PIXELS) -> tuple[str, dict]:
    """An input that counts pixels."""
    return ("INT", {"default": default, "min": low, "max": high})
