"""The phase decoder: the VAE's decoder goes on, while the encoder stays, and with it every latent that the DiT has learned.

Where a background changes, most of what an edit must leave alone lies at the edges of letters, and there the VAE is the limit.
"""

import random

import torch
from torch.nn.functional import l1_loss, mse_loss

from .loop import Recipe
from .vae import NOISE, pictures

RECIPE = Recipe(steps=4500, learning_rate=1e-3, warmup=50)
SQUARES = 4.0  # weight of the mean square error, which edges dominate, beside the mean error
BATCHES = ((12, 64), (3, 128))  # crops and their side in pixels


def loss_of(vae, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    x = pictures(rng, *rng.choice(BATCHES)).to(vae.device)
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mode()
    noise = torch.randn(z.shape, generator=generator).to(z) * torch.rand(len(z), 1, 1, 1, generator=generator).to(z) * NOISE
    y = vae.decode(z + noise * z.std()).sample
    return l1_loss(y, x) + SQUARES * mse_loss(y, x)
