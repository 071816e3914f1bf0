"""Tables: printed as Markdown or as plain text, saved as Markdown or JSON. Imports no torch, so that any command may use it."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FORMATS = (".json", ".md")

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows with the same keys, which name the columns. None stands for a value that was not measured."""

    title: str
    rows: list[dict[str, Value]]

    def markdown(self) -> str:
        cells, widths = self._cells()
        lines = [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        rule = " | ".join("-" * (width - 1) + ":" for width in widths)
        return "\n".join([self.title, "", *(f"| {line} |" for line in (lines[0], rule, *lines[1:]))])

    def text(self, left: Collection[str] = ()) -> str:
        """Without the title, for a terminal. Columns are flush right, but for those named in `left`."""
        cells, widths = self._cells()
        columns = [
            [cell.ljust(width) if name in left else cell.rjust(width) for cell in column]
            for name, width, column in zip(self.rows[0], widths, zip(*cells, strict=True), strict=True)
        ]
        return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))

    def _cells(self) -> tuple[list[list[str]], list[int]]:
        """The header and the rows as text, and the width of each column."""
        cells = [list(self.rows[0]), *([_shown(value) for value in row.values()] for row in self.rows)]
        return cells, [max(map(len, column)) for column in zip(*cells, strict=True)]


def _shown(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "-" if value is None else str(value)


def compared(ours: float | None, reference: float | None, floor: float | None, unit: str) -> dict[str, Value]:
    """The columns of a measured time: itself, how many times faster than the reference, and how many times the floor."""
    return {
        unit: ours,
        "reference": reference,
        "reference / this": reference / ours if reference and ours else None,
        "floor": floor,
        "this / floor": ours / floor if floor and ours else None,
    }


def save(file: Path, about: dict[str, Value], tables: Sequence[Table]) -> None:
    """Write tables in the format of the file's suffix, one of FORMATS."""
    if file.suffix == ".json":
        text = json.dumps({"environment": about, "tables": [asdict(table) for table in tables]}, indent=2)
    else:
        text = "\n\n".join([", ".join(f"{key} {value}" for key, value in about.items()), *(table.markdown() for table in tables)])
    write(file, text)


def write(file: Path, text: str) -> None:
    """Write a file all at once: whoever is stopped meanwhile leaves the file of before."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text + "\n", "utf-8")
    part.replace(file)
