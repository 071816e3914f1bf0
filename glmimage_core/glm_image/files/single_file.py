"""One component in one safetensors file, as ComfyUI's folders for models hold them.

A file holds weights only. The AR model's processor, and the latent space and shift of DiT and VAE, come from a checkpoint
folder, which may be incomplete, below the `roots` that the functions take.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import torch

from ...checkpoints.build import check_libraries
from ...checkpoints.folders import read_json, walk
from ...checkpoints.header import read_header
from ...checkpoints.report import ComponentReport, compare_with_config, resolve_dtype, unquantized_shapes
from ...vae import LatentSpace, Vae
from ..ar_model import ArModel
from ..dit import Dit
from ..schedule import Shift
from . import load as checkpoints
from .components import MODEL_CLASSES, SIDE_FILES, build, is_checkpoint, list_checkpoints
from .identify import TITLES, IdentifiedFile, identify
from .inspect import inspect_component, latent_space, scheduler_shift, side_problems, space_in
from .load import ar_model, filled

SUFFIX = ".safetensors"
SPACE = LatentSpace(
    mean=(
        *(-0.2080078125, 1.875, -0.470703125, -1.265625, -1.421875, 0.77734375, -0.3671875, -0.9453125),
        *(0.318359375, 0.7734375, -0.1884765625, -0.022216796875, -0.220703125, -1.59375, -0.81640625, -0.255859375),
    ),
    std=(
        *(3.0625, 2.203125, 2.265625, 4.84375, 2.5, 3.9375, 2.203125, 3.03125),
        *(2.1875, 2.046875, 2.71875, 2.390625, 2.390625, 2.453125, 2.25, 2.15625),
    ),
)
"""The released latent space, for files that come without a checkpoint."""


def list_files(component: str, roots: Iterable[Path]) -> dict[str, Path]:
    """The files of a component below the roots, by their path relative to their root with forward slashes, sorted by name.

    The first root wins where two hold the same name. A header is read once as long as its file does not change; files that
    are broken or another model's are left out.
    """
    found: dict[str, Path] = {}
    for root in roots:
        for folder, _, names in walk(root):
            for file in (folder / name for name in names if name.endswith(SUFFIX)):
                if _component_of(file) == component:
                    found.setdefault(file.relative_to(root).as_posix(), file)
    return dict(sorted(found.items()))


def find_file(name: str, component: str, roots: Iterable[Path]) -> Path:
    """A file by the name that `list_files` gives it, or by that of a file it leaves out. Raises FileNotFoundError."""
    roots = list(roots)
    found = list_files(component, roots)
    if name in found:
        return found[name]
    for root in roots:
        if (root / name).is_file() and not Path(name).is_absolute() and ".." not in Path(name).parts:
            return root / name
    looked = ", ".join(map(str, roots)) or "no folder at all"
    there = f"; GLM-Image's there: {', '.join(found)}" if found else ""
    raise FileNotFoundError(f"no file {name!r} in {looked}{there}")


def _component_of(file: Path) -> str | None:
    try:
        return _recognised(file, *_stamp(file))
    except OSError:
        return None  # a link that leads nowhere, or a file that may not be read


@lru_cache(maxsize=4096)
def _recognised(file: Path, *stamp: int) -> str | None:
    try:
        return identify(file, read_header(file)).component
    except ValueError:
        return None


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def inspect_file(file: Path) -> ComponentReport:
    """Report on a single file. Raises ValueError for one that is broken or no part of GLM-Image."""
    return _described(file, *_stamp(file))[1]


@lru_cache(maxsize=64)
def _described(file: Path, *stamp: int) -> tuple[IdentifiedFile, ComponentReport]:
    part = identify(file, read_header(file))
    report = ComponentReport(part.component, MODEL_CLASSES[part.component][1], disk_bytes=file.stat().st_size)
    report.add_tensors(part.headers, part.marks)
    try:
        model = build(part.component, part.config, part.file)
        shapes = unquantized_shapes(model, part.headers, part.marks, file)
        compare_with_config(model, shapes, part.file)
        if unknown := sorted(shapes.keys() - model.state_dict().keys()):
            raise ValueError(
                f"{file} holds {len(unknown)} tensors that a {report.class_name} does not have, such as {unknown[0]}: it is "
                "quantized in a way that is unknown here, or another model's; choose one in bfloat16, float16 or float32"
            )
    except ValueError as error:
        assumed = "; its metadata has no config, so what shapes do not say was taken to be as released: a model of other sizes "
        assumed += "needs its config.json there, as config"
        report.problems.append(error if part.config_from_metadata else ValueError(f"{error}{assumed}"))
    return part, report


def check_file(file: Path, component: str, roots: Iterable[Path]) -> ComponentReport:
    """The report of a sound file of a component, whose small files are there.

    Raises ValueError where the file is broken or of something else, FileNotFoundError where small files are missing.
    """
    part, report = _checked(file, component)
    if component == "vision_language_encoder":
        _processor_for(part, roots)
    else:
        _space_for(part, roots)
    if component == "transformer":
        _shift_for(part, roots)
    return report


def _checked(file: Path, component: str) -> tuple[IdentifiedFile, ComponentReport]:
    check_libraries()
    part, report = _described(file, *_stamp(file))
    if part.component != component:
        raise ValueError(f"{file} holds GLM-Image's {TITLES[part.component]}, and here its {TITLES[component]} is wanted")
    if report.problems:
        raise ValueError(str(report.problems[0]))  # a fresh one: the report is kept
    return part, report


def load_ar(file: Path, dtype: str = "auto", roots: Iterable[Path] = (), quantization: str = "none") -> ArModel:
    """Load the AR model, on the CPU, with the processor beside the file or in a checkpoint folder below the roots."""
    part, report = _checked(file, "vision_language_encoder")
    folder = _processor_for(part, roots)
    from transformers import GlmImageConfig, GlmImageForConditionalGeneration

    if quantization != "none" or report.quantized:
        return ar_model(_load_quantized(part, dtype, report, quantization), folder)
    precision = resolve_dtype(dtype, report)
    model = GlmImageForConditionalGeneration.from_pretrained(
        None, config=GlmImageConfig.from_dict(part.config), state_dict=_weights(part, precision), dtype=precision
    )
    return ar_model(model.eval(), folder)


def load_dit(file: Path, dtype: str = "auto", roots: Iterable[Path] = (), quantization: str = "none") -> Dit:
    """Load the DiT, on the CPU, with the latent space and the shift of a checkpoint below the roots, else the released ones."""
    roots = tuple(roots)
    part, report = _checked(file, "transformer")
    space, shift = _space_for(part, roots), _shift_for(part, roots)
    quantized = quantization != "none" or report.quantized
    model = _load_quantized(part, dtype, report, quantization) if quantized else _load(part, dtype, report)
    return Dit(model, space, shift, checkpoint=file, roots=roots)


def load_dit_from(path: Path, dtype: str, roots: Iterable[Path], quantization: str) -> Dit:
    """Load the DiT from a single file or from a checkpoint folder."""
    return load_dit(path, dtype, roots, quantization) if path.is_file() else checkpoints.load_dit(path, dtype, quantization)


def load_vae(file: Path, dtype: str = "auto", roots: Iterable[Path] = ()) -> Vae:
    """Load the VAE, on the CPU."""
    part, report = _checked(file, "vae")
    space = _space_for(part, roots)
    return Vae(_load(part, dtype, report), space)


def load_vae_of(space: LatentSpace, dtype: str, roots: Iterable[Path], file_roots: Iterable[Path]) -> Vae:
    """Load any VAE of a latent space, from a checkpoint below the roots or a single file below the others.

    Raises FileNotFoundError where there is none.
    """
    roots = list(roots)
    for folder in list_checkpoints(roots).values():
        if not inspect_component(folder, "vae").problems and latent_space(folder) == space:
            return checkpoints.load_vae(folder, dtype)
    for file in list_files("vae", file_roots).values():
        part, report = _described(file, *_stamp(file))
        if not report.problems and _space_for(part, roots) == space:
            return load_vae(file, dtype, roots)
    raise FileNotFoundError("there is no VAE of the DiT's latent space in the folders diffusers and vae")


def _weights(part: IdentifiedFile, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors by their names in the model. Those stored in the dtype stay in the file until they are read."""
    from safetensors import safe_open

    with safe_open(part.file, framework="pt") as tensors:
        return {name: tensors.get_tensor(key).to(dtype) for name, key in part.keys.items()}


