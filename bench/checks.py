"""Whether a device computes what it should: a row for each check, with the reason where it fails or cannot run.

What is quick on a device has a plain way beside it, and both must agree: a recorded CUDA graph with plain passes, several tokens
a pass with one, a streamed DiT with a resident one, quantized weights and whole pictures with the CPU's. On random weights.
"""

import logging
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from PIL import Image
from torch.nn import LayerNorm
from torch.nn.functional import scaled_dot_product_attention

from ..cli.version import version_of
from ..glmimage_core.diffusion import image_seeds
from ..glmimage_core.glm_image.denoise import sample
from ..glmimage_core.glm_image.dit import Dit
from ..glmimage_core.glm_image.dit_block import modulated
from ..glmimage_core.glm_image.prior import generate_prior
from ..glmimage_core.glm_image.rope import Rotation
from ..glmimage_core.glm_image.split_decode import can_split, split_decode
from ..glmimage_core.placement.streaming import streamed
from ..glmimage_core.weights.formats import FORMATS, check_format, inner_tensors
from ..glmimage_core.weights.linear import quantize_weight
from .inputs import PROMPT, random_glyphs, random_prior, random_reference
from .measure import Case
from .models import CPU, EVERYTHING, FULL, RandomGlmImage
from .table import Table, Value

OK, FAILED, NOT_HERE = RESULTS = ("ok", "failed", "not here")
SIDE = 256  # pixels
WINDOWS = (1, 4, 16)  # tokens a pass
STEPS = 2
RUNS = 3  # after which nothing more may stay in memory
LEVELS = 2 / 255  # by which a picture may differ from the CPU's: convolutions may round to TF32
# Relative L2 distance of a quantized product from the CPU's. The CPU's own are up to 0.006 from the exact ones (int8, which
# quantizes its inputs too), and another device may round the other way.
PRODUCT_ERROR = 0.02

Check = Callable[[], str | None]
"""Returns what is wrong, or None."""


class NotHereError(Exception):
    """Says why a check cannot run on this device or with these libraries."""


def check(options: Namespace) -> None:
    if options.size == FULL:
        raise ValueError(f"checks compare with the CPU, where --size {FULL} would take hours; use tiny, small or medium")


def measure(options: Namespace, glm: RandomGlmImage) -> Iterator[Table]:
    rows = []
    for name, run in checks(glm, options.seed).items():
        rows.append({"check": name} | _outcome(run))
        yield Table(f"Checks; each at {SIDE}x{SIDE} with random weights", rows)


def checks(glm: RandomGlmImage, seed: int) -> dict[str, Check]:
    """All checks by what they say."""
    exact, edits = replace(glm, dtype="float32"), {"text": False, "edit": True}
    return {
        "comfy-kitchen's operations are the formulas": partial(_operations, glm, seed),
        **{f"a recorded pass of {rows} draws as a plain one": partial(_recorded, glm, rows, seed) for rows in WINDOWS},
        "several tokens a pass are those of one, float32": partial(_windows, exact, seed),
        **{f"plan and picture are the CPU's, float32, {run}": partial(_whole, exact, edit, seed) for run, edit in edits.items()},
        **{f"a streamed DiT paints as a resident one, {run}": partial(_streamed, glm, edit, seed) for run, edit in edits.items()},
        **{f"{name} has the CPU's codes and scales": partial(_codes, glm, name, seed) for name in FORMATS},
        **{f"{name} has the CPU's products": partial(_products, glm, name, seed) for name in FORMATS},
        "no memory stays after a run": partial(_memory, glm, seed),
    }


