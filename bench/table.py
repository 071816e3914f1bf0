"""Tables of results: printed as Markdown, saved as Markdown or JSON."""

import json
import platform
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

FORMATS = (".json", ".md")

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows with equal keys, the columns. A value that was not measured is None."""

    title: str
    rows: list[dict[str, Value]]

    def markdown(self) -> str:
        cells = [list(self.rows[0]), *([_shown(value) for value in row.values()] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        rule = " | ".join("-" * (width - 1) + ":" for width in widths)
        return "\n".join([self.title, "", *(f"| {line} |" for line in (lines[0], rule, *lines[1:]))])


def _shown(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "-" if value is None else str(value)


def compared(ours: float, reference: float | None, floor: float | None, unit: str) -> dict[str, Value]:
    """The columns of a measured time: itself, how many times faster than the reference, and how many times the floor."""
    return {
        unit: ours,
        "reference": reference,
        "reference / this": reference / ours if reference else None,
        "floor": floor,
        "this / floor": ours / floor if floor else None,
    }


def environment(name: str, options: Namespace) -> dict[str, Value]:
    """The settings, device and versions on which the figures depend."""
    return {
        "bench": name,
        "size": options.size,
        "dtype": str(options.dtype).removeprefix("torch."),
        "device": _device_name(options.device),
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "seed": options.seed,
        "torch": str(torch.__version__),  # names the build, such as 2.13.0+cu130; the package's metadata may not
        **{library: version(library) for library in ("transformers", "diffusers")},
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def save(file: Path, about: dict[str, Value], tables: Sequence[Table]) -> None:
    """Write tables in the format of the file's suffix, one of FORMATS."""
    if file.suffix == ".json":
        text = json.dumps({"environment": about, "tables": [asdict(table) for table in tables]}, indent=2)
    else:
        text = "\n\n".join([", ".join(f"{key} {value}" for key, value in about.items()), *(table.markdown() for table in tables)])
    file.write_text(text + "\n", "utf-8")
