"""Plans without an AR model: prior tokens drawn at random."""

import torch
from glm_image_pack.glmimage_core.glm_image.draw import Sampling
from glm_image_pack.glmimage_core.glm_image.geometry import prior_grid
from glm_image_pack.glmimage_core.glm_image.prior import Prior


def plan(width=256, height=256, batch=1, seed=0, rows=256) -> Prior:
    """A prior of `batch` images whose tokens are below `rows`, the size of the tiny AR model's codebook."""
    tokens = torch.randint(0, rows, (batch, *prior_grid(width, height)), generator=torch.Generator().manual_seed(seed))
    return Prior(tokens, None, width, height, "", seed, Sampling(), codebook="")
