"""What an edit changed: where the tokens of a plan differ from those of the reference at the same place.

Known before the DiT runs. A text that changes may keep its tokens, where they say that letters stand there and not which ones.
"""

import torch

from ..masks import dilated
from .geometry import PRIOR_PX
from .prior import Prior
from .references import Reference


def changed_cells(prior: Prior, reference: Reference, grow: int = 0) -> torch.Tensor:
    """The tokens of a plan that are not the reference's, and all within `grow` tokens of them: [B, height / 32, width / 32] bool.

    Raises ValueError for a reference of another size or of another AR model, and for a grow below 0.
    """
    if (reference.width, reference.height) != (prior.width, prior.height):
        raise ValueError(
            f"the reference is {reference.width}x{reference.height} pixels and the prior plans {prior.width}x{prior.height}; "
            "give Generate Prior the reference's size, so that each token has one at the same place"
        )
    if reference.codebook != prior.codebook:
        raise ValueError("the reference was encoded with another AR model than the prior's; connect the same one")
    if grow < 0:
        raise ValueError(f"grow is {grow}; it must be 0 tokens or above")
    return dilated(prior.tokens != reference.vision_tokens, grow)


def mask_of_cells(cells: torch.Tensor) -> torch.Tensor:
    """Cells [B, h, w] bool as the mask of a picture: [B, 32 * h, 32 * w] float32, 0 or 1."""
    return cells.float().repeat_interleave(PRIOR_PX, dim=1).repeat_interleave(PRIOR_PX, dim=2)
