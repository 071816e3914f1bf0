"""Random inputs for the later stages, to measure each of them alone."""

import torch

from ..glmimage_core.diffusion import latent_grid
from ..glmimage_core.glm_image.draw import Sampling
from ..glmimage_core.glm_image.geometry import prior_grid
from ..glmimage_core.glm_image.prior import Prior
from ..glmimage_core.glm_image.references import Reference
from ..glmimage_core.vae import LatentSpace
from .measure import Case

PROMPT = 'A shop front in the rain with a neon sign that says "OPEN LATE"'
GLYPHS = 12  # glyph tokens on each side of the guidance: the pipeline takes embeddings of equal length only
CHANNELS = 16  # of a latent


def random_prior(codebook: int, case: Case, seed: int = 0) -> Prior:
    """A random prior for each picture of the batch. codebook: the number of its rows."""
    shape = (case.batch, *prior_grid(case.width, case.height))
    tokens = torch.randint(codebook, shape, generator=torch.Generator().manual_seed(seed))
    return Prior(
        tokens,
        preview=None,
        width=case.width,
        height=case.height,
        prompt=PROMPT,
        seed=seed,
        sampling=Sampling(),
        codebook="",
    )


def random_glyphs(width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random glyph embeddings for the positive and the negative side, [1, GLYPHS, width] each."""
    positive, negative = torch.randn(2, 1, GLYPHS, width, generator=torch.Generator().manual_seed(seed))
    return positive, negative


def random_reference(codebook: int, width: int, height: int, seed: int = 0) -> Reference:
    """A random reference of width x height pixels."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(codebook, prior_grid(width, height), generator=generator)
    latents = torch.randn(1, CHANNELS, *latent_grid(width, height), generator=generator)
    space = LatentSpace((0.0,) * CHANNELS, (1.0,) * CHANNELS)
    return Reference(width, height, vision_tokens=tokens, latents=latents, codebook="", space=space)
