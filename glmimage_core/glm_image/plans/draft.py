"""What is painted quickly, to see whether a plan is worth its picture."""

from dataclasses import replace

from ..geometry import PRIOR_PX
from ..prior import Prior


def draft_of(prior: Prior) -> Prior:
    """The smaller grid of a plan as a plan of its own: its preview, or the plan itself where that has no more tokens.

    At 1024 x 1024 pixels the preview plans 512 x 512.
    """
    preview = prior.preview
    if preview is None or preview[0].numel() >= prior.tokens[0].numel():
        return prior
    height, width = (side * PRIOR_PX for side in preview.shape[1:])
    return replace(prior, tokens=preview, preview=None, dropped=None, width=width, height=height)
