"""Memory: the predicted peak of each stage against the measured one. Only the model of the stage is on the device.

A peak is weights and working memory: on CUDA as PyTorch's allocator counts it, on the CPU as PyTorch's profiler does. With
recommended settings the models are quantized as `inspect` recommends for a card of --cap, and streamed and tiled where the stages
would do so there. On CUDA a plan ends after its first passes: its cache is laid out whole before them.
"""

import gc
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..glmimage_core.component import Component
from ..glmimage_core.glm_image.files.components import COMPONENTS
from ..glmimage_core.glm_image.files.processor import load_image_processor, reference_limits
from ..glmimage_core.glm_image.geometry import PRIOR_PX, reference_grid
from ..glmimage_core.glm_image.settings import settings_for
from ..glmimage_core.placement.prediction import Job
from ..glmimage_core.placement.residency import HEADROOM, Residency, current, free_device_bytes
from ..glmimage_core.units import human_bytes
from .inputs import GLYPHS, PROMPT
from .measure import Case, allocator_peak
from .models import EVERYTHING, RandomGlmImage
from .stages import StageRun, stage_runs
from .table import Table, Value

MB, GB = 10**6, 10**9
RECOMMENDED = "recommended"
ABOUT = ("stage", "picture", "batch", "references", "quantization", "placed")
COLUMNS = (*ABOUT, "weights", "predicted", "measured", "predicted / measured")
OF_GLM = {"vision_language_encoder": "ar", "transformer": "dit", "vae": "vae"}


def check(options: Namespace) -> None:
    kind = options.device.type
    recommended = options.settings == RECOMMENDED
    if options.cap is not None and kind != "cuda" and not recommended:
        raise ValueError(f"--cap limits a CUDA device, and this is {kind}; leave it out")
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"peaks are measured on CUDA and on the CPU, not on {kind}; choose with --device")
    if recommended and options.cap is None:
        raise ValueError(f"--settings {RECOMMENDED} needs --cap, the memory of the card to recommend for")
    if options.cap is not None and kind == "cuda":
        whole = torch.cuda.get_device_properties(options.device).total_memory
        if not 0 < options.cap * GB <= whole:
            raise ValueError(f"--cap is {options.cap} GB; the device has {human_bytes(whole)}")
        torch.cuda.set_per_process_memory_fraction(options.cap * GB / whole, options.device)


def measure(options: Namespace, glm: RandomGlmImage) -> Iterator[Table]:
    cap = f" with a cap of {options.cap} GB" if options.cap else ""
    title = f"Peak memory in MB, one stage's model on the device{cap}; a stage without a peak ran out of memory"
    cases = [(case, count) for case in options.cases for count in options.references]
    jobs = [_job(case, count, glm.checkpoint) for case, count in cases]
    models = {name: kind.build_from(glm.checkpoint) for name, kind in COMPONENTS.items()}
    configs = {name: model.config for name, model in models.items()}
    formats, free_bytes = dict.fromkeys(OF_GLM, "none"), lambda: sys.maxsize
    if options.settings == RECOMMENDED:
        formats |= _recommended(options, models, jobs)
        glm.offloaded = EVERYTHING  # weights begin on the CPU, as loaders leave them
        free_bytes = partial(_free_bytes, options)
    residency = Residency(options.device, free_bytes)
    rows = []
    for name, quantization in formats.items():
        if quantization is None:
            rows.append(dict.fromkeys(COLUMNS) | {"stage": f"those of the {COMPONENTS[name].title}", "placed": "does not fit"})
            continue
        component = getattr(replace(glm, quantization=quantization), OF_GLM[name])
        for (case, references), job in zip(cases, jobs, strict=True):
            stages = stage_runs(name, component, job, configs=configs, residency=residency, quantization=quantization)
            about = case.columns | {"references": references, "quantization": quantization}
            for row in _rows(stages, component, residency, about):
                rows.append(row)
                yield Table(title, rows)
        del component  # to make room on the device for the next one
        gc.collect()
    yield Table(title, rows)


def _job(case: Case, references: int, folder: Path) -> Job:
    return Job(
        case.width,
        case.height,
        case.batch,
        references=(_fitted(case, folder),) * references,
        prompt_tokens=len(PROMPT) + 32,
        glyph_tokens=GLYPHS,
        one_length=True,
    )


def _recommended(options: Namespace, models: dict[str, torch.nn.Module], jobs: Sequence[Job]) -> dict[str, str | None]:
    """The formats of AR model and DiT in which all jobs fit, by component; None where no format does."""
    largest = max(jobs, key=lambda job: job.width * job.height * (job.batch + len(job.references)))
    room = round(options.cap * GB) - HEADROOM
    settings = settings_for(models, largest, room=room, itemsize=options.dtype.itemsize)
    by_component = {"vision_language_encoder": settings.ar, "transformer": settings.dit}
    return {name: setting and setting.quantization for name, setting in by_component.items()}


def _free_bytes(options: Namespace) -> int:
    """Bytes that are free on the device and under the cap, less HEADROOM."""
    under_cap = round(options.cap * GB) - torch.cuda.memory_allocated(options.device) - HEADROOM
    return min(under_cap, free_device_bytes(options.device))


def _fitted(case: Case, folder: Path) -> tuple[int, int]:
    """The size in pixels to which a reference of the picture's size is fitted."""
    limits = reference_limits(load_image_processor(folder))
    grid = reference_grid(case.width, case.height, *limits)
    return grid.width * PRIOR_PX, grid.height * PRIOR_PX


def _rows(
    stages: Iterable[StageRun], component: Component, residency: Residency, about: dict[str, Value]
) -> Iterator[dict[str, Value]]:
    """A row for each stage. about: its columns that all of them share."""
    for stage in stages:
        for other in component.parts.values():
            if other is not stage.model:
                residency.release(other)
        measured = _peak(stage, component, residency)
        yield (
            {"stage": stage.stage}
            | about
            | {"placed": stage.how, "weights": stage.weights / MB, "predicted": stage.predicted / MB}
            | {"measured": measured and measured / MB, "predicted / measured": measured and stage.predicted / measured}
        )


def _peak(stage: StageRun, component: Component, residency: Residency) -> int | None:
    """The most bytes on the device while a stage runs, weights included; None if the device runs out of memory."""
    device = residency.device
    if device.type == "cpu":
        return stage.weights + allocator_peak(partial(stage.run, component))
    try:
        with residency.hold(stage.model, stage.working, component.blocks), current(device):
            torch.cuda.reset_peak_memory_stats(device)
            stage.run(replace(component, weights_are_static=not component.blocks))  # blocks may come one by one
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(device)
