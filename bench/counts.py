"""Counts: what a pass of the AR model, a guided step and the VAE ask of a GPU, at any size, and the times that follow. Computed.

Models and inputs are on PyTorch's meta device, which holds shapes and no numbers, so that no GPU and no memory is needed.
`counting` has the rules. An AR pass is behind a mask, as it is recorded, with its draws; the attention of one token is PyTorch's,
since comfy-kitchen's runs on a card only. A guided step is what a run of two steps asks for beyond one of one step.

The times are bounds from data sheets:

    kernel    the longer of moved bytes / bandwidth, operations / rate, and SHORTEST_KERNEL
    recorded  the sum of its kernels: a CUDA graph, whose launches cost nothing else
    launched  the longer of that sum and kernels * LAUNCH: either the device or Python and the driver wait

They leave out what makes kernels slower than a data sheet: few threads, as in the attention of one token, or tiles half full.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from transformers.utils import generic

from ..glmimage_core.diffusion import latent_grid
from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.decoder import masked_window, prefill
from ..glmimage_core.glm_image.denoise import sample
from ..glmimage_core.glm_image.dit import Dit
from ..glmimage_core.glm_image.draw import Sampling
from ..glmimage_core.glm_image.layout import emitted_positions, prompt_positions
from ..glmimage_core.glm_image.lookahead import AUTO, check_lookahead
from ..glmimage_core.glm_image.memory import dit_bytes, prior_bytes
from ..glmimage_core.glm_image.prior import SYNC_EVERY
from ..glmimage_core.glm_image.recording import PlainSteps
from ..glmimage_core.placement.prediction import Job
from ..glmimage_core.vae import Vae, decode, encode, vae_decode_bytes, vae_encode_bytes
from ..glmimage_core.weights.formats import check_format
from ..glmimage_core.weights.linear import product_bytes, quantization_of
from .ar import emitted_grids
from .counter import META, Counts, Kernel
from .counting import counting
from .inputs import GLYPHS, random_glyphs, random_prior, random_reference
from .measure import Case
from .models import MetaGlmImage
from .table import Table, Value

GB = 10**9
PROMPT_TOKENS = 256
SHORTEST_KERNEL = 1.6e-6  # seconds; assumed
LAUNCH = 6e-6  # seconds of Python, PyTorch and the driver for a kernel; assumed


class Card(NamedTuple):
    """bandwidth: bytes a second. rates: operations a second of dense products, by the dtype of their operands."""

    bandwidth: float
    half: float
    float32: float
    int8: float

    def seconds(self, counts: Counts, *, recorded: bool) -> float:
        busy = sum(times * self._kernel_seconds(kernel) for kernel, times in counts.kernels.items())
        return busy if recorded else max(busy, counts.launches * LAUNCH)

    def _kernel_seconds(self, kernel: Kernel) -> float:
        rate = {torch.int8: self.int8, torch.float32: self.float32}.get(kernel.products, self.half)
        return max(kernel.moved / self.bandwidth, kernel.flops / rate, SHORTEST_KERNEL)


CARDS = {
    # NVIDIA H100 data sheet, SXM5; without sparsity
    "H100": Card(3.35e12, half=989e12, float32=67e12, int8=1979e12),
    # NVIDIA Ada GPU architecture whitepaper, appendix A: GeForce RTX 4090; without sparsity, float32 accumulation
    "RTX 4090": Card(1.008e12, half=165.2e12, float32=82.6e12, int8=660.6e12),
    # GeForce RTX 3060 12 GB: 28 of GA102's multiprocessors of the NVIDIA Ampere GA102 whitepaper, at 1.777 GHz
    "RTX 3060": Card(0.36e12, half=25.5e12, float32=12.7e12, int8=101.9e12),
}


class Run(NamedTuple):
    """What was counted: columns that name it, the counts of a pass, step or picture, the predicted peak in bytes."""

    columns: dict[str, Value]
    counts: Counts
    predicted: int
    may_be_recorded: bool = False


def knows_meta() -> bool:
    """Whether the rotary embedding of this transformers can be computed on the meta device."""
    try:
        with generic.maybe_autocast("meta", enabled=False):
            return True
    except (AttributeError, RuntimeError):
        return False


def check(options: Namespace) -> None:
    if not knows_meta():
        raise ImportError("bench counts needs a newer transformers: pip install -U transformers")
    for rows in options.lookahead:
        check_lookahead(rows)
    if AUTO in options.lookahead:
        raise ValueError("--lookahead 0 leaves the number of tokens to the decoder; name one, 1 to 64")
    if min(options.sequences) < 1:
        raise ValueError(f"--batch is {min(options.sequences)}; use 1 or more")
    for quantization in options.quantization:
        check_format(quantization, META)


def measure(options: Namespace, glm: MetaGlmImage) -> Iterator[Table]:
    runs = list(_runs(options, glm))
    yield Table("What a GPU would be asked for; computed, not measured", [_counted(run) for run in runs])
    title = "Least milliseconds by the cards' data sheets, as a recorded graph / launched one by one; computed, not measured"
    yield Table(title, [_timed(run) for run in runs])


def _runs(options: Namespace, glm: MetaGlmImage) -> Iterator[Run]:
    for quantization in options.quantization:
        held = replace(glm, quantization=quantization)
        weights = {"weights": glm.dtype if quantization == "none" else quantization}
        for case in options.cases:
            picture = {"picture": case.columns["picture"]}
            passes = [(rows, batch) for rows in options.lookahead for batch in options.sequences if 1 in (rows, batch)]
            for rows, batch in passes:
                name = {"run": "AR pass, 1 token" if rows == 1 else f"AR pass, {rows} tokens"}
                counts, predicted = ar_pass(held.ar, case._replace(batch=batch), rows)
                yield Run(name | weights | picture | {"batch": batch}, counts, predicted, may_be_recorded=True)
            for references, name in enumerate(("guided step, text", "guided step, edit")):
                yield Run({"run": name} | weights | picture | {"batch": 1}, *guided_step(held.dit, case, references))
        del held
    for case in options.cases:
        columns = {"weights": glm.dtype, "picture": case.columns["picture"], "batch": 1}
        yield Run({"run": "VAE decode"} | columns, *vae_decode(glm.vae, case))
        yield Run({"run": "VAE encode"} | columns, *vae_encode(glm.vae, case))


def ar_pass(ar: ArModel, case: Case, rows: int) -> tuple[Counts, int]:
    """One pass of so many tokens of each sequence with its draws, and the predicted peak; the peak is that of prompt and pass."""
    ids = torch.zeros(PROMPT_TOKENS, dtype=torch.int64)
    positions, end = prompt_positions(len(ids), [], [])
    following = emitted_positions(end, emitted_grids(case))
    places = max(rows, SYNC_EVERY)
    fed = torch.cat((following[:, :-1], following[:, -1:].expand(-1, places)), dim=1)
    with counting(ar.model):
        prefill(ar, ids, positions, fed, batch=1)  # the first one joins weights
    with counting(ar.model) as counter:
        noise = torch.empty(case.batch, places, ar.codebook_size, device=META)
        logits, state = prefill(ar, ids, positions, fed, batch=case.batch)
        del logits
        tokens, steps = torch.zeros(case.batch, rows + 1, dtype=torch.int64, device=META).split((rows, 1), dim=1)
        inputs = tokens, steps[:, 0], noise[:, :rows].clone()  # a recorded pass reads memory of its own
        step = PlainSteps(state, Sampling(), masked_window)
        before = counter.take()
        step(*inputs)
        counts = counter.take()
    job = Job(case.width, case.height, case.batch, prompt_tokens=PROMPT_TOKENS)
    predicted = prior_bytes(ar.model.config, ar.dtype.itemsize, job, rows)
    predicted += product_bytes(ar.model, quantization_of(ar.model))
    return replace(counts, peak=max(before.peak, counts.peak)), predicted


def guided_step(dit: Dit, case: Case, references: int = 0) -> tuple[Counts, int]:
    """A step with guidance, also with references of the picture's size, and the predicted peak; the peak is that of a run."""
    config = dit.model.config
    rows, size = config.prior_vq_quantizer_codebook_size, (case.width, case.height)
    prior, (positive, negative) = random_prior(rows, case), random_glyphs(config.text_embed_dim)
    settings = {"seeds": range(case.batch), "references": [random_reference(rows, *size, seed) for seed in range(references)]}
    runs = []
    with counting(dit.model) as counter:
        for steps in (1, 1, 2) if references else (1, 2):  # the first run passes the references through the DiT
            sample(dit, prior, positive, negative, steps=steps, **settings)
            runs.append(counter.take())
    dit.cached_references.clear()
    job = Job(*size, case.batch, references=(size,) * references, glyph_tokens=GLYPHS, one_length=True)
    counts = replace(runs[-1] - runs[-2], peak=max(run.peak for run in runs))
    predicted = dit_bytes(config, dit.dtype.itemsize, job) + product_bytes(dit.model, quantization_of(dit.model))
    return counts, predicted


