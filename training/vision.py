"""The phase vision: the vision encoder and the codebook learn together to give each cell of a scene the token of its code."""

import random

import torch
from torch.nn.functional import cross_entropy, interpolate, normalize

from ..glmimage_core.diffusion import Grid
from .drawing import draw
from .loop import Recipe
from .structure import structured
from .world import COLOURS, Scene, random_scene, tokens_of

RECIPE = Recipe(steps=6500, learning_rate=2e-3)
SCENES = 16  # in a batch
SIDES = (6, 7, 8, 8, 9, 10, 12)  # cells
LOGIT_SCALE = 20.0  # on the cosines, which lie in -1..1
PATCH_PX = 16


@torch.no_grad()
def init_weights(ar_model) -> None:
    """Initial weights: rows of the codebook whose cells share a property are near each other."""
    table = ar_model.model.vqmodel.quantize.embedding.weight
    table.copy_(structured(table.shape[1], seed=1))


def patches_of(picture: torch.Tensor) -> torch.Tensor:
    """The image processor's patches of a picture [3, H, W] in 0..1 at half its size: [tokens, 3 * 16 * 16]."""
    halved = interpolate(picture[None], scale_factor=0.5, mode="bicubic", antialias=True)[0].clamp(0, 1)
    patches = halved.unfold(1, PATCH_PX, PATCH_PX).unfold(2, PATCH_PX, PATCH_PX)  # [3, rows, columns, 16, 16]
    return (patches.movedim(0, 2) * 2 - 1).flatten(0, 1).flatten(1)


def degraded(picture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A picture [3, H, W] in 0..1 as a sampler might paint it: a small shift of its colours, a little noise."""
    shift = torch.randn(3, 1, 1, generator=generator) * 0.02
    noise = torch.randn(picture.shape, generator=generator) * 0.04 * torch.rand((), generator=generator)
    return (picture + shift + noise).clamp(0, 1)


def code_logits(ar_model, patches: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
    """The similarity of each patch with each row of the codebook: [tokens, rows], cosines times LOGIT_SCALE."""
    core = ar_model.model
    sizes = torch.tensor([[1, *grid] for grid in grids], device=patches.device)
    features = core.visual(patches, grid_thw=sizes).last_hidden_state  # [tokens, C]
    projected = core.vqmodel.quant_conv(features.T[None, :, :, None])[0, :, :, 0].T
    rows = core.vqmodel.quantize.embedding.weight
    return LOGIT_SCALE * normalize(projected, dim=-1) @ normalize(rows, dim=-1).T


def loss_of(ar_model, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    scenes = [random_scene(rng, rng.choice(SIDES), rng.choice(SIDES), with_word=0.6, anywhere=True) for _ in range(SCENES)]
    return loss_of_scenes(ar_model, scenes, generator)


def loss_of_scenes(ar_model, scenes: list[Scene], generator: torch.Generator) -> torch.Tensor:
    """The cross entropy of the cells of scenes: a fifth of the bare ones', and the others'."""
    patches = torch.cat([patches_of(degraded(draw(scene).movedim(-1, 0), generator)) for scene in scenes])
    device = ar_model.device
    logits = code_logits(ar_model, patches.to(device), [Grid(scene.rows, scene.columns) for scene in scenes])
    targets = torch.cat([tokens_of(scene).flatten() for scene in scenes]).to(device)
    bare = targets < len(COLOURS)
    losses = cross_entropy(logits, targets, reduction="none")
    return losses[bare].mean() * 0.2 + losses[~bare].mean()
