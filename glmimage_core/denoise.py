"""The DiT: reference key/value caches, the guided velocity and the Euler loop.

    reference_cache   each reference once through the DiT at t = 0, its keys and values kept
    guided_velocity   a positive pass that reads them, a negative pass that does not, combined
    sample            from noise (or from a partly noised latent) along the schedule to a latent

Latents are normalised in here and in the VAE's own space outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .component import Component
from .geometry import LATENT_PX, Grid, latent_grid, prior_for_dit
from .prior import Prior, Progress, no_progress
from .schedule import Shift, partial_schedule
from .vae import LatentSpace

if TYPE_CHECKING:
    from diffusers import GlmImageTransformer2DModel
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    from .references import Reference

KEPT_BYTES = 4 * 2**30
"""Caches that the current run does not need are dropped beyond this; two of 1024 x 1024 pixels fit in bfloat16."""

LayerKeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, each [1, tokens, heads, head width]."""


@dataclass(frozen=True, eq=False)
class Dit(Component):
    """The checkpoint's `transformer`, the space of the latents it was trained on, and its scheduler's shift.

    kept holds the keys and values of the references used last, on the CPU. They depend on nothing but the weights and the
    reference, so a new seed, prompt or number of steps finds them there; with other `weights`, references have others.
    checkpoint is the folder that all this was read from.
    """

    model: "GlmImageTransformer2DModel"
    space: LatentSpace
    shift: Shift = Shift()  # noqa: RUF009, immutable
    kept: dict[str, list[LayerKeysValues]] = field(default_factory=dict)
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Conditions:
    """What the DiT sees beside the latents, on its device: all that stays the same through a run.

    glyphs: [1, L, D] embeddings. prior: [B, tokens] prior tokens at the DiT's grid. drop: [B, tokens] bool, True where
    the prior is left out. size: [B, 2] height and width in pixels. rope: cosine and sine, [tokens, head width] each.
    """

    glyphs: torch.Tensor
    prior: torch.Tensor
    drop: torch.Tensor
    size: torch.Tensor
    rope: tuple[torch.Tensor, torch.Tensor]


@torch.inference_mode()
def sample(
    dit: Dit,
    prior: Prior,
    positive: torch.Tensor,
    negative: torch.Tensor,
    seeds: Sequence[int],
    steps: int = 50,
    cfg: float = 1.5,
    denoise: float = 1.0,
    latents: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    references: Sequence["Reference"] = (),
    progress: Progress = no_progress,
) -> torch.Tensor:
    """Paint the pictures that the prior plans, one for each seed.

    Integrates over the shifted sigmas and conditions on the unshifted timesteps.

    positive, negative: glyph embeddings [1, L, D]. latents: [1 or B, 16, height / 8, width / 8] in the VAE's space, where a
    denoise below 1 starts from. mask: [1 or B, 1, height / 8, width / 8], 1 where the picture may change and 0 where
    `latents` must come out again. Image i starts from the first noise of a generator seeded with seeds[i]; a prior of
    one image serves all of them. Returns [B, 16, height / 8, width / 8] float32 in the VAE's space, on the CPU.

    Raises ValueError, before the model runs, for latents of another size, for a missing latent and for bad settings.
    """
    grid = latent_grid(prior.width, prior.height)
    batch = len(seeds)
    check_sample(dit, prior, (positive, negative), batch, denoise, latents, mask)
    if denoise == 0:
        return latents.expand(batch, -1, -1, -1).clone()
    schedule = partial_schedule(steps, denoise, dit.shift.of_size(prior.width, prior.height))

    device = dit.device
    mask = None if mask is None else mask.to(device, torch.float32)
    noise = initial_noise(seeds, len(dit.space.mean), grid).to(device)
    start = None if latents is None else dit.space.normalise(latents.to(device).float())
    x = noise if denoise == 1 else schedule.sigmas[0] * noise + (1 - schedule.sigmas[0]) * start
    conditions = conditions_of(dit, prior.tokens, positive, prior.width, prior.height, batch)
    unconditions = without_prior(dit, conditions, negative)
    cache = reference_cache(dit, references)

    for step, timestep in enumerate(schedule.timesteps):
        sigma, sigma_next = schedule.sigmas[step : step + 2]
        seen = x if mask is None else torch.lerp(sigma * noise + (1 - sigma) * start, x, mask)
        v = guided_velocity(dit, seen, timestep, conditions, unconditions, cfg, cache)
        if mask is not None:  # what is masked out is known, before and after
            v = (x - torch.lerp(start, seen - sigma * v, mask)) / sigma
        x = x + (sigma_next - sigma) * v
        progress(step + 1, schedule.steps)
    return dit.space.denormalise(x).cpu()