def _outcome(run: Check) -> dict[str, Value]:
    """What a check came to. Errors are those that the command line tells in a line; warnings of the pack are told too."""
    began = time.perf_counter()
    with _warnings() as warned:
        try:
            wrong = run()
            result = FAILED if wrong else OK
        except NotHereError as error:
            wrong, result = str(error), NOT_HERE
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            wrong, result = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}", FAILED
    reason = "; ".join([*([wrong] if wrong else []), *warned])
    return {"result": result, "seconds": time.perf_counter() - began, "reason": reason or None}


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the pack warns of during a with block."""
    messages, pack = [], logging.getLogger(__name__.partition(".")[0])
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    pack.addHandler(handler)
    try:
        yield messages
    finally:
        pack.removeHandler(handler)


def _needs(glm: RandomGlmImage, kind: str, what: str) -> None:
    if glm.device.type != kind:
        raise NotHereError(f"{what} on {kind.upper()} only, and this is {glm.device.type}")


def _needs_other_than_cpu(glm: RandomGlmImage) -> None:
    if glm.device.type == "cpu":
        raise NotHereError("this is the CPU itself")


def _differing(ours: torch.Tensor, theirs: torch.Tensor) -> str | None:
    """How many numbers of two tensors differ, if any do."""
    count = int((ours.cpu() != theirs.cpu()).sum())
    return f"{count} of {ours.numel()} differ" if count else None


@torch.inference_mode()
def _operations(glm: RandomGlmImage, seed: int) -> str | None:
    """Rotation, modulation and the attention of one token, in bfloat16, against PyTorch's own on the CPU."""
    _needs_other_than_cpu(glm)
    if version_of("comfy-kitchen") is None:
        raise NotHereError("comfy-kitchen is not installed")
    generator = torch.Generator().manual_seed(seed)
    angles, norm = torch.randn(7, 32, generator=generator).repeat(1, 2), LayerNorm(128, elementwise_affine=False)
    query, keys, values = (torch.randn(2, tokens, 4, 128, generator=generator).bfloat16() for tokens in (7, 7, 7))
    lengths = torch.tensor([3, 7], dtype=torch.int32)

    def results(device: torch.device) -> dict[str, torch.Tensor]:
        heads = query.to(device, copy=True)
        rotation = Rotation.of(angles.cos().to(device), angles.sin().to(device))
        rotation.rotate_(heads)
        pair = torch.cat((heads, heads), dim=1), torch.cat((heads.neg(), heads), dim=1)
        rotation.rotate_(*(tokens[:, 7:] for tokens in pair))  # as those of a picture behind a text
        flat, (scale, shift) = heads.flatten(1, 2), heads[:, None, :2, 0].unbind(2)
        found = {"rotation": heads, "rotation of two": torch.cat(pair), "modulation": modulated(flat, norm, scale, shift)}
        cache = keys.to(device), values.to(device)
        if can_split(cache[0], 128**-0.5):
            found["attention of one token"] = split_decode()(heads[:, :1], *cache, lengths.to(device))
        elif device == CPU:
            seen = (torch.arange(7) < lengths[:, None])[:, None, None]
            mixed = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (heads[:, :1], *cache)), attn_mask=seen)
            found["attention of one token"] = mixed.transpose(1, 2)
        return found

    expected = results(CPU)
    for name, ours in results(glm.device).items():
        error = ((ours.cpu() - expected[name]).float().norm() / expected[name].float().norm()).item()
        if not error <= PRODUCT_ERROR:
            return f"{name}: a relative distance of {error:.3g}"
    return None


def _recorded(glm: RandomGlmImage, rows: int, seed: int) -> str | None:
    _needs(glm, "cuda", "passes are recorded")
    ways = [replace(glm.ar, weights_are_static=True, may_record=recorded) for recorded in (True, False)]
    recorded, plain = (generate_prior(ar, PROMPT, SIDE, SIDE, seed=seed, batch=2, lookahead=rows).tokens for ar in ways)
    if glm.device in glm.ar.cannot_record:
        return "recording failed"
    return _differing(recorded, plain)


def _windows(glm: RandomGlmImage, seed: int) -> str | None:
    several, one = (
        generate_prior(glm.ar, PROMPT, SIDE, SIDE, seed=seed, batch=2, lookahead=rows).tokens for rows in (WINDOWS[-1], 1)
    )
    return _differing(several, one)


