"""Stage 2: from noise (or from a partly noised latent) along the schedule to the latents of the picture.

    guided_velocity   a positive pass that reads the references, a negative pass that does not, combined
    sample            the Euler loop over the shifted sigmas
    check_sample      whether what the loop is given goes together

Latents are normalised in here and in the VAE's own space outside.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from typing_extensions import Self

from ..diffusion import LATENT_PX, batches_cfg, check_start, initial_noise, latent_grid, merge_masked
from ..progress import Progress, no_progress
from .dit import Conditions, Dit, check_attention, encode_conditions, of_tile, velocity
from .kv_cache import LayerKVCache
from .prior import Prior, check_codebook
from .reference_cache import reference_kv_caches
from .references import Reference
from .schedule import partial_schedule, run_progress, schedule_of_sigmas
from .step_cache import CfgBranchCache, StepCache
from .tiles import Tile, blended

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Approximations:
    """What makes a run faster and changes the picture a little; the defaults change nothing.

    cfg_start, cfg_end: the part of the run, 0..1, in which guidance acts; outside it a step costs half. step_cache: the
    relative change of what the first block adds, below which the velocity is forecast from earlier steps; 0 is off.
    """

    cfg_start: float = 0.0
    cfg_end: float = 1.0
    step_cache: float = 0.0

    def __post_init__(self):
        """Raise ValueError for values that mean nothing."""
        if not 0 <= self.cfg_start <= self.cfg_end <= 1:
            raise ValueError(
                f"guidance from {self.cfg_start} to {self.cfg_end} of the run is no interval; cfg_start must not be above "
                "cfg_end, and both lie in 0..1"
            )
        if not self.step_cache >= 0:
            raise ValueError(f"step_cache is {self.step_cache}; it must be 0 (off) or above")

    @property
    def limits_guidance(self) -> bool:
        """Whether guidance acts in a part of the run only."""
        return (self.cfg_start, self.cfg_end) != (0, 1)

    def cfg_at(self, progress: float, cfg: float) -> float:
        """The guidance where `progress`, 0..1, of the run is done."""
        return cfg if self.cfg_start <= progress < self.cfg_end else 1.0


@dataclass(frozen=True)
class CfgConditions:
    """Both sides of the guidance. Only the positive one reads the references; without guidance there is no negative.

    tile: of which part of the picture, or None for the whole.
    """

    dit: Dit
    positive: Conditions
    negative: Conditions | None
    kv_caches: Sequence[LayerKVCache] | None = None
    step_cache: StepCache | None = None
    tile: Tile | None = None

    def branch(self, side: str, timestep: torch.Tensor) -> CfgBranchCache | None:
        return None if self.step_cache is None else self.step_cache.branch((side, self.tile), timestep)

    def of_tile(self, tile: Tile, width: int) -> Self:
        """Those of a part of the picture, which is `width` pixels wide."""
        positive, negative = (
            None if side is None else of_tile(self.dit, side, tile, width) for side in (self.positive, self.negative)
        )
        return replace(self, positive=positive, negative=negative, tile=tile)


def guided_velocity(
    conditions: CfgConditions, x: torch.Tensor, temb: torch.Tensor, cfg: float, *, timestep: torch.Tensor
) -> torch.Tensor:
    """v = v_u + cfg * (v_c - v_u), [B, 16, h, w] float32. cfg 1 is v_c alone, at half the cost.

    x: [B, 16, h, w] normalised latents. temb: [1, time_embed_dim]. timestep: without dimensions, for a step cache. Both sides
    run as one batch where their glyph embeddings have one length and there are no references. Other lengths cannot be padded:
    the DiT ignores its text mask.
    """
    dit, positive, negative = conditions.dit, conditions.positive, conditions.negative

    def one_side(side: str, seen: Conditions, kv_caches: Sequence[LayerKVCache] | None) -> torch.Tensor:
        return velocity(dit, x, temb, seen, kv_caches=kv_caches, step_cache=conditions.branch(side, timestep))

    if cfg == 1:
        return one_side("positive", positive, conditions.kv_caches)
    one_length = positive.glyph_embeds.shape == negative.glyph_embeds.shape
    if conditions.kv_caches is None and one_length and batches_cfg(positive.prior_embeds[..., 0].numel()):
        both = Conditions(
            prior_embeds=torch.cat((positive.prior_embeds, negative.prior_embeds)),
            glyph_embeds=torch.cat((positive.glyph_embeds, negative.glyph_embeds)),
            image_rotary_emb=positive.image_rotary_emb,
        )
        v_c, v_u = velocity(dit, torch.cat((x, x)), temb, both, step_cache=conditions.branch("both", timestep)).chunk(2)
    else:
        v_c = one_side("positive", positive, conditions.kv_caches)
        v_u = one_side("negative", negative, None)
    return v_u + cfg * (v_c - v_u)


@torch.inference_mode()
def sample(
    dit: Dit,
    prior: Prior,
    positive: torch.Tensor,
    negative: torch.Tensor,
    *,
    seeds: Sequence[int],
    steps: int = 50,
    cfg: float = 1.5,
    denoise: float = 1.0,
    latents: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    references: Sequence[Reference] = (),
    approximations: Approximations = Approximations(),
    caches_on_device: bool = True,
    noise: torch.Tensor | None = None,
    sigmas: torch.Tensor | None = None,
    progress: Progress = no_progress,
) -> torch.Tensor:
    """Paint the pictures that the prior plans, one for each seed.

    Integrates over the shifted sigmas and conditions on the unshifted timesteps. What does not change from step to step is
    computed before the first.

    positive, negative: glyph embeddings [1, L, D]. latents: [1 or B, 16, height / 8, width / 8] in the VAE's space, where a
    denoise below 1 starts from. mask: [1 or B, 1, height / 8, width / 8], 1 where the picture may change and 0 where
    `latents` must come out again. Image i starts from the first noise of a generator seeded with seeds[i]; a prior of
    one image serves all of them. noise: [B, 16, height / 8, width / 8], in place of the seeds'. sigmas: [S + 1] shifted, falling
    to 0, in place of those that follow from steps and denoise. caches_on_device: as `reference_kv_caches` takes it. Tiles of a
    large picture are painted by the schedule of a picture of their size. Returns [B, 16, height / 8, width / 8] float32 in the
    VAE's space, on the CPU.

    Raises ValueError, before the model runs, for latents of another size, for a missing latent and for bad settings.
    """
    batch, width, height, device = len(seeds), prior.width, prior.height, dit.device
    check_sample(dit, prior, glyphs=(positive, negative), batch=batch, denoise=denoise, latents=latents, mask=mask)
    if denoise == 0:
        return latents.expand(batch, -1, -1, -1).clone()
    tiles = dit.tiles(width, height)
    mu = dit.shift.of_size(tiles[0].width, tiles[0].height)
    schedule = partial_schedule(steps, denoise, mu) if sigmas is None else schedule_of_sigmas(sigmas, mu)
    progress(0, schedule.steps)

    noise = initial_noise(seeds, len(dit.space.mean), latent_grid(width, height)) if noise is None else noise
    noise = noise.to(device)
    start = None if latents is None else dit.space.normalise(latents.to(device).float())
    mask = None if mask is None else mask.to(device, torch.float32)
    x = noise if denoise == 1 else schedule.sigmas[0] * noise + (1 - schedule.sigmas[0]) * start

    without_guidance = cfg == 1
    conditions = CfgConditions(
        dit,
        positive=encode_conditions(dit, positive, width, height, batch=batch, tokens=prior.tokens, dropped=prior.dropped),
        negative=None if without_guidance else encode_conditions(dit, negative, width, height, batch=batch),
        kv_caches=reference_kv_caches(dit, references, caches_on_device),
        step_cache=StepCache(approximations.step_cache) if approximations.step_cache else None,
    )
    timesteps = schedule.timesteps.tolist()
    clock = schedule.timesteps.to(device)
    tembs = dit.model.embed_time(clock, tiles[0].width, tiles[0].height, dit.dtype)  # [steps, time_embed_dim]
    of_tiles = {tile: conditions if len(tiles) == 1 else conditions.of_tile(tile, width) for tile in tiles}

    for step in range(schedule.steps):
        sigma, sigma_next = schedule.sigmas[step : step + 2]
        cfg_now = approximations.cfg_at(run_progress(timesteps[0], timesteps[step]), cfg)
        x_in = x if mask is None else merge_masked(sigma * noise + (1 - sigma) * start, x, mask)
        now = {"temb": tembs[step : step + 1], "cfg": cfg_now, "timestep": clock[step]}
        v = blended(tiles, x_in, lambda tile, part, now=now: guided_velocity(of_tiles[tile], part, **now))
        if mask is not None:  # outside the mask the result is known: the velocity leads there
            v = (x - merge_masked(start, x_in - sigma * v, mask)) / sigma
        x = x + (sigma_next - sigma) * v
        progress(step + 1, schedule.steps)
    if conditions.step_cache is not None:
        log.info(str(conditions.step_cache))
    return dit.space.denormalise(x).cpu()


def check_sample(
    dit: Dit,
    prior: Prior,
    *,
    glyphs: Sequence[torch.Tensor],
    batch: int,
    denoise: float,
    latents: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> None:
    """Raise ValueError where the inputs of `sample` do not go together. Runs nothing, so it can go before a model is moved.

    glyphs: the embeddings of both sides, [1, L, D] each. The other inputs: as `sample` takes them.
    """
    config = dit.model.config
    check_attention(dit)
    if prior.batch not in (1, batch):
        raise ValueError(
            f"the prior plans {prior.batch} images and {batch} were asked for; give Generate Prior and the latent one batch_size"
        )
    check_codebook(prior, dit.codebook)
    rows = config.prior_vq_quantizer_codebook_size
    if prior.tokens.max() >= rows:
        raise ValueError(f"the prior has token {prior.tokens.max()}, but this DiT knows {rows}: another model made it")
    check_glyphs(dit, *glyphs)
    if latents is not None:
        _check_latents(dit, prior, latents)
    check_start(latents, mask, batch=batch, denoise=denoise)


def check_glyphs(dit: Dit, *glyphs: torch.Tensor) -> None:
    """Raise ValueError for embeddings, [1, L, D] each, that are not of this model's glyph encoder."""
    width = dit.model.config.text_embed_dim
    for embeddings in glyphs:
        if embeddings.shape[-1] != width:
            raise ValueError(
                f"the conditioning is {embeddings.shape[-1]} wide and this DiT takes {width}; it comes from another text encoder "
                "than GLM-Image's; connect GLM-Image Encode Prompt"
            )


def _check_latents(dit: Dit, prior: Prior, latents: torch.Tensor) -> None:
    """Raise ValueError for latents of another family or of another size than the prior plans."""
    channels = dit.model.config.in_channels
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise ValueError(
            f"the latent image is {list(latents.shape)}, which is of another model family; take an empty one of "
            f"{channels} channels (EmptySD3LatentImage) or one from GLM-Image VAE Encode"
        )
    if tuple(latents.shape[2:]) != latent_grid(prior.width, prior.height):
        height, width = (side * LATENT_PX for side in latents.shape[2:])
        raise ValueError(
            f"the prior plans {prior.width}x{prior.height} pixels, but the latent image is of {width}x{height}; "
            "make both of one size; for a second pass over enlarged latents connect ar and vae to Apply Prior"
        )
