"""A part of a plan written again: the tokens that a mask covers are drawn anew, all others stay what they are.

The tokens outside the mask are forced: the AR model reads them where they stand and its own draws there count for nothing. It
sees those above and to the left of a hole. What is below and to the right it sees only in a reference.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..diffusion import Grid
from ..masks import as_batch, touched
from ..progress import Progress, no_progress
from .ar_model import ArModel
from .draw import Sampling
from .experience import NONE
from .geometry import preview_grid, prior_grid
from .lookahead import AUTO, SIZES
from .prior import Prior, check_codebook, common_batch, generate_prior
from .references import Reference


def regrow_prior(
    ar: ArModel,
    prior: Prior,
    mask: torch.Tensor,
    prompt: str,
    *,
    seed: int,
    batch: int | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008, immutable
    references: Sequence[Reference] = (),
    lookahead: int = AUTO,
    most_rows: int = SIZES[-1],
    progress: Progress = no_progress,
) -> Prior:
    """Draw the tokens of a plan anew that a mask touches. prompt: describes the picture or, with references, the change.

    mask: [1 or B, H, W] of any size, see `masks`. The whole of a token's 32 x 32 pixels is drawn anew where one of its pixels is
    masked. batch: how many plans, by default as many as there are; a prior and a mask of one serve all of them. Plan i is drawn
    with seed + i: the noise of a place is that of `generate_prior`. Without references the preview is forced too where the mask
    does not touch it; a plan that has none gets a new one.

    A mask that covers nothing gives the tokens back, and the model does not run. Raises ValueError as `generate_prior` does, for
    a prior of another codebook and for counts that do not go together.
    """
    check_regrow(ar, prior, mask, batch=batch)
    batch = batch or max(prior.batch, len(as_batch(mask)))
    forced = forced_tokens(prior, mask, with_preview=not references).expand(batch, -1)
    if NONE not in forced:
        preview = None if references else prior.preview.expand(batch, -1, -1)
        return Prior(
            prior.tokens.expand(batch, -1, -1),
            preview,
            width=prior.width,
            height=prior.height,
            prompt=prompt,
            seed=seed,
            sampling=sampling,
            codebook=prior.codebook,
            references=tuple(reference.id for reference in references),
            dropped=_still_dropped(prior, mask, batch),
        )
    regrown = generate_prior(
        ar,
        prompt,
        prior.width,
        prior.height,
        seed=seed,
        batch=batch,
        sampling=sampling,
        references=references,
        lookahead=lookahead,
        most_rows=most_rows,
        forced=forced,
        progress=progress,
    )
    return replace(regrown, dropped=_still_dropped(prior, mask, batch))


def _still_dropped(prior: Prior, mask: torch.Tensor, batch: int) -> torch.Tensor | None:
    """The tokens that the DiT is still not to see: those that are not planned anew, [B, h, w] bool."""
    if prior.dropped is None:
        return None
    return (prior.dropped & ~touched(mask, prior_grid(prior.width, prior.height))).expand(batch, -1, -1)


def check_regrow(ar: ArModel, prior: Prior, mask: torch.Tensor, *, batch: int | None = None) -> None:
    """Raise ValueError for a prior of another AR model, and for counts that do not go together. Runs nothing."""
    check_codebook(prior, ar.codebook)
    common_batch({"priors": prior.batch, "masks": len(as_batch(mask)), "plans": batch or 1})


def forced_tokens(prior: Prior, mask: torch.Tensor, *, with_preview: bool) -> torch.Tensor:
    """The tokens of a plan where a mask does not touch them and NONE elsewhere, in the order they are emitted: [B, T] int64."""
    large = prior_grid(prior.width, prior.height)
    kept = [_kept(prior.tokens, mask, large)]
    if with_preview:
        small = preview_grid(large)
        blank = torch.full((1, *small), NONE)
        kept.insert(0, _kept(blank if prior.preview is None else prior.preview, mask, small))
    batch = max(len(tokens) for tokens in kept)
    return torch.cat([tokens.expand(batch, -1) for tokens in kept], dim=1)


def _kept(tokens: torch.Tensor, mask: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[B, h, w] -> [B, h * w], NONE where the mask touches."""
    cells = touched(mask, grid).to(tokens.device)
    return torch.where(cells, NONE, tokens).flatten(1)
