"""What is painted quickly, to see whether a plan is worth its picture."""

from ..prior import Prior
from ..sketch import sketch_of


def draft_of(prior: Prior) -> Prior:
    """The smaller grid of a plan as a plan of its own: its preview, or the plan itself where that has no more tokens.

    At 1024 x 1024 pixels the preview plans 512 x 512.
    """
    preview = prior.preview
    if preview is None or preview[0].numel() >= prior.tokens[0].numel():
        return prior
    return sketch_of(prior)
