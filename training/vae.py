"""The phase vae: nano's VAE learns drawn scenes, whole ones and crops."""

import random

import torch
from torch.nn.functional import l1_loss, mse_loss

from .drawing import draw
from .loop import Recipe
from .world import CELL_PX, random_scene

RECIPE = Recipe(steps=4000, learning_rate=2e-3)
NOISE = 0.12  # most noise on the latents, as a share of their standard deviation: the DiT's latents are never exact


def init_weights(vae) -> None:
    """Initial weights that pass colours through: the second convolution of every residual block starts at zero.

    The posterior's variance is never used, so it is set to a small constant.
    """
    with torch.no_grad():
        for name, module in vae.named_modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                torch.nn.init.zeros_(module.bias)
                if name.endswith("conv2"):
                    torch.nn.init.zeros_(module.weight)
        out, channels = vae.encoder.conv_out, vae.config.latent_channels
        out.weight[channels:] = 0
        out.bias[channels:] = -8


def pictures(rng: random.Random, count: int, side: int) -> torch.Tensor:
    """Crops of random scenes, [count, 3, side, side] in -1..1, sides in pixels; more than half of them show a letter."""
    crops = []
    for _ in range(count):
        scene = random_scene(rng, 8, 8, with_word=0.8, anywhere=True)
        picture = draw(scene)
        top, left = (rng.randrange(0, pixels - side + 1) for pixels in picture.shape[:2])
        if scene.word is not None and rng.random() < 0.75:
            letter = scene.word.column + rng.randrange(len(scene.word.text))
            corner = (scene.word.row * CELL_PX, letter * CELL_PX)
            top, left = (min(max(0, pixel - rng.randrange(side)), 256 - side) for pixel in corner)
        crops.append(picture[top : top + side, left : left + side])
    return torch.stack(crops).movedim(-1, 1) * 2 - 1


def loss_of(vae, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    x = pictures(rng, *rng.choice([(16, 64), (16, 64), (4, 128), (1, 256)]))
    x = x.to(vae.device)
    z = vae.encode(x).latent_dist.mode()
    noise = torch.randn(z.shape, generator=generator).to(z) * torch.rand(len(z), 1, 1, 1, generator=generator).to(z) * NOISE
    y = vae.decode(z + noise * z.detach().std()).sample
    return l1_loss(y, x) + mse_loss(y, x) + 1e-4 * z.square().mean()


@torch.no_grad()
def latent_statistics(vae) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over 128 scenes."""
    batches = (pictures(random.Random(f"statistics/{i}"), 8, 256).to(vae.device) for i in range(16))
    z = torch.cat([vae.encode(batch).latent_dist.mode() for batch in batches])
    return z.mean((0, 2, 3)).tolist(), z.std((0, 2, 3)).tolist()
