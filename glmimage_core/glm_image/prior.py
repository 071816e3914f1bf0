"""Stage 1: prior tokens, the plan of a picture, written by the AR model.

    generate_prior   the plan of a picture, whole
    write_grids      layout.py lays out prompt and grids, decoder.py runs the model, draw.py draws
    decode_tokens    the prompt, then pass after pass; each computes a window of one known token and of guesses after it

Drawn with the noise of the seed, a token is a function of all before it. A guess that comes out as it was guessed has given the
token after it too, so a pass makes one token known and one more for each leading guess that is right: the tokens are those of
the one-at-a-time loop. Relatives that keep the distribution, and not the tokens: speculative Jacobi decoding, arXiv 2410.01699.

Knows nothing of devices beyond where the model is, and nothing of the process's global seed.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from ..diffusion import Grid, image_seeds
from ..progress import Progress, no_progress
from .ar_model import ArModel
from .decoder import prefill
from .drafts import Foresight, at_same_place, in_preview
from .draw import Noise, Sampling, Variation, draw
from .experience import Experience
from .geometry import check_size, preview_grid, prior_grid
from .layout import Layout, check_prompt, lay_out
from .lookahead import AUTO, MARGIN, MARGIN_OF_BATCHES, SIZES, AssumedCosts, PassCosts, best_size, check_lookahead, least_chance
from .recording import Step, decoder
from .references import Reference
from .token_preview import token_picture

log = logging.getLogger(__name__)
SYNC_EVERY = 8
"""Passes of one token that an accelerator runs before the CPU reads their tokens. Reading waits for the device; eight hide the
wait and still show progress and react to an interrupt many times a second. A longer pass is read at once, for its guesses."""
MOST_REST = 15
"""Tokens without a guess, at most, after guesses that were not worth a row: first one, then three, then seven."""


@dataclass(frozen=True, eq=False)
class Prior:
    """Prior tokens and how they came about.

    tokens: [B, height / 32, width / 32] int64 on the CPU. preview: [B, h, w] int64 on the CPU, or None for an edit.
    Image i was drawn with seed + i. references are the ids of the references that the AR model saw, in order. passes: how often
    the AR model ran after the prompt, all pictures at once. dropped: [B, height / 32, width / 32] bool, the tokens that the DiT
    is not to see, or None where it sees them all. expands_to: of a sketch, whose tokens are the preview of a larger picture, that
    picture's width and height in pixels.
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
    passes: int = 0
    dropped: torch.Tensor | None = None
    expands_to: tuple[int, int] | None = None

    @property
    def batch(self) -> int:
        return len(self.tokens)

    @property
    def tokens_a_picture(self) -> int:
        """How many tokens were written for each picture, its preview included."""
        return self.tokens[0].numel() + (0 if self.preview is None else self.preview[0].numel())

    @property
    def tokens_a_pass(self) -> float:
        """How many tokens of each picture a pass made known on average; the prompt's pass gave the first one."""
        return (self.tokens_a_picture - 1) / max(self.passes, 1)


def check_codebook(prior: Prior, codebook: str) -> None:
    """Raise ValueError for a plan whose tokens index another codebook than a model's; "" on either side is not known."""
    if prior.codebook and codebook and prior.codebook != codebook:
        raise ValueError(
            "the prior was made with another checkpoint's codebook, so its tokens mean something else to this model; load AR "
            "model and DiT from one checkpoint, or a plan that was made with this one"
        )


def common_batch(counts: Mapping[str, int]) -> int:
    """How many plans come of so many inputs, by what they are called. Raises ValueError for counts that do not go together."""
    if len(set(counts.values()) - {1}) > 1:
        counted = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"{counted} do not go together; use 1 or as many of each")
    return max(counts.values())


def generate_prior(
    ar: ArModel,
    prompt: str,
    width: int,
    height: int,
    *,
    seed: int,
    batch: int = 1,
    sampling: Sampling = Sampling(),  # noqa: B008, immutable
    references: Sequence[Reference] = (),
    lookahead: int = AUTO,
    most_rows: int = SIZES[-1],
    forced: torch.Tensor | None = None,
    variation: Variation | None = None,
    progress: Progress = no_progress,
) -> Prior:
    """Plan `batch` pictures of width x height pixels.

    Emits exactly the tokens of the preview grid (text-to-image only) and of the large grid, all of them indices into
    the codebook. forced: [batch, T] int64 over both grids, tokens that are taken whatever the model draws, NONE where its
    draw counts. lookahead: how many tokens a pass computes, 1 to 64, or AUTO for as many as are fastest; it changes no token,
    except where a product of several rows rounds differently from one of a single row, as it may in bfloat16. most_rows: for
    how many there is memory. variation: plans near that of the seed, which all of them then begin with; plan i goes towards the
    variation's seed + i. Raises ValueError for a bad size, prompt or lookahead before the model runs.
    """
    check_size(width, height)
    large = prior_grid(width, height)
    grids = [large] if references else [preview_grid(large), large]  # in the order they are emitted
    emitted, passes = write_grids(
        ar,
        prompt,
        grids,
        seed=seed,
        batch=batch,
        sampling=sampling,
        references=references,
        lookahead=lookahead,
        most_rows=most_rows,
        forced=forced,
        variation=variation,
        progress=progress,
    )
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
        passes=passes,
    )