def initial_noise(seeds: Sequence[int], channels: int, grid: Grid) -> torch.Tensor:
    """Unit noise, the first of a fresh CPU generator for each seed: [B, channels, *grid] float32."""
    draws = [torch.randn(1, channels, *grid, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.cat(draws)


def guided_velocity(
    dit: Dit,
    x: torch.Tensor,
    timestep: torch.Tensor,
    conditions: Conditions,
    unconditions: Conditions,
    cfg: float,
    cache: "GlmImageKVCache | None",
) -> torch.Tensor:
    """v = v_u + cfg * (v_c - v_u), [B, 16, h, w] float32. cfg 1 is v_c alone, at half the cost.

    Only the positive pass reads the reference cache.
    """
    v = velocity(dit, x, timestep, conditions, cache)
    if cfg == 1:
        return v
    v_u = velocity(dit, x, timestep, unconditions, cache=None)
    return v_u + cfg * (v - v_u)


def velocity(
    dit: Dit, x: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, cache: "GlmImageKVCache | None"
) -> torch.Tensor:
    """One forward of the DiT. x: [B, 16, h, w] normalised latents. Returns [B, 16, h, w] float32."""
    batch = len(x)
    return dit.model(
        hidden_states=x.to(dit.dtype),
        encoder_hidden_states=conditions.glyphs.expand(batch, -1, -1),
        prior_token_id=conditions.prior,
        prior_token_drop=conditions.drop,
        timestep=timestep.to(x.device).expand(batch),
        target_size=conditions.size,
        crop_coords=torch.zeros_like(conditions.size),
        kv_caches=cache,
        image_rotary_emb=conditions.rope,
        return_dict=False,
    )[0].float()


def conditions_of(dit: Dit, tokens: torch.Tensor, glyphs: torch.Tensor, width: int, height: int, batch: int) -> Conditions:
    """The conditions of the positive branch. tokens: [1 or B, height / 32, width / 32] prior tokens; sides in pixels."""
    device = dit.device
    prior = prior_for_dit(tokens).expand(batch, -1).to(device)
    return Conditions(
        glyphs=glyphs.to(device, dit.dtype),
        prior=prior,
        drop=torch.zeros_like(prior, dtype=torch.bool),
        size=torch.tensor([[height, width]], device=device, dtype=torch.float32).expand(batch, -1),
        rope=rope(dit, width, height),
    )


def rope(dit: Dit, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotary embedding of a picture of width x height pixels, [tokens, head width] each."""
    shape_only = torch.empty(1, 0, *latent_grid(width, height))
    cosine, sine = dit.model.rope(shape_only)
    return cosine.to(dit.device), sine.to(dit.device)


def without_prior(dit: Dit, conditions: Conditions, glyphs: torch.Tensor) -> Conditions:
    """The conditions of the negative branch: every prior token dropped, other glyph embeddings, all else the same."""
    return replace(conditions, glyphs=glyphs.to(dit.device, dit.dtype), drop=torch.ones_like(conditions.drop))


def reference_cache(dit: Dit, references: Sequence["Reference"]) -> "GlmImageKVCache | None":
    """The keys and values of the references, joined in order, ready to be read. None without references.

    Each reference is computed at most once as long as `dit.kept` holds it. A reference enters `kept` when it is complete, so
    an interruption leaves nothing half done. What was used longest ago is dropped first.
    """
    if not references:
        return None
    names = [dit.weights + reference.id for reference in references]
    for name, reference in zip(names, references, strict=True):
        layers = dit.kept.pop(name, None)
        if layers is None:
            layers = [(k.cpu(), v.cpu()) for k, v in reference_keys_values(dit, reference)]
        dit.kept[name] = layers  # at the end: used last
    _drop_oldest(dit.kept, set(names))

    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    cache = GlmImageKVCache(num_layers=dit.model.config.num_layers)
    for layer in range(cache.num_layers):
        keys, values = zip(*(dit.kept[name][layer] for name in names), strict=True)
        cache[layer].k_caches = [_joined(keys, dit.device)]
        cache[layer].v_caches = [_joined(values, dit.device)]
    cache.set_mode("read")
    return cache


def _drop_oldest(kept: dict[str, list[LayerKeysValues]], needed: set[str]) -> None:
    """Drop what is not needed now, oldest first, until all that is kept fits in KEPT_BYTES."""
    sizes = {name: sum(t.numel() * t.element_size() for pair in layers for t in pair) for name, layers in kept.items()}
    for name in [name for name in kept if name not in needed]:
        if sum(sizes[name] for name in kept) <= KEPT_BYTES:
            return
        del kept[name]


def reference_keys_values(dit: Dit, reference: "Reference") -> list[LayerKeysValues]:
    """One pass of a reference through the DiT: t = 0, no text, its vision tokens as prior, its own size."""
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    device = dit.device
    no_text = torch.empty(1, 0, dit.model.config.text_embed_dim)
    tokens = reference.vision_tokens[None]
    conditions = conditions_of(dit, tokens, no_text, reference.width, reference.height, batch=1)
    cache = GlmImageKVCache(num_layers=dit.model.config.num_layers)
    cache.set_mode("write")
    velocity(dit, dit.space.normalise(reference.latents.to(device)), torch.zeros(1), conditions, cache)
    return [(layer.k_caches[0], layer.v_caches[0]) for layer in cache.caches]


def _joined(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """[1, tokens, heads, width] each, joined along the tokens; a single one is not copied."""
    moved = [tensor.to(device) for tensor in tensors]
    return moved[0] if len(moved) == 1 else torch.cat(moved, dim=1)


def check_sample(
    dit: Dit,
    prior: Prior,
    glyphs: Sequence[torch.Tensor],
    batch: int,
    denoise: float,
    latents: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> None:
    """Raise ValueError where the inputs of `sample` do not go together. Runs nothing, so it can go before a model is moved."""
    config = dit.model.config
    if prior.batch not in (1, batch):
        raise ValueError(
            f"the prior plans {prior.batch} images and {batch} were asked for; give Generate Prior and the latent one batch_size"
        )
    rows = config.prior_vq_quantizer_codebook_size
    if prior.tokens.max() >= rows:
        raise ValueError(f"the prior has token {prior.tokens.max()}, but this DiT knows {rows}: another model made it")
    for embeddings in glyphs:
        if embeddings.shape[-1] != config.text_embed_dim:
            raise ValueError(
                f"the conditioning is {embeddings.shape[-1]} wide and this DiT takes {config.text_embed_dim}; "
                "it comes from another text encoder than GLM-Image's"
            )
    if latents is None:
        if denoise < 1 or mask is not None:
            raise ValueError(f"denoise is {denoise}, which starts from a latent image, but none is connected")
        return
    if latents.ndim != 4 or latents.shape[1] != config.in_channels:
        raise ValueError(
            f"the latent image is {list(latents.shape)}, which is of another model family; take an empty one of "
            f"{config.in_channels} channels (EmptySD3LatentImage) or one from GLM-Image VAE Encode"
        )
    if tuple(latents.shape[2:]) != latent_grid(prior.width, prior.height):
        height, width = (side * LATENT_PX for side in latents.shape[2:])
        raise ValueError(
            f"the prior plans {prior.width}x{prior.height} pixels, but the latent image is of {width}x{height}; "
            "give Generate Prior and the latent the same size"
        )
    if (denoise < 1 or mask is not None) and not latents.any():
        raise ValueError(
            "the latent image is an empty one, of which nothing can be kept; encode a picture, or use denoise 1 and no mask"
        )
    for name, count in (("latent images", len(latents)), ("masks", 1 if mask is None else len(mask))):
        if count not in (1, batch):
            raise ValueError(f"{count} {name} do not go with {batch} images to paint; use 1 or {batch}")
