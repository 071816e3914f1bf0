"""The stages of a run one by one: how each would be placed on a device, and a call that runs it on random inputs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image

from ..glmimage_core.component import Component
from ..glmimage_core.diffusion import image_seeds, latent_grid
from ..glmimage_core.glm_image.ar_model import ArModel, vision_tokens
from ..glmimage_core.glm_image.denoise import sample
from ..glmimage_core.glm_image.dit import Dit
from ..glmimage_core.glm_image.memory import dit_bytes, predict
from ..glmimage_core.glm_image.prior import SYNC_EVERY, generate_prior
from ..glmimage_core.glm_image.references import latents_of
from ..glmimage_core.placement.prediction import Job
from ..glmimage_core.placement.residency import Residency, model_bytes
from ..glmimage_core.placement.streaming import least_bytes, resident_blocks
from ..glmimage_core.vae import TILE_PX, Vae, decode, vae_decode_bytes, vae_encode_bytes
from ..glmimage_core.weights.linear import product_bytes
from .inputs import PROMPT, random_glyphs, random_prior, random_reference
from .measure import Case

PLANNED = 8 * SYNC_EVERY  # tokens after which a plan needs no more memory: all passes are of one size, and recorded


class StageRun(NamedTuple):
    """A stage, what it needs on a device in bytes, and a call that runs it with the component as it was placed.

    weights: those on the device at once. working: what the stage asks its host for. product: what the widest product with a
    quantized weight needs besides. how: how it is placed; `whole` is all of the model on the device and all of a picture at once.
    """

    stage: str
    model: torch.nn.Module
    weights: int
    working: int
    product: int
    how: str
    run: Callable[[Component], object]

    @property
    def predicted(self) -> int:
        return self.weights + self.working + self.product


def stage_runs(
    name: str, component: Component, job: Job, *, configs: Mapping[str, Any], residency: Residency, quantization: str
) -> Iterator[StageRun]:
    """The stages that a component runs, each placed as `GlmImage` places it. No model but this one may be on the device.

    name: of the component. configs: of all models, by component. quantization: of this one.
    """
    itemsize, on_cpu = component.dtype.itemsize, residency.device.type == "cpu"
    for stage, (runs_on, part, working) in predict(configs, dict.fromkeys(configs, itemsize), job, on_cpu=on_cpu).items():
        if runs_on != name:
            continue
        model, how = component.parts[part], "whole"
        weights = model_bytes(model)
        whole = residency.fits(model, working)
        if stage == "Encode Reference, vision":
            run = partial(_see, job=job)
        elif stage == "Generate Prior":
            run = partial(_plan, job=job)
        elif stage == "Sampler":
            if not whole:
                working = dit_bytes(component.model.config, itemsize, job, caches_on_device=False)
                how = "caches layer by layer"
            if not residency.fits(model, working):
                weights, how = _streamed_bytes(component, residency, working), "block by block"
            run = partial(_paint, job=job, caches_on_device=whole)
        else:
            encodes = stage == "Encode Reference, VAE"
            if not whole:
                working = (vae_encode_bytes if encodes else vae_decode_bytes)(model.config, itemsize, TILE_PX, TILE_PX)
                how = "in tiles"
            run = partial(_encode if encodes else _decode, job=job, tiled=not whole)
        yield StageRun(
            stage, model, weights, working, product=product_bytes(model, quantization, on_cpu=on_cpu), how=how, run=run
        )


def _streamed_bytes(component: Component, residency: Residency, working: int) -> int:
    """Bytes of a streamed model that are on the device at once: as many blocks stay as fit there."""
    sizes = [model_bytes(block) for block in component.blocks]
    others = model_bytes(component.model) - sum(sizes)
    free = residency.free_bytes() + sum(map(model_bytes, residency.resident))
    staying = resident_blocks(others, sizes, free - working) or 0  # where not even that fits, the stage says so
    return least_bytes(others, sizes) + sum(sizes[:staying])


def _see(ar: ArModel, job: Job) -> None:
    vision_tokens(ar, Image.new("RGB", job.references[0]))


def _encode(vae: Vae, job: Job, tiled: bool) -> None:
    latents_of(vae, Image.new("RGB", job.references[0]), tiled)


def _decode(vae: Vae, job: Job, tiled: bool) -> None:
    decode(vae, torch.zeros(1, len(vae.space.mean), *latent_grid(job.width, job.height)), tiled)


class _Enough(Exception):
    """Ends a plan after its first passes."""


def _plan(ar: ArModel, job: Job) -> None:
    """On the CPU the whole plan: there a pass needs more for every token before it."""
    rows = ar.model.config.vq_config.num_embeddings
    references = [random_reference(rows, *size, seed) for seed, size in enumerate(job.references)]

    def progress(done: int, total: int, preview: object = None) -> None:
        if ar.device.type != "cpu" and done > PLANNED:
            raise _Enough

    with suppress(_Enough):
        settings = {"seed": 0, "batch": job.batch, "references": references, "lookahead": 1}  # as predicted
        generate_prior(ar, PROMPT, job.width, job.height, **settings, progress=progress)


def _paint(dit: Dit, job: Job, caches_on_device: bool) -> None:
    config = dit.model.config
    rows = config.prior_vq_quantizer_codebook_size
    references = [random_reference(rows, *size, seed) for seed, size in enumerate(job.references)]
    prior = random_prior(rows, Case(job.width, job.height, job.batch))
    positive, negative = random_glyphs(config.text_embed_dim)
    settings = {"seeds": image_seeds(0, job.batch), "steps": 2, "references": references}
    sample(dit, prior, positive, negative, **settings, caches_on_device=caches_on_device)
    dit.cached_references.clear()  # so that the next run passes the references through the DiT again
