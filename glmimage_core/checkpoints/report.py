"""What a component's headers and config say of it, and what is wrong with it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..weights.external import MODULES, check_library_device
from ..weights.formats import FORMATS, MARK, PARTS, Header, check_format, stored_headers
from ..weights.linear import quantizable
from .build import check_libraries
from .folders import read_json, weight_files
from .header import gguf_file, gguf_headers, read_header

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Stored(NamedTuple):
    """A tensor in a file: how many parameters it holds, in its dtype or in the quantization that it is a part of."""

    kind: torch.dtype | str
    parameters: int
    bytes: int


class Quantized(NamedTuple):
    """How many parameters are stored in a quantization, in how many bytes."""

    parameters: int = 0
    bytes: int = 0


@dataclass
class ComponentReport:
    """What a component's headers and config say, without its weights.

    tensors go by their names. problems is empty for a sound component; each is an error to raise or to show.
    """

    name: str
    class_name: str
    disk_bytes: int = 0
    tensors: dict[str, Stored] = field(default_factory=dict)
    problems: list[ValueError | FileNotFoundError | ImportError] = field(default_factory=list)

    def count(self, headers: dict[str, Header], marks: dict[str, str]) -> None:
        """Add tensors to what there is. marks: the quantization of each layer that is quantized."""
        for key, header in headers.items():
            layer, _, part = key.rpartition(".")
            if layer not in marks or part not in PARTS:
                self.tensors[key] = Stored(header.dtype, math.prod(header.shape), header.bytes)
                continue
            parameters = math.prod(header.shape) * FORMATS[marks[layer]].packed if part == "weight" else 0
            self.tensors[key] = Stored(marks[layer], parameters, 0 if part == MARK else header.bytes)

    def below(self, modules: Sequence[str]) -> "ComponentReport":
        """The report of some modules of the component, by their names in the model."""
        below = tuple(f"{module}." for module in modules)
        return replace(self, tensors={key: stored for key, stored in self.tensors.items() if key.startswith(below)})

    @property
    def dtypes(self) -> dict[torch.dtype, int]:
        """How many parameters are stored in each dtype."""
        counts: Counter[torch.dtype] = Counter()
        for kind, parameters, _ in self.tensors.values():
            if isinstance(kind, torch.dtype):
                counts[kind] += parameters
        return counts

    @property
    def quantized(self) -> dict[str, Quantized]:
        """The parameters that are stored in each quantization, and their bytes."""
        sums: dict[str, Quantized] = {}
        for kind, parameters, size in self.tensors.values():
            if isinstance(kind, str):
                before = sums.get(kind, Quantized())
                sums[kind] = Quantized(before.parameters + parameters, before.bytes + size)
        return sums

    @property
    def parameters(self) -> int:
        return sum(self.dtypes.values()) + sum(part.parameters for part in self.quantized.values())

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype that holds most of the parameters that are not quantized."""
        return max(self.dtypes, key=self.dtypes.get)

    @property
    def quantized_by(self) -> str:
        """The library other than this one that quantized the weights, if any."""
        return next((name for name in self.quantized if name in MODULES), "")

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the weights in memory, with those that are not quantized in a dtype."""
        return sum(self.dtypes.values()) * dtype.itemsize + sum(part.bytes for part in self.quantized.values())


def check_class(config: dict, class_name: str, source: Path | str) -> None:
    """Raise ValueError where a config, read from `source`, says that it is another class's."""
    for stated in [config.get("_class_name"), *(config.get("architectures") or [])]:
        if stated not in (None, class_name):
            raise ValueError(f"{source} is of a {stated}, not of a {class_name}")


