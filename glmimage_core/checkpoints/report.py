"""The report on a component: what its file headers and its config say, and what is wrong with it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..placement.compute import emulates
from ..placement.residency import free_device_bytes
from ..weights.external import LIBRARY_MODULES, check_library_device, without_prefix
from ..weights.formats import FORMAT_KEY, FORMATS, STORED_SUFFIXES, Header, check_format, stored_headers
from .build import check_libraries
from .folders import read_json, weight_files
from .header import gguf_file, read_gguf_header, read_header
from .settings import check_layers

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""The precisions that models compute in, by name."""

SHARE_FOR_FLOAT32 = 0.25  # of the free memory: what a component may take to compute in float32 unasked
STORED_ONLY = {torch.float8_e4m3fn: torch.bfloat16, torch.float8_e5m2: torch.bfloat16, torch.float64: torch.float32}
"""Precisions that weights are stored in and no model computes in, and what each becomes."""


class Stored(NamedTuple):
    """A tensor in a file: its dtype or its quantization, how many parameters it holds, its bytes.

    Of a quantized weight's tensors, the codes count as parameters; codes and scales count as bytes.
    """

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

    name: of the component. library: of its class, transformers or diffusers, where that matters. tensors go by their names.
    problems is empty for a sound component; each problem is an error to raise or to show.
    """

    name: str
    class_name: str
    library: str = ""
    disk_bytes: int = 0
    tensors: dict[str, Stored] = field(default_factory=dict)
    problems: list[ValueError | FileNotFoundError | ImportError] = field(default_factory=list)

    def add_tensors(self, headers: dict[str, Header], formats: dict[str, str]) -> None:
        """Add stored tensors by name. formats: the quantization of each quantized layer, by the layer's name."""
        for key, header in headers.items():
            layer, _, suffix = key.rpartition(".")
            if layer not in formats or suffix not in STORED_SUFFIXES:
                self.tensors[key] = Stored(header.dtype, math.prod(header.shape), header.bytes)
                continue
            quantization = formats[layer]
            parameters = math.prod(header.shape) * FORMATS[quantization].packed if suffix == "weight" else 0
            self.tensors[key] = Stored(quantization, parameters, 0 if suffix == FORMAT_KEY else header.bytes)

    def below(self, modules: Sequence[str]) -> "ComponentReport":
        """The report on some modules of the component, by their names in the model."""
        prefixes = tuple(f"{module}." for module in modules)
        return replace(self, tensors={key: stored for key, stored in self.tensors.items() if key.startswith(prefixes)})

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
                total = sums.get(kind, Quantized())
                sums[kind] = Quantized(total.parameters + parameters, total.bytes + size)
        return sums

    @property
    def parameters(self) -> int:
        return sum(self.dtypes.values()) + sum(quantized.parameters for quantized in self.quantized.values())

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype that holds most of the parameters that are not quantized."""
        return max(self.dtypes, key=self.dtypes.get)

    @property
    def quantized_by(self) -> str:
        """The external library that quantized the weights, if any."""
        return next((kind for kind in self.quantized if kind in LIBRARY_MODULES), "")

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the weights in memory. dtype: of the weights that are not quantized."""
        return sum(self.dtypes.values()) * dtype.itemsize + sum(quantized.bytes for quantized in self.quantized.values())


def check_class(config: dict, class_name: str, source: Path | str) -> None:
    """Raise ValueError where a config, read from `source`, names another class."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise ValueError(f"{source} names {architectures!r} as architectures, which is no list")
    for name in [config.get("_class_name"), *architectures]:
        if name not in (None, class_name):
            raise ValueError(f"{source} is of a {name}, not of a {class_name}")


def read_headers(folder: Path, report: ComponentReport) -> tuple[dict[str, Header], dict[str, str]]:
    """The headers of all stored tensors by name, and the quantization of each quantized layer by its name.

    Adds the files' bytes to the report. Raises FileNotFoundError for a missing file, ValueError for a broken one.
    """
    if file := gguf_file(folder):
        report.disk_bytes = file.stat().st_size
        return read_gguf_header(file).tensors, {}
    files = weight_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} is missing its weights (*.safetensors)")
    headers: dict[str, Header] = {}
    formats: dict[str, str] = {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, which its index names; download it too")
        report.disk_bytes += file.stat().st_size
        file_header = read_header(file)
        headers |= file_header.tensors
        formats |= file_header.formats
    return headers, formats


def add_external_tensors(
    report: ComponentReport, headers: dict[str, Header], *, method: str, model: torch.nn.Module, folder: Path
) -> None:
    """Add the stored tensors of a component that an external library, by its `method`, quantized in part.

    Tensors of the shape and dtype that the model has at full width count as not quantized. model: the component on the meta
    device. Raises ValueError where a GGUF file in the folder lacks tensors.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if method == "gguf":
        headers = without_prefix(headers, shapes)
    full_width = {key for key, header in headers.items() if header.shape == shapes.get(key) and header.dtype in DTYPES.values()}
    if method == "gguf" and (missing := sorted(set(shapes) - set(headers))):
        raise ValueError(
            f"{folder} does not hold a whole {report.class_name}: {len(missing)} tensors not found, such as {missing[0]}"
        )
    if method == "gguf":
        compare_with_config(model, {key: header.shape for key, header in headers.items()}, folder)
    for key in shapes | headers:
        kind = method
        if key in full_width:
            # A GGUF file holds most of these in float32; diffusers computes with them in the precision of the others.
            kind = torch.bfloat16 if method == "gguf" else headers[key].dtype
        parameters = math.prod(shapes[key]) if key in shapes else 0
        report.tensors[key] = Stored(kind, parameters, headers[key].bytes if key in headers else 0)


