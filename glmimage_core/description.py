"""What a checkpoint holds, from its configs and file headers: everything that can be wrong with it is found before any weight is
read.
"""

import importlib
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from .folders import LAYOUT, MODEL_CLASSES, PIPELINE_CLASS, SIDE_FILES, is_checkpoint, read_json, weight_files
from .foreign import gguf_file, gguf_headers, quant_method
from .prior import HALVES
from .schedule import Shift
from .vae import LatentSpace
from .weights.external import MODULES, check_library
from .weights.formats import FORMATS, MARK, PARTS, Header, check_installed, read_mark, stored_headers
from .weights.linear import quantizable

REQUIRED_LIBRARIES = {"transformers": (5, 1), "diffusers": (0, 37)}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SIDE_OF = {"vision_language_encoder": ("processor",), "text_encoder": ("tokenizer",)}


def check_libraries() -> None:
    """Raise ImportError, with what to install, when transformers or diffusers is missing or too old."""
    for library, needed in REQUIRED_LIBRARIES.items():
        wanted = ".".join(map(str, needed))
        try:
            installed = version(library)
        except PackageNotFoundError:
            raise ImportError(f"GLM-Image needs {library} {wanted} or newer, which is missing: pip install -U {library}")
        if tuple(int(part) for part in installed.split(".")[:2]) < needed:
            raise ImportError(f"GLM-Image needs {library} {wanted} or newer, not {installed}: pip install -U {library}")


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

    def part(self, name: str) -> "ComponentReport":
        """What is said of one part of the component, by its name in `Component.parts`."""
        if name not in HALVES:
            return self
        below = tuple(f"{module}." for module in HALVES[name].holds)
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


def describe(folder: Path) -> list[ComponentReport]:
    """Report on every component of a checkpoint; what is missing or broken is in the reports' problems."""
    models = [describe_model(folder, name) for name in MODEL_CLASSES]
    side = []
    for name in SIDE_FILES:
        report = ComponentReport(name, "tokenizer" if name == "tokenizer" else "GlmImageProcessor")
        if (folder / name).is_dir():
            report.disk_bytes = sum(file.stat().st_size for file in (folder / name).iterdir() if file.is_file())
        report.problems += side_problems(folder, name)
        side.append(report)
    return models + side


def side_problems(folder: Path, name: str) -> list[ValueError | FileNotFoundError]:
    """What is missing or broken in the folder of a tokenizer or processor."""
    missing = [folder / name / needed for needed in SIDE_FILES[name] if not (folder / name / needed).is_file()]
    problems: list[ValueError | FileNotFoundError] = [FileNotFoundError(f"{file} is missing; {LAYOUT}") for file in missing]
    for config in sorted((folder / name).glob("*config.json")):
        try:
            read_json(config)
        except ValueError as error:
            problems.append(error)
    return problems


def describe_model(folder: Path, name: str) -> ComponentReport:
    """Report on one model component, comparing the headers of its files with the shapes its config implies.

    Looking again at files that have not changed costs nothing, so a graph can check its loaders every time it is queued.
    """
    files = sorted(file for file in (folder / name).glob("*") if file.is_file())
    stamp = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return _describe_model(folder, name, stamp)


@lru_cache(maxsize=64)
def _describe_model(folder: Path, name: str, stamp: tuple) -> ComponentReport:
    report = ComponentReport(name, MODEL_CLASSES[name][1])
    try:
        config_file = folder / name / "config.json"
        check_class(read_json(config_file), report.class_name, config_file)
        method = quant_method(folder / name)
        headers, marks = read_headers(folder / name, report)
        if method:
            _count_foreign(folder, name, method, headers, report)
            check_library(method)
        else:
            report.count(headers, marks)
            if marks:
                check_installed()
            model = skeleton(folder, name)
            compare_with_config(model, unquantized_shapes(model, headers, marks, folder / name), config_file)
    except (FileNotFoundError, ValueError, ImportError) as error:
        report.problems.append(error)
    return report


def check_class(config: dict, class_name: str, source: Path | str) -> None:
    """Raise ValueError where a config, read from `source`, says that it is another class's."""
    for stated in [config.get("_class_name"), *(config.get("architectures") or [])]:
        if stated not in (None, class_name):
            raise ValueError(f"{source} is of a {stated}, not of a {class_name}")


def check_model(folder: Path, name: str) -> ComponentReport:
    """The report of a sound component. Raises FileNotFoundError or ValueError with the first problem of another."""
    check_libraries()
    if not is_checkpoint(folder):
        raise ValueError(f"{folder / 'model_index.json'} does not name a {PIPELINE_CLASS}; {LAYOUT}")
    report = describe_model(folder, name)
    problems = report.problems + [problem for side in SIDE_OF.get(name, ()) for problem in side_problems(folder, side)]
    if problems:
        raise type(problems[0])(str(problems[0]))  # a fresh one: the report is kept
    if name in ("transformer", "vae"):
        latent_space(folder)
        scheduler_shift(folder)
    return report


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


