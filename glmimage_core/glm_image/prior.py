"""Stage 1: prior tokens, the plan of a picture, written by the AR model one token at a time.

    generate_prior   layout.py lays out prompt and grids, decoder.py runs the model
    decode_tokens    the prompt, then token after token
    sampler          temperature, top-k, top-p, then a race of exponentials drawn on the CPU

Knows nothing of devices beyond where the model is, and nothing of the process's global seed.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..diffusion import Grid, image_seeds
from ..progress import Progress, no_progress
from .ar_model import ArModel
from .decoder import decoder, prefill
from .geometry import check_size, preview_grid, prior_grid
from .layout import Layout, check_prompt, lay_out
from .references import Reference
from .token_preview import token_picture

log = logging.getLogger(__name__)
SYNC_EVERY = 8
"""Tokens that an accelerator decodes before the CPU reads them. Reading waits for the device; eight hide the wait and still
show progress and react to an interrupt many times a second."""


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the logits. The defaults are the reference implementation's.

    temperature 0 takes the likeliest token, top_p 1 and top_k 0 switch those filters off. Raises ValueError for values
    that mean nothing.
    """

    temperature: float = 0.9
    top_p: float = 0.75
    top_k: int = 50

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie above 0 and not above 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (off) or above")


@dataclass(frozen=True, eq=False)
class Prior:
    """Prior tokens and how they came about.

    tokens: [B, height / 32, width / 32] int64 on the CPU. preview: [B, h, w] int64 on the CPU, or None for an edit.
    Image i was drawn with seed + i. references are the ids of the references that the AR model saw, in order.
    """

    tokens: torch.Tensor
    preview: torch.Tensor | None
    width: int  # pixels
    height: int
    prompt: str
    seed: int
    sampling: Sampling
    codebook: str
    references: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        return len(self.tokens)


@torch.inference_mode()
def generate_prior(
    ar: ArModel,
    prompt: str,
    width: int,
    height: int,
    *,
    seed: int,
    batch: int = 1,
    sampling: Sampling = Sampling(),
    references: Sequence[Reference] = (),
    progress: Progress = no_progress,
) -> Prior:
    """Plan `batch` pictures of width x height pixels.

    Emits exactly the tokens of the preview grid (text-to-image only) and of the large grid, all of them indices into
    the codebook. Raises ValueError for a bad size or prompt before the model runs.
    """
    check_size(width, height)
    check_prompt(ar, prompt)
    if sampling.temperature == 0:
        log.warning("temperature 0 takes the likeliest token every time; the model degenerates to flat areas that way")
    large = prior_grid(width, height)
    grids = [large] if references else [preview_grid(large), large]  # in the order they are emitted
    layout = lay_out(ar, prompt, grids, references)
    emitted = decode_grids(ar, layout, grids, seeds=image_seeds(seed, batch), sampling=sampling, progress=progress)
    return Prior(
        tokens=emitted[-1],
        preview=None if references else emitted[0],
        width=width,
        height=height,
        prompt=prompt,
        seed=seed,
        sampling=sampling,
        codebook=ar.codebook,
        references=tuple(reference.id for reference in references),
    )


def decode_grids(
    ar: ArModel,
    layout: Layout,
    grids: Sequence[Grid],
    *,
    seeds: Sequence[int],
    sampling: Sampling,
    progress: Progress = no_progress,
) -> list[torch.Tensor]:
    """Emit the grids one after another for each seed. Returns one [B, height, width] int64 tensor per grid, on the CPU."""
    total = layout.following.shape[1]
    emitted = torch.zeros(len(seeds), total, dtype=torch.int64)  # [B, T]
    done = 0
    progress(done, total)
    for tokens in decode_tokens(ar, layout, seeds, sampler(sampling)):
        emitted[:, done : done + tokens.shape[1]] = tokens
        done += tokens.shape[1]
        progress(done, total, lambda so_far=emitted[:, :done]: token_picture(ar.palette, so_far, grids))
    split = emitted.split([grid.tokens for grid in grids], dim=1)
    return [tokens.reshape(-1, *grid) for tokens, grid in zip(split, grids, strict=True)]


Sample = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits [B, V], exponential noise [B, V]) -> tokens [B]."""


def decode_tokens(ar: ArModel, layout: Layout, seeds: Sequence[int], sample: Sample) -> Iterator[torch.Tensor]:
    """Emit T tokens for each seed; yields [B, n] int64 on the CPU, one token or SYNC_EVERY at once.

    All seeds share the prompt, so it is run once and its cache repeated. The last token is sampled but never fed back:
    nothing follows it.
    """
    total, vocabulary = layout.following.shape[1], ar.model.config.text_config.vision_vocab_size
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    at_once = tokens_per_sync(ar.device)
    logits, state = prefill(ar, layout.ids, layout.positions, layout.following[:, :-1], batch=len(seeds))
    decode = decoder(state)
    next_noise = exponential_noise(generators, min(at_once, total), vocabulary)
    for start in range(0, total, at_once):
        steps = range(start, min(start + at_once, total))
        noise = next_noise.to(ar.device)
        tokens = torch.empty(len(seeds), len(steps), dtype=torch.int64, device=ar.device)
        for index, step in enumerate(steps):
            token = sample(logits, noise[:, index, : ar.codebook_size])
            tokens[:, index] = token
            if step + 1 < total:
                logits = decode(token, step)
        next_noise = exponential_noise(generators, min(at_once, total - steps.stop), vocabulary)  # while the device works
        yield tokens.cpu()  # waits for the device


def tokens_per_sync(device: torch.device) -> int:
    """How many tokens are decoded before the CPU reads them: reading makes an accelerator wait, and costs the CPU nothing."""
    return 1 if device.type == "cpu" else SYNC_EVERY


def exponential_noise(generators: Sequence[torch.Generator], count: int, width: int) -> torch.Tensor:
    """Exponential noise on the CPU for `count` tokens of each sequence: [B, count, width] float32.

    Token by token, as the reference implementation draws it: one call for several tokens would give other numbers.
    """
    noise = torch.empty(len(generators), count, width)
    for rows, generator in zip(noise, generators, strict=True):
        for row in rows:
            row.exponential_(generator=generator)
    return noise


def sampler(sampling: Sampling) -> Sample:
    """How tokens are drawn: by transformers' own filters in its order, then the race."""
    if sampling.temperature == 0:
        return lambda logits, noise: logits.argmax(dim=-1)

    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    filters = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(sampling.top_p))

    def sample(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        for keep in filters:
            logits = keep(None, logits)
        # `torch.multinomial(p, 1)` is the argmax of p / E with E exponential. With E from the CPU, tokens are those of the
        # reference implementation there, and the same ones on every device and in every batch.
        return (logits.softmax(dim=-1) / noise).argmax(dim=-1)

    return sample