def unquantized_shapes(
    model: torch.nn.Module, headers: dict[str, Header], formats: dict[str, str], source: Path
) -> dict[str, tuple[int, ...]]:
    """The shapes of the stored tensors before quantization: one weight in place of its codes, scales and format.

    Raises ValueError for a layer that is no linear one, and for codes or scales of a wrong shape or dtype.
    """
    model_shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    numbers = {*DTYPES.values(), *STORED_ONLY}
    for key, header in headers.items():
        layer, _, suffix = key.rpartition(".")
        if key in model_shapes and header.dtype not in numbers and not (layer in formats and suffix in STORED_SUFFIXES):
            raise ValueError(f"{source} has {key} as {header}, which no weight can be; it is quantized in a way unknown here")
    shapes = {key: header.shape for key, header in headers.items()}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for layer, quantization in formats.items():
        if layer not in linear:
            raise ValueError(f"{source} has {layer} as {quantization}, which is no linear layer; quantize it again")
        weight, scale, format_key = (f"{layer}.{suffix}" for suffix in STORED_SUFFIXES)
        expected = stored_headers(layer, model_shapes[weight], quantization)
        if headers.get(weight) != expected[weight] or not _is_scale(headers.get(scale), expected[scale]):
            wrong = scale if headers.get(weight) == expected[weight] else weight
            raise ValueError(
                f"{source}: {wrong} should be {expected[wrong]} for {quantization}, and is {headers.get(wrong, 'missing')}; "
                "quantize the original again"
            )
        del shapes[scale]
        shapes.pop(format_key, None)
        shapes[weight] = model_shapes[weight]
    return shapes


def _is_scale(found: Header | None, expected: Header) -> bool:
    """Whether scales are as many as expected, or one for all, in a precision that may be widened."""
    if found is None or found.dtype not in DTYPES.values():
        return False
    return math.prod(found.shape) in (1, math.prod(expected.shape))


def compare_with_config(model: torch.nn.Module, shapes: dict[str, tuple[int, ...]], source: Path | str) -> None:
    """Raise ValueError where the stored shapes are not those of the model that the config in `source` describes."""
    names_of: dict[int, list[str]] = {}  # tied weights are one parameter under several names; a file needs one of them
    expected = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        names_of.setdefault(id(tensor), []).append(key)
        expected[key] = tuple(tensor.shape)
    missing = [names[0] for names in names_of.values() if not any(name in shapes for name in names)]
    # The libraries rename what their older releases saved, so an unknown name of the same shape may be the missing one.
    renamed = Counter(shape for key, shape in shapes.items() if key not in expected)
    missing = [key for key in missing if not _take(renamed, expected[key])]
    wrong = [key for key in expected if key in shapes and shapes[key] != expected[key]]
    if not missing and not wrong:
        return
    example = (
        f"{wrong[0]} is {list(shapes[wrong[0]])} in the file and {list(expected[wrong[0]])} by the config"
        if wrong
        else f"{missing[0]} is not in the file"
    )
    raise ValueError(
        f"{source} does not match its weights: {len(missing)} tensors not found, {len(wrong)} of another shape; {example}"
    )


def _take(counter: Counter, key) -> bool:
    """Take one of a key out of a counter; whether there was one."""
    counter[key] -= 1
    return counter[key] >= 0


def resolve_dtype(choice: str, report: ComponentReport, device: torch.device) -> torch.dtype:
    """The dtype of a choice; auto is the precision that the weights are stored in, or the one in STORED_ONLY.

    device: the one that computes. Where it only emulates that precision and there is memory to spare, auto is float32, except for
    weights that another library quantized. Raises ValueError where the models cannot run in the stored precision.
    """
    if choice != "auto":
        return DTYPES[choice]
    stored = STORED_ONLY.get(report.stored_dtype, report.stored_dtype)
    if stored not in DTYPES.values():
        raise ValueError(f"{report.name} is stored as {stored}, in which it cannot run; choose {', '.join(DTYPES)}")
    if report.quantized_by or not emulates(device, stored):
        return stored
    fits = report.weight_bytes(torch.float32) <= SHARE_FOR_FLOAT32 * free_device_bytes(device)
    return torch.float32 if fits else stored


def check_quantization(report: ComponentReport, quantization: str, device: torch.device) -> None:
    """Raise where a device cannot run a component in a quantization: ValueError, or ImportError with what to install."""
    for stored in report.quantized:
        if quantization not in ("none", stored):
            raise ValueError(f"{report.name} is stored as {stored}; choose quantization none, which keeps it")
        if stored in LIBRARY_MODULES:
            check_library_device(stored, report.library, device)
        else:
            check_format(stored, device)
    check_format(quantization, device)


def inspect_stored(folder: Path, name: str, class_name: str) -> ComponentReport:
    """The report on one component of a folder. Reads no weights.

    Raises FileNotFoundError, ValueError or ImportError where it is not sound.
    """
    check_libraries()
    report = ComponentReport(name, class_name)
    file = folder / name / "config.json"
    config = read_json(file)
    check_class(config, class_name, file)
    headers, formats = read_headers(folder / name, report)
    check_layers(config, len(headers), file)
    report.add_tensors(headers, formats)
    return report