class FileHeader(NamedTuple):
    """What a safetensors file says: its tensors by name, the quantization of each layer that is quantized, and its metadata."""

    tensors: dict[str, Header]
    marks: dict[str, str]
    metadata: dict[str, str]


def read_header(file: Path) -> FileHeader:
    """Raises ValueError for a file that is truncated or no safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            pieces = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118, not a dict
            headers = {
                key: Header(_SAFETENSORS_DTYPES.get(piece.get_dtype(), torch.uint8), tuple(piece.get_shape()))
                for key, piece in pieces.items()
            }
            layers = [key.removesuffix(f".{MARK}") for key in headers if key.endswith(f".{MARK}")]
            marks = {layer: read_mark(tensors.get_tensor(f"{layer}.{MARK}")) for layer in layers}
            return FileHeader(headers, marks, tensors.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or corrupt ({error}); download it again") from error


def _count_foreign(folder: Path, name: str, method: str, headers: dict[str, Header], report: ComponentReport) -> None:
    """Count what is stored at full width as such, and all else as quantized by that library."""
    model = skeleton(folder, name)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    wide = {key for key, header in headers.items() if header.shape == shapes.get(key) and header.dtype in DTYPES.values()}
    if missing := sorted(set(shapes) - set(headers)) if method == "gguf" else []:
        raise ValueError(f"{folder / name} does not hold a whole DiT: {len(missing)} tensors not found, such as {missing[0]}")
    for key in shapes | headers:
        kind = method
        if key in wide:
            # diffusers computes with what a GGUF file holds at full width, mostly in float32, in the precision of the others
            kind = torch.bfloat16 if method == "gguf" else headers[key].dtype
        parameters = math.prod(shapes[key]) if key in shapes else 0
        report.tensors[key] = Stored(kind, parameters, headers[key].bytes if key in headers else 0)


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "U8": torch.uint8,
}


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


def skeleton(folder: Path, name: str, buffers: bool = False) -> torch.nn.Module:
    """The component built from its config: shapes without memory, but for its buffers if asked.

    Raises ValueError for a senseless config.
    """
    config_file = folder / name / "config.json"
    return build(name, read_json(config_file), config_file, buffers=buffers)


def model_class_of(name: str) -> type[torch.nn.Module]:
    """The class that a component is built as."""
    if name == "transformer":
        from .transformer import GlmImageDit

        return GlmImageDit
    library, class_name = MODEL_CLASSES[name]
    return getattr(importlib.import_module(library), class_name)


def build(
    name: str,
    config: dict,
    source: Path | str,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
    buffers: bool = False,
) -> torch.nn.Module:
    """A component of a config, read from `source`, without its weights: on the meta device shapes, elsewhere any numbers.

    With `buffers`, only what is no buffer is without. Raises ValueError for a senseless config.
    """
    check_libraries()
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError

    library, class_name = MODEL_CLASSES[name]
    model_class = model_class_of(name)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False) if buffers else torch.device(device):
            if library == "transformers":
                return model_class(model_class.config_class.from_dict(config))
            return model_class.from_config(config)
    except (StrictDataclassError, TypeError, ValueError, KeyError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        raise ValueError(f"{source} describes no {class_name} that can be built: {error}") from error
    finally:
        torch.set_default_dtype(before)


def resolve_dtype(choice: str, report: ComponentReport) -> torch.dtype:
    """The dtype of a choice; auto is the precision the weights are stored in (bfloat16 in the released checkpoint).

    Raises ValueError where that is one in which the models cannot run.
    """
    if choice != "auto":
        return DTYPES[choice]
    if report.stored_dtype not in DTYPES.values():
        raise ValueError(f"{report.name} is stored as {report.stored_dtype}, in which it cannot run; choose {', '.join(DTYPES)}")
    return report.stored_dtype


def latent_space(folder: Path) -> LatentSpace:
    """The mean and standard deviation of each latent channel, from the VAE's config."""
    file = folder / "vae" / "config.json"
    space = space_in(read_json(file))
    if space is None:
        raise ValueError(f"{file} has no latents_mean and latents_std: this is not the VAE of GLM-Image")
    return space


def space_in(config: dict) -> LatentSpace | None:
    """The latent space that a VAE's config states."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    return LatentSpace(tuple(mean), tuple(std)) if mean and std else None


def scheduler_shift(folder: Path) -> Shift:
    """The shift that the checkpoint's scheduler is configured with. A checkpoint without one has the released shift."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return Shift()
    config = read_json(file)
    if config.get("time_shift_type", "linear") != "linear":
        raise ValueError(f"{file} asks for a time shift that is {config['time_shift_type']}; GLM-Image's is linear")
    names = {"base": "base_shift", "maximum": "max_shift", "base_tokens": "base_image_seq_len"}
    return Shift(**{field: config[name] for field, name in names.items() if name in config})