def vae_decode(vae: Vae, case: Case) -> tuple[Counts, int]:
    """Decoding a picture whole, and the predicted peak."""
    latents = torch.zeros(1, len(vae.space.mean), *latent_grid(case.width, case.height))
    with counting(vae.model) as counter:
        decode(vae, latents)
    return counter.take(), vae_decode_bytes(vae.model.config, vae.dtype.itemsize, case.width, case.height)


def vae_encode(vae: Vae, case: Case) -> tuple[Counts, int]:
    """Encoding a picture whole, and the predicted peak."""
    with counting(vae.model) as counter:
        encode(vae, torch.zeros(1, case.height, case.width, 3))
    return counter.take(), vae_encode_bytes(vae.model.config, vae.dtype.itemsize, case.width, case.height)


def _counted(run: Run) -> dict[str, Value]:
    counts = run.counts
    return run.columns | {
        "kernels": counts.launches,
        "GB moved": counts.moved / GB,
        "GB of weights read": counts.weights / GB,
        "TFLOP": counts.flops / 1e12,
        "waits": counts.waits.total(),
        "peak GB beside weights": counts.peak / GB,
        "predicted GB": run.predicted / GB,
        "predicted / counted": run.predicted / counts.peak,
    }


def _timed(run: Run) -> dict[str, Value]:
    times: dict[str, Value] = {}
    for name, card in CARDS.items():
        recorded, launched = (1000 * card.seconds(run.counts, recorded=recorded) for recorded in (True, False))
        times |= {f"{name} recorded": recorded if run.may_be_recorded else None, f"{name} launched": launched}
    return run.columns | times