@torch.inference_mode()
def write_grids(
    ar: ArModel,
    prompt: str,
    grids: Sequence[Grid],
    *,
    seed: int,
    batch: int,
    sampling: Sampling,
    references: Sequence[Reference] = (),
    lookahead: int = AUTO,
    most_rows: int = SIZES[-1],
    forced: torch.Tensor | None = None,
    variation: Variation | None = None,
    wanted: int | None = None,
    progress: Progress = no_progress,
) -> tuple[list[torch.Tensor], int]:
    """Emit the tokens of grids that follow one another after a prompt. wanted: how many of the grids, by default all; the prompt
    names all of them. The rest is as `generate_prior` takes it, and is checked before the model runs.

    Returns a [batch, height, width] int64 tensor per grid on the CPU, and the number of passes.
    """
    check_lookahead(lookahead)
    check_prompt(ar, prompt)
    if batch < 1:
        raise ValueError(f"{batch} plans were asked for; ask for one or more")
    if sampling.temperature == 0:
        log.warning("temperature 0 takes the likeliest token every time; the model degenerates to flat areas that way")
    layout = lay_out(ar, prompt, grids, references)
    sources = {f"reference {number}": at_same_place(one.vision_tokens, grids) for number, one in enumerate(references, start=1)}
    sources = sources or {"preview": in_preview(grids)}
    experience = ar.experience if ar.is_exact else Experience()  # else a plan would depend on those before it, by its rounding
    kept = [()] * batch if forced is None else forced.tolist()
    writers = [Foresight(grids, sources, experience, forced=tokens) for tokens in kept]
    return decode_grids(
        ar,
        layout,
        writers,
        seeds=image_seeds(seed, batch) if variation is None else [seed] * batch,
        sampling=sampling,
        lookahead=lookahead,
        most_rows=most_rows,
        variations=() if variation is None else variation.of_batch(batch),
        wanted=wanted,
        progress=progress,
    )


def decode_grids(
    ar: ArModel,
    layout: Layout,
    writers: Sequence[Foresight],
    *,
    seeds: Sequence[int],
    sampling: Sampling,
    lookahead: int = AUTO,
    most_rows: int = SIZES[-1],
    variations: Sequence[Variation] = (),
    wanted: int | None = None,
    progress: Progress = no_progress,
) -> tuple[list[torch.Tensor], int]:
    """Emit the grids of the writers, one for each seed. wanted: only so many of the grids.

    Returns a [B, height, width] int64 tensor per grid on the CPU, and the number of passes.
    """
    grids, length = writers[0].writing.grids, layout.following.shape[1]
    sizes = [grid.tokens for grid in grids[:wanted]]
    total = sum(sizes)
    emitted = torch.zeros(len(seeds), length, dtype=torch.int64)  # [B, T]
    done = passes = 0
    progress(done, total)
    settings = {"seeds": seeds, "sampling": sampling, "lookahead": lookahead, "most_rows": most_rows, "variations": variations}
    with closing(decode_tokens(ar, layout, writers, **settings)) as written:
        for tokens, ran in written:
            emitted[:, done : done + tokens.shape[1]] = tokens
            done, passes = done + tokens.shape[1], ran
            progress(min(done, total), total, lambda so_far=emitted[:, :done]: token_picture(ar.palette, so_far, grids))
            if done >= total:
                break
    split = emitted[:, :total].split(sizes, dim=1)
    return [tokens.reshape(-1, *grid) for tokens, grid in zip(split, grids[:wanted], strict=True)], passes