def _whole(glm: RandomGlmImage, edit: bool, seed: int) -> str | None:
    """The same models first on the CPU, then moved to the device."""
    _needs_other_than_cpu(glm)
    here = replace(glm, device=CPU)
    there = replace(glm)
    there.ar, there.glyph_encoder, there.dit, there.vae = here.ar, here.glyph_encoder, here.dit, here.vae
    picture = Image.linear_gradient("L").convert("RGB").resize((SIDE, SIDE))
    plans, pictures = [], []
    for one in (here, there):
        references = [one.reference(picture)] if edit else []
        plans.append(one.plan(PROMPT, SIDE, SIDE, seed=seed, references=references))
        pictures.append(one.paint_tensor(plans[0], seed=seed, steps=STEPS, references=references))
    if differing := _differing(*(plan.tokens for plan in plans)):
        return f"tokens of the plan: {differing}"
    distance = (pictures[0] - pictures[1]).abs().max().item()
    return f"pixels differ by up to {255 * distance:.1f} of 255" if distance > LEVELS else None


def _streamed(glm: RandomGlmImage, edit: bool, seed: int) -> str | None:
    _needs(glm, "cuda", "models are streamed")
    resident = _latents(glm.dit, edit, seed)
    dit = replace(glm, offloaded=EVERYTHING).dit
    with streamed(dit.model, dit.blocks, resident=0, device=glm.device):
        copied = _latents(dit, edit, seed)
    return _differing(copied, resident)


def _latents(dit: Dit, edit: bool, seed: int) -> torch.Tensor:
    dit.cached_references.clear()
    config = dit.model.config
    rows = config.prior_vq_quantizer_codebook_size
    references = [random_reference(rows, SIDE, SIDE, seed)] if edit else []
    prior = random_prior(rows, Case(SIDE, SIDE, 1), seed)
    positive, negative = random_glyphs(config.text_embed_dim, seed)
    return sample(dit, prior, positive, negative, seeds=image_seeds(seed, 1), steps=STEPS, references=references)


def _quantized(glm: RandomGlmImage, quantization: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight that was quantized on the CPU, and the same weight quantized on the device."""
    _needs_other_than_cpu(glm)
    try:
        check_format(quantization, glm.device)
    except (ValueError, ImportError) as error:
        raise NotHereError(str(error)) from error
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return quantize_weight(weight, quantization), quantize_weight(weight.to(glm.device), quantization)


def _codes(glm: RandomGlmImage, quantization: str, seed: int) -> str | None:
    here, there = _quantized(glm, quantization, seed)
    for what, ours, theirs in zip(("codes", "scales"), inner_tensors(there), inner_tensors(here), strict=True):
        if differing := _differing(ours, theirs):
            return f"{what}: {differing}"
    return None


@torch.inference_mode()
def _products(glm: RandomGlmImage, quantization: str, seed: int) -> str | None:
    """Of one row, for which formats may have a kernel of their own, and of several, both with the CPU's codes."""
    here, _ = _quantized(glm, quantization, seed)
    there = here.to(glm.device)
    for rows in (1, 16):
        x = torch.randn(rows, here.shape[1], generator=torch.Generator().manual_seed(seed)).bfloat16()
        expected = torch.nn.functional.linear(x, here)
        product = torch.nn.functional.linear(x.to(glm.device), there).cpu()
        error = ((product - expected).float().norm() / expected.float().norm()).item()
        if not error <= PRODUCT_ERROR:
            return f"of {rows} rows: a relative distance of {error:.3g}"
    return None


def _memory(glm: RandomGlmImage, seed: int) -> str | None:
    _needs(glm, "cuda", "memory is counted")
    torch.cuda.synchronize(glm.device)
    left = []
    for number in range(RUNS):
        plan = glm.plan(PROMPT, SIDE, SIDE, seed=seed + number)
        glm.paint_tensor(plan, seed=seed, steps=STEPS)
        left.append(torch.cuda.memory_allocated(glm.device))
    return f"{left[-1] - left[0]} bytes more after {RUNS - 1} more runs" if left[-1] > left[0] else None
