"""Plans cut and put together, cell by cell. A cell is a token: 32 x 32 pixels of the picture, on a fixed grid.

A token says what is in its cell and at which place of a shape it stands, so cells keep their meaning where they are moved by
whole cells, and lose it where they are mirrored or turned: a mirrored left half is still a left half. The plan of a mirrored or
turned picture is that picture's own plan, see from_picture.
"""

from dataclasses import replace

import torch

from ...masks import touched
from ..geometry import PRIOR_PX, check_size, preview_grid, prior_grid
from ..prior import Prior, common_batch


def mixed(prior: Prior, other: Prior, mask: torch.Tensor) -> Prior:
    """The plan with the other one's tokens where a mask touches them; the preview likewise, where both have one.

    mask: [1 or B, H, W] of any size, see `masks`. One plan or mask serves all of several. Raises ValueError for plans of
    another size or codebook.
    """
    _check_pair(prior, other)
    if (prior.width, prior.height) != (other.width, other.height):
        raise ValueError(
            f"the plans are of {prior.width}x{prior.height} and {other.width}x{other.height} pixels; mix plans of one size, or "
            "crop and paste"
        )
    cells = touched(mask, prior_grid(prior.width, prior.height))
    batch = common_batch({"priors": prior.batch, "other priors": other.batch, "masks": len(cells)})
    preview = None
    if prior.preview is not None and other.preview is not None:
        small = touched(mask, preview_grid(prior_grid(prior.width, prior.height)))
        preview = torch.where(small, other.preview, prior.preview).expand(batch, -1, -1)
    dropped = _where(cells, _dropped(other), _dropped(prior))
    tokens = torch.where(cells, other.tokens, prior.tokens).expand(batch, -1, -1)
    return replace(prior, tokens=tokens, preview=preview, dropped=None if dropped is None else dropped.expand(batch, -1, -1))


def cropped(prior: Prior, left: int, top: int, *, width: int, height: int) -> Prior:
    """The plan of a part of the picture, in pixels. It has no preview.

    Raises ValueError for what is no multiple of 32 or reaches outside the picture, and for a part too small to be painted.
    """
    check_size(width, height)
    column, row = _cells(left, "left"), _cells(top, "top")
    columns, rows = width // PRIOR_PX, height // PRIOR_PX
    if min(left, top) < 0 or left + width > prior.width or top + height > prior.height:
        raise ValueError(
            f"{width}x{height} pixels at {left}, {top} reach outside the plan of {prior.width}x{prior.height}; choose a part"
        )
    part = (slice(None), slice(row, row + rows), slice(column, column + columns))
    dropped = None if prior.dropped is None else prior.dropped[part]
    return replace(prior, tokens=prior.tokens[part], preview=None, dropped=dropped, width=width, height=height, expands_to=None)


def shifted(prior: Prior, right: int, down: int) -> Prior:
    """The plan with everything moved by so many pixels, multiples of 32; below 0 to the left and up. It has no preview.

    What comes in at an edge repeats the tokens at that edge, which is right where they show a plain ground.
    """
    columns, rows = _cells(right, "right"), _cells(down, "down")
    height, width = prior.tokens.shape[1:]
    across = (torch.arange(width) - columns).clamp(0, width - 1)
    along = (torch.arange(height) - rows).clamp(0, height - 1)

    def moved(cells: torch.Tensor) -> torch.Tensor:
        return cells[:, along][:, :, across]

    dropped = None if prior.dropped is None else moved(prior.dropped)
    return replace(prior, tokens=moved(prior.tokens), preview=None, dropped=dropped)


def pasted(prior: Prior, piece: Prior, left: int, top: int) -> Prior:
    """The plan with a smaller one laid over it at a place in pixels, multiples of 32. It has no preview.

    What reaches outside is cut off. Raises ValueError for a place where nothing of the piece is left, and for another codebook.
    """
    _check_pair(prior, piece)
    column, row = _cells(left, "left"), _cells(top, "top")
    batch = common_batch({"priors": prior.batch, "pieces": piece.batch})
    height, width = prior.tokens.shape[1:]
    rows, columns = (torch.arange(side) + start for side, start in zip(piece.tokens.shape[1:], (row, column), strict=True))
    kept_rows, kept_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    if not kept_rows.any() or not kept_columns.any():
        raise ValueError(f"at {left}, {top} nothing of the piece lies in the plan of {prior.width}x{prior.height} pixels")

    def laid(cells: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
        result = cells.expand(batch, -1, -1).clone()
        result[:, rows[kept_rows, None], columns[kept_columns]] = over[:, kept_rows][:, :, kept_columns]
        return result

    dropped = None
    if prior.dropped is not None or piece.dropped is not None:
        dropped = laid(_dropped(prior), _dropped(piece))
    return replace(prior, tokens=laid(prior.tokens, piece.tokens), preview=None, dropped=dropped)


def dropped(prior: Prior, mask: torch.Tensor) -> Prior:
    """The plan without the tokens that a mask touches: the DiT paints there what goes with the rest.

    It is trained without a plan for the negative side of guidance, for whole pictures; for parts of one it comes unasked.
    """
    cells = touched(mask, prior_grid(prior.width, prior.height))
    batch = common_batch({"priors": prior.batch, "masks": len(cells)})
    whole = (_dropped(prior) | cells).expand(batch, -1, -1)
    preview = None if prior.preview is None else prior.preview.expand(batch, -1, -1)
    return replace(prior, tokens=prior.tokens.expand(batch, -1, -1), preview=preview, dropped=whole)


def _dropped(prior: Prior) -> torch.Tensor:
    """Which tokens count for nothing, [B, h, w] bool."""
    return torch.zeros_like(prior.tokens, dtype=torch.bool) if prior.dropped is None else prior.dropped


def _where(cells: torch.Tensor, masked: torch.Tensor, others: torch.Tensor) -> torch.Tensor | None:
    """Cells of the one or the other, or None where none of them is set."""
    chosen = torch.where(cells, masked, others)
    return chosen if chosen.any() else None


def _cells(pixels: int, name: str) -> int:
    """A distance in cells. Raises ValueError for one that is no multiple of 32 pixels."""
    if pixels % PRIOR_PX:
        below = pixels // PRIOR_PX * PRIOR_PX
        raise ValueError(f"{name} {pixels} is not a multiple of {PRIOR_PX}; use {below} or {below + PRIOR_PX}")
    return pixels // PRIOR_PX


def _check_pair(prior: Prior, other: Prior) -> None:
    if prior.codebook != other.codebook:
        raise ValueError("the plans come from different AR models, whose tokens mean different things; plan both with one model")
