"""Sketch, choose, expand: many previews for the price of a few plans, and whole plans of the best alone.

    sketch_priors    the previews of a batch, which fix what is where
    expand_sketches  plans that begin with these previews

At 1024 x 1024 pixels a preview has 256 tokens and the plan 1024 more. A sketch is a plan of its own, of a smaller picture, so
that it can be painted, looked at, kept and cut like any other.
"""

from dataclasses import replace

import torch

from ..diffusion import Grid
from ..progress import Progress, no_progress
from .ar_model import ArModel
from .draw import Sampling, Variation
from .experience import NONE
from .geometry import PRIOR_PX, check_size, preview_grid, prior_grid
from .lookahead import AUTO, SIZES
from .prior import Prior, check_codebook, generate_prior, write_grids


def sketch_priors(
    ar: ArModel,
    prompt: str,
    width: int,
    height: int,
    *,
    seed: int,
    batch: int = 1,
    sampling: Sampling = Sampling(),  # noqa: B008, immutable
    lookahead: int = AUTO,
    most_rows: int = SIZES[-1],
    variation: Variation | None = None,
    progress: Progress = no_progress,
) -> Prior:
    """The previews of `batch` pictures of width x height pixels, each the one that `generate_prior` begins with.

    Takes what `generate_prior` takes, and raises as it does.
    """
    check_size(width, height)
    large = prior_grid(width, height)
    (preview,), passes = write_grids(
        ar,
        prompt,
        [preview_grid(large), large],
        seed=seed,
        batch=batch,
        sampling=sampling,
        lookahead=lookahead,
        most_rows=most_rows,
        variation=variation,
        wanted=1,
        progress=progress,
    )
    rows, columns = preview.shape[1:]
    return Prior(
        tokens=preview,
        preview=None,
        width=columns * PRIOR_PX,
        height=rows * PRIOR_PX,
        prompt=prompt,
        seed=seed,
        sampling=sampling,
        codebook=ar.codebook,
        passes=passes,
        expands_to=(width, height),
    )


def sketch_of(prior: Prior) -> Prior:
    """The sketch in a plan: itself if it is one, else its preview. Raises ValueError for a plan without either."""
    if prior.expands_to is not None:
        return prior
    if prior.preview is None:
        raise ValueError(
            "this plan has no preview to begin with: edits, plans of pictures and cut ones have none; connect GLM-Image Sketch "
            "Priors or Generate Prior"
        )
    rows, columns = prior.preview.shape[1:]
    return replace(
        prior,
        tokens=prior.preview,
        preview=None,
        width=columns * PRIOR_PX,
        height=rows * PRIOR_PX,
        dropped=None,
        expands_to=(prior.width, prior.height),
    )


def expand_sketches(
    ar: ArModel,
    sketches: Prior,
    prompt: str = "",
    *,
    seed: int,
    copies: int = 1,
    sampling: Sampling = Sampling(),  # noqa: B008, immutable
    lookahead: int = AUTO,
    most_rows: int = SIZES[-1],
    variation: Variation | None = None,
    progress: Progress = no_progress,
) -> Prior:
    """The plans that begin with the previews of sketches or of other plans, `copies` of each, the copies of one side by side.

    prompt: by default that of the sketches. Plan i draws its tokens with seed + i. With the seed and the settings of a sketch it
    is the plan that `generate_prior` gives with them. variation: as `generate_prior` takes it. Raises as `sketch_of` and
    `generate_prior` do, for a sketch of another codebook, and for one whose size does not fit the picture it is of.
    """
    sketches = sketch_of(sketches)
    check_codebook(sketches, ar.codebook)
    width, height = sketches.expands_to
    large = prior_grid(width, height)
    _check_grid(sketches, preview_grid(large))
    if copies < 1:
        raise ValueError(f"{copies} copies of each sketch were asked for; ask for one or more")
    preview = sketches.tokens.repeat_interleave(copies, dim=0).flatten(1)
    forced = torch.cat((preview, preview.new_full((len(preview), large.tokens), NONE)), dim=1)
    return generate_prior(
        ar,
        prompt or sketches.prompt,
        width,
        height,
        seed=seed,
        batch=len(preview),
        sampling=sampling,
        lookahead=lookahead,
        most_rows=most_rows,
        forced=forced,
        variation=variation,
        progress=progress,
    )


def _check_grid(sketches: Prior, expected: Grid) -> None:
    grid = Grid(*sketches.tokens.shape[1:])
    if grid != expected:
        width, height = sketches.expands_to
        raise ValueError(
            f"the sketch has {grid.width}x{grid.height} tokens, and the preview of {width}x{height} pixels has "
            f"{expected.width}x{expected.height}; expand it before it is cut"
        )
