"""What `python . inspect` predicts: the memory of each stage, and the settings that fit a card."""

from pathlib import Path

import torch

from ..bench.table import Table
from ..glmimage_core.checkpoints.report import ComponentReport
from ..glmimage_core.glm_image.files.components import COMPONENTS
from ..glmimage_core.glm_image.files.processor import load_image_processor, reference_limits
from ..glmimage_core.glm_image.geometry import PRIOR_PX, reference_grid
from ..glmimage_core.glm_image.memory import predict
from ..glmimage_core.glm_image.settings import settings_for
from ..glmimage_core.placement.prediction import Job, Setting
from ..glmimage_core.placement.residency import HEADROOM
from ..glmimage_core.units import human_bytes
from ..nodes.host.standalone import best_device
from .choices import CARDS


def print_predictions(checkpoint: Path, reports: dict[str, ComponentReport], size: tuple[int, int], references: int) -> None:
    """Print both tables for a sound checkpoint. size: width and height in pixels, of the picture and of each reference."""
    grid = reference_grid(*size, *reference_limits(load_image_processor(checkpoint)))
    fitted = (grid.width * PRIOR_PX, grid.height * PRIOR_PX)
    job = Job(*size, references=(fitted,) * references)
    models = {name: kind.build_from(checkpoint) for name, kind in COMPONENTS.items()}
    print(
        f"\nPredicted memory at {job.width}x{job.height} with {references} reference(s) of that size "
        f"(fitted to {fitted[0]}x{fitted[1]}), weights as stored, cfg above 1:"
    )
    _print_stages(job, models, reports)
    if any(reports[name].quantized for name in COMPONENTS):
        print("\nSettings for cards are named for checkpoints that are not quantized; this one is loaded as it is stored.")
        return
    print(
        f"\nSettings for cards at {job.width}x{job.height}, in bfloat16, one model at a time ({human_bytes(HEADROOM)} left free):"
    )
    print(settings_for_cards(job, models).text(left=["card", "AR model", "DiT", "VAE Decode"]))


def _print_stages(job: Job, models: dict[str, torch.nn.Module], reports: dict[str, ComponentReport]) -> None:
    """The weights and the working memory of each stage, and the peaks with all models on the device and with one at a time."""
    dtypes = {name: reports[name].stored_dtype for name in COMPONENTS}
    itemsizes = {name: dtype.itemsize for name, dtype in dtypes.items()}
    stages = predict({name: model.config for name, model in models.items()}, itemsizes, job, on_cpu=best_device().type == "cpu")
    weights = {
        stage: COMPONENTS[name].part_of(reports[name], part).weight_bytes(dtypes[name])
        for stage, (name, part, _) in stages.items()
    }
    rows = [
        {"stage": stage, "weights": human_bytes(weights[stage]), "working": human_bytes(needs.working)}
        for stage, needs in stages.items()
    ]
    print(Table("", rows).text(left=["stage"]))
    together = sum(reports[name].weight_bytes(dtypes[name]) for name in COMPONENTS)
    together += max(needs.working for needs in stages.values())
    apart = max(weights[stage] + needs.working for stage, needs in stages.items())
    for how, peak in (("all models resident", together), ("one model at a time", apart)):
        print(f"peak, {how}: {human_bytes(peak)} ({peak} bytes)")


def settings_for_cards(job: Job, models: dict[str, torch.nn.Module]) -> Table:
    """The loaders' settings for each card, in bfloat16 where nothing is quantized. models: on the meta device, by component."""
    rows = []
    for card in CARDS:
        settings = settings_for(models, job, room=card * 2**30 - HEADROOM)
        rows.append(
            {
                "card": f"{card} GiB ({human_bytes(card * 2**30)})",
                "AR model": _setting(settings.ar),
                "DiT": _setting(settings.dit),
                "VAE Decode": "in tiles" if settings.tiled else "whole",
            }
        )
    return Table("", rows)


def _setting(setting: Setting | None) -> str:
    if setting is None:
        return "does not fit; smaller picture"
    how = ", block by block" if setting.streamed else ""
    return f"{setting.quantization}{how} (peak {human_bytes(setting.peak)})"