def _load(part: IdentifiedFile, dtype: str, report: ComponentReport) -> torch.nn.Module:
    model = build(part.component, part.config, part.file)
    model.load_state_dict(_weights(part, resolve_dtype(dtype, report)), assign=True)
    return model.eval()


def _load_quantized(part: IdentifiedFile, dtype: str, report: ComponentReport, quantization: str) -> torch.nn.Module:
    """Quantized as it is read, or as it is stored."""
    model = build(part.component, part.config, part.file, buffers=True)
    return filled(model, [part.file], report, dtype, quantization, part.keys)


def _companions(part: IdentifiedFile, wanted: str, roots: Iterable[Path]) -> Iterator[Path]:
    """Folders that hold the wanted small file of a GLM-Image whose config agrees with the part's, the nearest first."""
    for folder in [part.file.parent, *(folder for root in roots for folder, _, _ in walk(root))]:
        if (folder / wanted).is_file() and (is_checkpoint(folder) or _is_processor(folder / "processor")):
            config = folder / part.component / "config.json"
            try:
                if not config.is_file() or _agree(part.config, read_json(config), part.config_from_shapes):
                    yield folder
            except ValueError:
                continue  # a damaged config agrees with nothing


def _agree(ours: dict, theirs: dict, config_from_shapes: dict) -> bool:
    """Whether two configs say the same where the shapes say something."""
    return all(
        _agree(ours[key], theirs.get(key, ours[key]), value)
        if isinstance(value, dict)
        else theirs.get(key, ours[key]) == ours[key]
        for key, value in config_from_shapes.items()
    )