def read_headers(folder: Path, report: ComponentReport) -> tuple[dict[str, Header], dict[str, str]]:
    """The headers of all stored tensors by name, and the quantization of each quantized layer by its name.

    Raises FileNotFoundError for a missing file, ValueError for a broken one.
    """
    if file := gguf_file(folder):
        report.disk_bytes = file.stat().st_size
        return gguf_headers(file), {}
    files = weight_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} is missing its weights (*.safetensors)")
    headers: dict[str, Header] = {}
    marks: dict[str, str] = {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, which its index names; download it again")
        report.disk_bytes += file.stat().st_size
        header = read_header(file)
        headers |= header.tensors
        marks |= header.marks
    return headers, marks


def count_external(
    report: ComponentReport, headers: dict[str, Header], method: str, model: torch.nn.Module, folder: Path
) -> None:
    """Add tensors of which some are quantized by another library, by its name `method`: those at full width count as such.

    model: the component on the meta device. Raises ValueError where a GGUF file in the folder lacks tensors.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    wide = {key for key, header in headers.items() if header.shape == shapes.get(key) and header.dtype in DTYPES.values()}
    if missing := sorted(set(shapes) - set(headers)) if method == "gguf" else []:
        raise ValueError(
            f"{folder} does not hold a whole {report.class_name}: {len(missing)} tensors not found, such as {missing[0]}"
        )
    for key in shapes | headers:
        kind = method
        if key in wide:
            # diffusers computes with what a GGUF file holds at full width, mostly in float32, in the precision of the others
            kind = torch.bfloat16 if method == "gguf" else headers[key].dtype
        parameters = math.prod(shapes[key]) if key in shapes else 0
        report.tensors[key] = Stored(kind, parameters, headers[key].bytes if key in headers else 0)


def unquantized_shapes(
    model: torch.nn.Module, headers: dict[str, Header], marks: dict[str, str], source: Path
) -> dict[str, tuple[int, ...]]:
    """The shapes of stored tensors, with each quantized weight as the one it was.

    Raises ValueError where the parts of one are not right.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    stored = {key: header.shape for key, header in headers.items()}
    layers = quantizable(model)
    for layer, quantization in marks.items():
        parts = [f"{layer}.{part}" for part in PARTS]
        if layer not in layers:
            raise ValueError(f"{source} has {layer} quantized, which is no layer of it that is")
        wanted = stored_headers(layer, expected[parts[0]], quantization)
        for part in parts[:2]:
            if headers.get(part) != wanted[part]:
                raise ValueError(
                    f"{source} is damaged: {part} should be {wanted[part]} for {quantization}, "
                    f"and is {headers.get(part, 'missing')}; download or quantize it again"
                )
        for part in parts:
            del stored[part]
        stored[parts[0]] = expected[parts[0]]
    return stored


def compare_with_config(model: torch.nn.Module, stored: dict[str, tuple[int, ...]], source: Path | str) -> None:
    """Raise ValueError where the stored shapes are not those of the model that the config in `source` describes."""
    by_parameter: dict[int, list[str]] = {}  # tied weights are one parameter under several names; one name suffices
    expected = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        by_parameter.setdefault(id(tensor), []).append(key)
        expected[key] = tuple(tensor.shape)
    missing = [keys[0] for keys in by_parameter.values() if not any(key in stored for key in keys)]
    # The libraries rename what older releases of theirs saved, so an unknown name of the same shape may be the one missed.
    renamed = Counter(shape for key, shape in stored.items() if key not in expected)
    missing = [key for key in missing if not _take(renamed, expected[key])]
    wrong = [key for key in expected if key in stored and stored[key] != expected[key]]
    if not missing and not wrong:
        return
    example = (
        f"{wrong[0]} is {list(stored[wrong[0]])} in the file and {list(expected[wrong[0]])} by the config"
        if wrong
        else f"{missing[0]} is not in the file"
    )
    raise ValueError(
        f"{source} does not match its weights: {len(missing)} tensors not found, {len(wrong)} of another shape; {example}"
    )


def _take(counter: Counter, thing) -> bool:
    """Take one of a thing out of a counter; whether there was one."""
    counter[thing] -= 1
    return counter[thing] >= 0


def resolve_dtype(choice: str, report: ComponentReport) -> torch.dtype:
    """The dtype of a choice; auto is the precision the weights are stored in (bfloat16 in the released checkpoint).

    Raises ValueError where that is one in which the models cannot run.
    """
    if choice != "auto":
        return DTYPES[choice]
    if report.stored_dtype not in DTYPES.values():
        raise ValueError(f"{report.name} is stored as {report.stored_dtype}, in which it cannot run; choose {', '.join(DTYPES)}")
    return report.stored_dtype


def check_quantization(report: ComponentReport, quantization: str, device: torch.device) -> None:
    """Raise where a component cannot be quantized so or computed with there: ValueError, or ImportError with what to install."""
    for stored in report.quantized:
        if quantization not in ("none", stored):
            raise ValueError(f"{report.name} is stored as {stored}; choose quantization none, which keeps it")
        if stored in MODULES:
            check_library_device(stored, report.name, device)
        else:
            check_format(stored, device)
    check_format(quantization, device)


def inspect_stored(folder: Path, name: str, class_name: str) -> ComponentReport:
    """What is stored of one part. Raises FileNotFoundError, ValueError or ImportError where it is not sound; reads no weights."""
    check_libraries()
    report = ComponentReport(name, class_name)
    config = folder / name / "config.json"
    check_class(read_json(config), class_name, config)
    report.count(*read_headers(folder / name, report))
    return report
