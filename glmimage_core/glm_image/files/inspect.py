"""What a checkpoint folder holds and what is wrong with it, from its configs and file headers: no weight is read."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ...checkpoints.build import check_libraries
from ...checkpoints.folders import PIPELINE_INDEX, read_json
from ...checkpoints.header import quant_method
from ...checkpoints.report import (
    ComponentReport,
    add_external_tensors,
    check_class,
    compare_with_config,
    read_headers,
    unquantized_shapes,
)
from ...checkpoints.settings import finite, positive
from ...vae import LatentSpace
from ...weights.external import check_library
from ...weights.formats import check_installed
from ..schedule import Shift
from ..trained_on import TrainedOn
from .components import AR, COMPONENTS, DIT, LAYOUT, PIPELINE_CLASS, SIDE_FILES, VAE, ComponentKind, is_checkpoint, space_in
from .processor import side_problems

SHIFT_SETTINGS = {
    "base": ("base_shift", finite),
    "slope": ("max_shift", finite),
    "base_tokens": ("base_image_seq_len", positive),
}
"""Of each field of a shift, the scheduler's setting and what it must be."""
Problem = ValueError | FileNotFoundError | ImportError


def inspect_checkpoint(folder: Path) -> list[ComponentReport]:
    """Report on every component of a checkpoint; the reports' problems say what is missing or broken."""
    models = []
    for kind in COMPONENTS.values():
        report = inspect_component(folder, kind)
        known = [str(problem) for problem in report.problems]
        more = [problem for problem in _settings_problems(folder, kind) if str(problem) not in known]
        models.append(replace(report, problems=[*report.problems, *more]))
    return [*models, *(_inspect_side(folder, name) for name in SIDE_FILES)]


def _inspect_side(folder: Path, name: str) -> ComponentReport:
    report = ComponentReport(name, "tokenizer" if name == "tokenizer" else "GlmImageProcessor")
    if (folder / name).is_dir():
        report.disk_bytes = sum(file.stat().st_size for file in (folder / name).iterdir() if file.is_file())
    report.problems += side_problems(folder, name)
    return report


def _settings_problems(folder: Path, kind: ComponentKind) -> list[Problem]:
    """What is wrong with the settings that a component takes from the checkpoint beside its own config."""
    settings = {AR: trained_on, VAE: latent_space, DIT: scheduler_shift}
    try:
        if kind in settings:
            settings[kind](folder)
    except (ValueError, FileNotFoundError) as error:
        return [error]
    return []


def inspect_component(folder: Path, kind: ComponentKind) -> ComponentReport:
    """Report on one component: compares the headers of its files with the shapes that its config implies.

    Looking again at files that have not changed costs nothing, so a graph can check its loaders every time it is queued.
    """
    files = sorted(file for file in (folder / kind.folder).glob("*") if file.is_file())
    stamp = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return _inspect_component(folder, kind, stamp)


@lru_cache(maxsize=64)
def _inspect_component(folder: Path, kind: ComponentKind, stamp: tuple) -> ComponentReport:
    report = ComponentReport(kind.folder, kind.class_name, kind.library)
    own = folder / kind.folder
    try:
        config_file = own / "config.json"
        check_class(read_json(config_file), kind.class_name, config_file)
        method = quant_method(own)
        headers, formats = read_headers(own, report)
        model = kind.build_from(folder, tensors=len(headers))
        if method:
            add_external_tensors(report, headers, method=method, model=model, folder=own)
            check_library(method)
        else:
            report.add_tensors(headers, formats)
            if formats:
                check_installed()
            compare_with_config(model, unquantized_shapes(model, headers, formats, own), config_file)
    except (FileNotFoundError, ValueError, ImportError) as error:
        report.problems.append(error)
    return report


def check_checkpoint(folder: Path, kind: ComponentKind) -> ComponentReport:
    """The report of a sound component. Raises FileNotFoundError, ValueError or ImportError: the first problem of another."""
    check_libraries()
    if not is_checkpoint(folder):
        raise ValueError(f"{folder / PIPELINE_INDEX} does not name a {PIPELINE_CLASS}; {LAYOUT}")
    report = inspect_component(folder, kind)
    problems = report.problems + [problem for side in kind.side_files for problem in side_problems(folder, side)]
    if problems:
        raise type(problems[0])(str(problems[0]))  # a new one: the report is kept
    if kind is AR:
        trained_on(folder)
    if kind in (DIT, VAE):
        latent_space(folder)
        scheduler_shift(folder)
    return report


def trained_on(folder: Path) -> TrainedOn:
    """The sizes and words that the checkpoint's AR model knows, from its config."""
    file = folder / AR.folder / "config.json"
    return TrainedOn.stated_in(read_json(file), file)


def latent_space(folder: Path) -> LatentSpace:
    """The mean and standard deviation of each latent channel, from the VAE's config."""
    file = folder / VAE.folder / "config.json"
    config = read_json(file)
    space = space_in(config, file)
    if space is None:
        raise ValueError(f"{file} has no latents_mean and latents_std: this is not the VAE of GLM-Image")
    if len(space.mean) != config.get("latent_channels", len(space.mean)):
        raise ValueError(
            f"{file} has latents_mean of {len(space.mean)} channels, and its latents have {config['latent_channels']}"
        )
    return space


def scheduler_shift(folder: Path) -> Shift:
    """The shift that the checkpoint's scheduler is configured with. A checkpoint without a scheduler has the released shift."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return Shift()
    return shift_in(read_json(file), file)


def shift_in(config: dict, source: Path) -> Shift:
    """The shift that a scheduler's config, read from `source`, states. Raises ValueError for one that is not possible."""
    if config.get("time_shift_type", "linear") != "linear":
        raise ValueError(f"{source} asks for a time shift that is {config['time_shift_type']}; GLM-Image's is linear")
    stated = [(field, name, check) for field, (name, check) in SHIFT_SETTINGS.items() if name in config]
    return Shift(**{field: check(config[name], f"{name} in {source}") for field, name, check in stated})


def settings_of(shift: Shift) -> dict[str, float]:
    """A scheduler's config that states a shift."""
    return {name: getattr(shift, field) for field, (name, _) in SHIFT_SETTINGS.items()}
