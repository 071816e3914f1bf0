"""The phase larger: nano's language half goes on from the weights that the checkpoint has, up to 512 x 512 pixels.

The painter needs no lessons of these sizes: it painted 29 of 30 such drawings right again from their plans. The planner does need
them: before this phase one plan of seven was right there.
"""

import random
from functools import partial

from . import plans
from .loop import Recipe
from .scoring import LARGER_SIZES

RECIPE = Recipe(steps=3550, learning_rate=4e-4, warmup=60)
SMALLER = ((8, 8), (8, 8), (6, 6), (6, 10), (6, 10), (10, 6), (8, 12), (12, 8), (12, 12))
SIDES = range(6, 17)  # cells
LARGER_SHARE, ANY_SHARE = 0.36, 0.1  # of batches of LARGER_SIZES and of any SIDES; the others are of SMALLER


def random_size(rng: random.Random) -> tuple[int, int]:
    """Rows and columns of a batch."""
    share = rng.random()
    if share < LARGER_SHARE:
        return rng.choice(LARGER_SIZES)
    if share < LARGER_SHARE + ANY_SHARE:
        return rng.choice(SIDES), rng.choice(SIDES)
    return rng.choice(SMALLER)


loss_of = partial(plans.loss_of, size_of=random_size)
"""The mean loss of a step's batches."""
