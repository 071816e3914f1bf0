"""What a checkpoint holds and what is wrong with it, from its configs and file headers: no weight is read."""

from functools import lru_cache
from pathlib import Path

from ...checkpoints.build import check_libraries
from ...checkpoints.folders import read_json
from ...checkpoints.header import quant_method
from ...checkpoints.report import (
    ComponentReport,
    add_external_tensors,
    check_class,
    compare_with_config,
    read_headers,
    unquantized_shapes,
)
from ...vae import LatentSpace
from ...weights.external import check_library
from ...weights.formats import check_installed
from ..schedule import Shift
from .components import LAYOUT, MODEL_CLASSES, PIPELINE_CLASS, SIDE_FILES, SIDE_OF, is_checkpoint, skeleton


def describe(folder: Path) -> list[ComponentReport]:
    """Report on every component of a checkpoint; what is missing or broken is in the reports' problems."""
    models = [inspect_component(folder, name) for name in MODEL_CLASSES]
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


def inspect_component(folder: Path, name: str) -> ComponentReport:
    """Report on one model component, comparing the headers of its files with the shapes its config implies.

    Looking again at files that have not changed costs nothing, so a graph can check its loaders every time it is queued.
    """
    files = sorted(file for file in (folder / name).glob("*") if file.is_file())
    stamp = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return _inspect_component(folder, name, stamp)


@lru_cache(maxsize=64)
def _inspect_component(folder: Path, name: str, stamp: tuple) -> ComponentReport:
    library, class_name = MODEL_CLASSES[name]
    report = ComponentReport(name, class_name, library)
    try:
        config_file = folder / name / "config.json"
        check_class(read_json(config_file), report.class_name, config_file)
        method = quant_method(folder / name)
        headers, formats = read_headers(folder / name, report)
        if method:
            add_external_tensors(report, headers, method=method, model=skeleton(folder, name), folder=folder / name)
            check_library(method)
        else:
            report.add_tensors(headers, formats)
            if formats:
                check_installed()
            model = skeleton(folder, name)
            compare_with_config(model, unquantized_shapes(model, headers, formats, folder / name), config_file)
    except (FileNotFoundError, ValueError, ImportError) as error:
        report.problems.append(error)
    return report


def check_model(folder: Path, name: str) -> ComponentReport:
    """The report of a sound component. Raises FileNotFoundError or ValueError with the first problem of another."""
    check_libraries()
    if not is_checkpoint(folder):
        raise ValueError(f"{folder / 'model_index.json'} does not name a {PIPELINE_CLASS}; {LAYOUT}")
    report = inspect_component(folder, name)
    problems = report.problems + [problem for side in SIDE_OF.get(name, ()) for problem in side_problems(folder, side)]
    if problems:
        raise type(problems[0])(str(problems[0]))  # a fresh one: the report is kept
    if name in ("transformer", "vae"):
        latent_space(folder)
        scheduler_shift(folder)
    return report


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
