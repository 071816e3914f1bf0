"""Masks of pictures: which cells of a grid one touches, and old and new pixels put together.

A mask is [H, W] or [B, H, W], 1 where something may change. It may have any size: it is stretched over the picture. A pixel
counts as masked from one half on.
"""

import torch
from torch.nn.functional import adaptive_max_pool2d, avg_pool2d, interpolate, max_pool2d, pad

from .diffusion import Grid

MASKED_FROM = 0.5
FILL_PX = 8


def as_batch(mask: torch.Tensor) -> torch.Tensor:
    """A mask [H, W], [B, H, W] or [B, 1, H, W] as [B, H, W] float32. Raises ValueError for anything else."""
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise ValueError(f"a mask is a tensor [batch, height, width], this one is {list(mask.shape)}")
    if not torch.isfinite(mask).all():
        raise ValueError("the mask has values that are NaN or infinite; the node that made it went wrong")
    return mask.reshape(-1, *mask.shape[-2:]).float()


def touched(mask: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The cells of a grid laid over a picture in which a pixel is masked: [B, height, width] bool."""
    return adaptive_max_pool2d(as_batch(mask), tuple(grid)) >= MASKED_FROM


def resized(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Which pixels of a picture of that size are masked, each as the mask's nearest pixel: [B, height, width] bool."""
    return interpolate(as_batch(mask)[:, None], (height, width), mode="nearest-exact")[:, 0] >= MASKED_FROM


def dilated(cells: torch.Tensor, by: int) -> torch.Tensor:
    """Cells [B, height, width] bool, and all within `by` cells of them, corners included."""
    return max_pool2d(cells.float(), 2 * by + 1, stride=1, padding=by) >= MASKED_FROM


def composite(old: torch.Tensor, new: torch.Tensor, mask: torch.Tensor, feather: int = 0) -> torch.Tensor:
    """Old pixels outside the mask, exactly, and new ones inside, with an edge of `feather` pixels between them.

    The edge lies inside the mask: it is old at the last unmasked pixel and new `feather` pixels further in. At the border of the
    picture is no edge. old, new: [1 or B, H, W, 3]; new pictures and masks of another size are scaled to the old ones. Returns
    [B, H, W, 3] of old's type. Raises ValueError for batches that do not go together and for a feather below 0.
    """
    if feather < 0:
        raise ValueError(f"feather is {feather}; it must be 0 pixels or above")
    size, mask = old.shape[1:3], as_batch(mask)
    counts = (len(old), len(new), len(mask))
    if len({*counts} - {1}) > 1:
        raise ValueError("{} old pictures, {} new ones and {} masks do not go together; use 1 or as many".format(*counts))
    if new.shape[1:3] != size:
        new = interpolate(new.movedim(-1, 1), size, mode="bicubic", antialias=True).movedim(1, -1).clamp(0, 1)
    share = soft_inside(resized(mask, *size), feather)[..., None].to(old.dtype)
    return torch.where(share > 0, torch.lerp(old, new.to(old), share), old)


def soft_inside(masked: torch.Tensor, feather: int) -> torch.Tensor:
    """How new each pixel is, [B, H, W] float32: 0 outside the mask, 1 from `feather` pixels inside on, in even steps between."""
    share = masked.float()
    if feather == 0:
        return share
    inside = masked
    for _ in range(feather):
        inside = _eroded(inside)
        share = share + inside
    return share / (feather + 1)


def _eroded(masked: torch.Tensor) -> torch.Tensor:
    """Pixels [B, H, W] bool all of whose eight neighbours in the picture are masked too."""
    outside = pad((~masked).float(), (1, 1, 1, 1))
    return max_pool2d(outside, 3, stride=1) == 0


def filled(picture: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """A picture [B, H, W, C] whose masked pixels, [1 or B, H, W] bool, take the colours next to them; grey if all are masked.

    Worked out for squares of FILL_PX: each takes the mean of its known pixels, or of the squares around it that are known so far,
    ring after ring.
    """
    known = (~masked).to(picture.dtype)[:, None].expand(len(picture), -1, -1, -1)
    square = {"kernel_size": FILL_PX, "ceil_mode": True, "count_include_pad": False}
    share = avg_pool2d(known, **square)
    colours = avg_pool2d(picture.movedim(-1, 1) * known, **square) / share.clamp(min=1e-9)
    done = (share > 0).to(picture.dtype)
    while not done.all() and done.any():
        around = avg_pool2d(done, 3, stride=1, padding=1)
        mean = avg_pool2d(colours * done, 3, stride=1, padding=1) / around.clamp(min=1e-9)
        colours = torch.where((done == 0) & (around > 0), mean, colours)
        done = (around > 0).to(picture.dtype)
    colours = torch.where(done > 0, colours, 0.5)
    smooth = interpolate(colours, known.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(masked[..., None], smooth.movedim(1, -1), picture)