def _is_processor(folder: Path) -> bool:
    """Whether a folder holds GLM-Image's processor rather than another model's."""
    return any("GlmImage" in file.read_text("utf-8", errors="replace") for file in folder.glob("*config.json"))


def _processor_for(part: IdentifiedFile, roots: Iterable[Path]) -> Path:
    """The folder whose `processor` goes with an AR model. Raises FileNotFoundError or ValueError where none is whole."""
    roots = list(roots)
    folder = next(_companions(part, f"processor/{SIDE_FILES['processor'][0]}", roots), None)
    if folder is None:
        raise FileNotFoundError(
            f"{part.file} holds weights only. Copy the folder processor of zai-org/GLM-Image (tokenizer.json, "
            f"tokenizer_config.json, chat_template.jinja, preprocessor_config.json) to {part.file.parent / 'processor'}"
            + "".join(f" or {root / 'GLM-Image' / 'processor'}" for root in roots[:1])
        )
    for problem in side_problems(folder, "processor"):
        raise problem
    return folder


def _space_for(part: IdentifiedFile, roots: Iterable[Path]) -> LatentSpace:
    """The latent space of a DiT or VAE: its own, a checkpoint's, or the released one. Raises ValueError where none fits."""
    beside = next(_companions(part, "vae/config.json", roots), None)
    space = space_in(part.config) or (latent_space(beside) if beside else SPACE)
    channels = part.config["latent_channels" if part.component == "vae" else "in_channels"]
    if len(space.mean) != channels:
        raise ValueError(
            f"{part.file} works on {channels} latent channels, and the latent space known for it has {len(space.mean)}; add "
            "latents_mean and latents_std, of its VAE's config.json, to config in the file's metadata"
        )
    return space


def _shift_for(part: IdentifiedFile, roots: Iterable[Path]) -> Shift:
    """The shift of a checkpoint's scheduler, else the released one."""
    beside = next(_companions(part, "scheduler/scheduler_config.json", roots), None)
    return scheduler_shift(beside) if beside else Shift()
