"""Memory: the predicted peak of each stage against the measured one. Only the model of the stage is on the device.

A peak is weights and working memory: on CUDA as PyTorch's allocator counts it, on the CPU as PyTorch's profiler does.
"""

import gc
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image

from ..glmimage_core.component import Component
from ..glmimage_core.diffusion import image_seeds, latent_grid
from ..glmimage_core.glm_image.ar_model import vision_tokens
from ..glmimage_core.glm_image.denoise import sample
from ..glmimage_core.glm_image.files.components import COMPONENTS
from ..glmimage_core.glm_image.files.load import load_image_processor, reference_limits
from ..glmimage_core.glm_image.geometry import PRIOR_PX, reference_grid
from ..glmimage_core.glm_image.memory import predict
from ..glmimage_core.glm_image.prior import generate_prior
from ..glmimage_core.glm_image.references import latents_of
from ..glmimage_core.placement.prediction import Job
from ..glmimage_core.placement.residency import model_bytes
from ..glmimage_core.units import human_bytes
from ..glmimage_core.vae import decode
from .inputs import GLYPHS, PROMPT, random_glyphs, random_prior, random_reference
from .measure import Case, allocator_peak
from .models import RandomGlmImage
from .table import Table, Value

MB, GB = 10**6, 10**9


def check(options: Namespace) -> None:
    kind = options.device.type
    if options.cap is not None and kind != "cuda":
        raise ValueError(f"--cap limits a CUDA device, and this is {kind}; leave it out")
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"peaks are measured on CUDA and on the CPU, not on {kind}; choose with --device")
    if options.cap is not None:
        whole = torch.cuda.get_device_properties(options.device).total_memory
        if not 0 < options.cap * GB <= whole:
            raise ValueError(f"--cap is {options.cap} GB; the device has {human_bytes(whole)}")
        torch.cuda.set_per_process_memory_fraction(options.cap * GB / whole, options.device)


def measure(options: Namespace, glm: RandomGlmImage) -> Iterator[Table]:
    rows = []
    for name, of_glm in (("vision_language_encoder", "ar"), ("transformer", "dit"), ("vae", "vae")):
        component = getattr(glm, of_glm)
        for case in options.cases:
            for count in options.references:
                rows += _rows(name, component, case, references=count, folder=glm.checkpoint)
        del component
        delattr(glm, of_glm)  # to make room on the device for the next one
        gc.collect()
    cap = f" with a cap of {options.cap} GB" if options.cap else ""
    yield Table(f"Peak memory in MB, one stage's model on the device{cap}; a stage without a peak ran out of memory", rows)


def _rows(name: str, component: Component, case: Case, *, references: int, folder: Path) -> Iterator[dict[str, Value]]:
    """A row for each stage that one component runs."""
    device, itemsize = component.device, component.dtype.itemsize
    fitted = _fitted(case, folder)
    job = Job(
        case.width,
        case.height,
        case.batch,
        references=(fitted,) * references,
        prompt_tokens=len(PROMPT) + 32,
        glyph_tokens=GLYPHS,
        one_length=True,
    )
    configs = {kind: component.build_from(folder).config for kind, component in COMPONENTS.items()}
    stages = predict(configs, dict.fromkeys(configs, itemsize), job, on_cpu=device.type == "cpu")
    for stage, (runs_on, runs, working) in stages.items():
        if runs_on == name:
            for part, module in component.parts.items():
                module.to(device if part == runs else "cpu")
            weights = model_bytes(component.parts[runs])
            predicted = weights + working
            measured = _peak(_run(stage, component, case, job.references), device, weights)
            yield (
                {"stage": stage}
                | case.columns
                | {"references": references, "weights": weights / MB, "predicted": predicted / MB}
                | {"measured": measured and measured / MB, "predicted / measured": measured and predicted / measured}
            )


def _fitted(case: Case, folder: Path) -> tuple[int, int]:
    """The size in pixels to which a reference of the picture's size is fitted."""
    limits = reference_limits(load_image_processor(folder))
    grid = reference_grid(case.width, case.height, *limits)
    return grid.width * PRIOR_PX, grid.height * PRIOR_PX


def _run(stage: str, component: Component, case: Case, references: tuple[tuple[int, int], ...]) -> Callable[[], object]:
    """A call that runs one stage. references: the sizes of the references in pixels."""
    picture = Image.new("RGB", references[0]) if references else None
    if stage == "Encode Reference, vision":
        return lambda: vision_tokens(component, picture)
    if stage == "Encode Reference, VAE":
        return lambda: latents_of(component, picture)
    if stage == "VAE Decode":
        latents = torch.zeros(1, len(component.space.mean), *latent_grid(case.width, case.height))
        return lambda: decode(component, latents)
    config = component.model.config
    if stage == "Generate Prior":
        encoded = [random_reference(config.vq_config.num_embeddings, *size, seed) for seed, size in enumerate(references)]
        settings = {"seed": 0, "batch": case.batch, "references": encoded, "lookahead": 1}  # as predicted
        return lambda: generate_prior(component, PROMPT, case.width, case.height, **settings)
    rows = config.prior_vq_quantizer_codebook_size
    encoded = [random_reference(rows, *size, seed) for seed, size in enumerate(references)]
    prior, (positive, negative) = random_prior(rows, case), random_glyphs(config.text_embed_dim)

    def paint() -> None:
        sample(component, prior, positive, negative, seeds=image_seeds(0, case.batch), steps=2, references=encoded)
        component.cached_references.clear()  # so that the next run passes the references through the DiT again

    return paint


def _peak(run: Callable[[], object], device: torch.device, weights: int) -> int | None:
    """The most bytes on the device while a stage runs, weights included; None if the device runs out of memory."""
    if device.type == "cpu":
        return weights + allocator_peak(run)
    try:
        run()
        torch.cuda.reset_peak_memory_stats(device)
        run()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(device)
