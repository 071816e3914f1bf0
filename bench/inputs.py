"""Random inputs of the later stages, so that each can be measured alone."""

import torch

from ..glmimage_core.diffusion import latent_grid
from ..glmimage_core.glm_image.geometry import prior_grid
from ..glmimage_core.glm_image.prior import Prior, Sampling
from ..glmimage_core.glm_image.references import Reference
from ..glmimage_core.vae import LatentSpace
from .measure import Case

PROMPT = 'A shop front in the rain with a neon sign that says "OPEN LATE"'
GLYPHS = 12  # tokens of text to be drawn, on either side: given embeddings, the pipeline wants equal lengths
CHANNELS = 16  # of a latent


def random_prior(codebook: int, case: Case, seed: int = 0) -> Prior:
    """A prior of tokens below `codebook`, another one for each picture."""
    shape = (case.batch, *prior_grid(case.width, case.height))
    tokens = torch.randint(codebook, shape, generator=torch.Generator().manual_seed(seed))
    return Prior(tokens, None, case.width, case.height, PROMPT, seed, Sampling(), "")


def random_glyphs(width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Glyph embeddings of a positive and a negative side, [1, GLYPHS, width] each."""
    positive, negative = torch.randn(2, 1, GLYPHS, width, generator=torch.Generator().manual_seed(seed))
    return positive, negative


def random_reference(codebook: int, width: int, height: int, seed: int = 0) -> Reference:
    """A reference of width x height pixels, by its tokens and its latents."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(codebook, prior_grid(width, height), generator=generator)
    latents = torch.randn(1, CHANNELS, *latent_grid(width, height), generator=generator)
    return Reference(width, height, tokens, latents, "", LatentSpace((0.0,) * CHANNELS, (1.0,) * CHANNELS))