def decode_tokens(
    ar: ArModel,
    layout: Layout,
    writers: Sequence[Foresight],
    *,
    seeds: Sequence[int],
    sampling: Sampling,
    lookahead: int = AUTO,
    most_rows: int = SIZES[-1],
    variations: Sequence[Variation] = (),
) -> Iterator[tuple[torch.Tensor, int]]:
    """Emit T tokens for each seed; yields those that all sequences have come to know, [B, n] int64 on the CPU, and the number of
    passes so far.

    All seeds share the prompt, so it is run once and its cache repeated. Each sequence goes on at its own pace; one that has
    ended writes where nobody reads. The last token is drawn but never fed back: nothing follows it. Raises ValueError for logits
    that are not finite.
    """
    if lookahead > most_rows:
        log.warning("lookahead %d needs more memory than is free; %d tokens a pass", lookahead, most_rows)
        lookahead = most_rows
    total, at_once = layout.following.shape[1], tokens_per_sync(ar.device)
    spare = layout.following[:, -1:].expand(-1, max(lookahead or most_rows, at_once))  # for what is fed after the end
    fed = torch.cat((layout.following[:, :-1], spare), dim=1)
    logits, state = prefill(ar, layout.ids, layout.positions, fed, batch=len(seeds))
    width = ar.model.config.text_config.vision_vocab_size
    noise = Noise(seeds, places=total, width=width, kept=ar.codebook_size, variations=variations)
    first = draw(sampling, logits, noise.windows([0] * len(seeds), 1)[:, 0].to(ar.device))[:, None].cpu()
    if not torch.isfinite(logits).all():
        raise ValueError(
            f"the AR model computes numbers that are not finite in {ar.dtype}: load it in bfloat16 or float32, or it is broken"
        )
    for writer, tokens in zip(writers, first.tolist(), strict=True):
        writer.accept(tokens)
    passes, costs = 0, ar.pass_costs(len(seeds))
    done = min(writer.known for writer in writers)
    yield torch.tensor([writer.writing.tokens[:done] for writer in writers]), passes
    with decoder(state, sampling) as step:
        rest = resting = 0  # tokens without a guess, where guesses were not worth a row
        while done < total:
            guesses = lookahead != 1 and (resting <= 0 or any(writer.is_forced for writer in writers))
            rows = _guess_and_size(writers, costs, lookahead, most_rows) if guesses else 1
            count = min(writer.until_forced(min(at_once, total - done)) for writer in writers) if rows == 1 else 1
            started = time.perf_counter()
            window = noise.windows([writer.known for writer in writers], rows * count).to(ar.device)
            drawn = _launch(step, writers, window, rows)
            if ar.device.type != "cpu":
                noise.prepare(2 * rows * count)  # while the device works
            drawn = drawn.tolist()  # waits for the device
            costs.note(rows, (time.perf_counter() - started) / count)
            for writer, tokens in zip(writers, drawn, strict=True):
                if rows > 1:
                    writer.accept(tokens)
                    continue
                for token in tokens[: writer.total - writer.known]:
                    writer.accept([token]) if guesses else writer.take(token)
            if guesses:
                rest = 0 if rows > 1 else min(2 * rest + 1, MOST_REST)
            resting = rest if guesses else resting - count
            passes += count
            before, done = done, min(writer.known for writer in writers)
            yield torch.tensor([writer.writing.tokens[before:done] for writer in writers]), passes


def _guess_and_size(writers: Sequence[Foresight], costs: PassCosts | AssumedCosts, lookahead: int, most_rows: int) -> int:
    """Guess what follows, and say how many tokens the next pass is to have."""
    if lookahead:
        for writer in writers:
            writer.guess(lookahead - 1)
        return lookahead
    seconds = costs.estimates()
    chances = [writer.guess(most_rows - 1, least_chance(seconds)) for writer in writers]
    behind = min(writer.known for writer in writers)  # the run ends when its slowest sequences do
    slowest = [reach for reach, writer in zip(chances, writers, strict=True) if writer.known == behind]
    return best_size(slowest, seconds, most_rows, margin=MARGIN if len(writers) == 1 else MARGIN_OF_BATCHES)


def tokens_per_sync(device: torch.device) -> int:
    """How many passes of one token run before the CPU reads them. Reading makes an accelerator wait; the CPU need not."""
    return 1 if device.type == "cpu" else SYNC_EVERY


def _launch(step: Step, writers: Sequence[Foresight], noise: torch.Tensor, rows: int) -> torch.Tensor:
    """Run a pass of `rows` tokens, or several passes of one token, for noise of as many places: [B, places, V].

    Returns what was drawn for each place, [B, places] on the device, which may still be at work.
    """
    tokens = torch.tensor([writer.window(rows) for writer in writers], device=noise.device)
    steps = torch.tensor([writer.known - 1 for writer in writers], device=noise.device)
    drawn = []
    for start in range(0, noise.shape[1], rows):
        tokens = step(tokens, steps + start, noise[:, start : start + rows])
        drawn.append(tokens.clone())  # the next pass may write to the same memory
    return torch.cat(drawn, dim=1)
