"""Stage 2: guidance and the Euler loop."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..diffusion import LATENT_PX, batches_cfg, initial_noise, latent_grid
from ..progress import Progress, no_progress
from .dit import Conditions, Dit, check_attention, encode_conditions, velocity
from .prior import Prior
from .reference_cache import reference_cache
from .schedule import partial_schedule, progress_of
from .step_cache import Branch, StepCache

if TYPE_CHECKING:
    from .kv_cache import ReferenceLayer
    from .references import Reference


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Approximations:
    """Approximations that make a run faster and change the picture a little; the defaults leave all of them off.

    cfg_start, cfg_end: the part of the run, 0..1, in which guidance acts; outside it a step costs half. step_cache: the
    relative change of the first block's output below which the rest of a pass is taken from an earlier step; 0 is off.
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
    def interval(self) -> bool:
        """Whether guidance acts in a part of the run only."""
        return (self.cfg_start, self.cfg_end) != (0, 1)

    def cfg_at(self, progress: float, cfg: float) -> float:
        """The guidance where `progress`, 0..1, of the run is done."""
        return cfg if self.cfg_start <= progress < self.cfg_end else 1.0


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
    approximations: Approximations = Approximations(),
    caches_on_device: bool = True,
) -> torch.Tensor:
    """Paint the pictures that the prior plans, one for each seed.

    Integrates over the shifted sigmas and conditions on the unshifted timesteps. What does not change from step to step is
    computed before the first.

    positive, negative: glyph embeddings [1, L, D]. latents: [1 or B, 16, height / 8, width / 8] in the VAE's space, where a
    denoise below 1 starts from. mask: [1 or B, 1, height / 8, width / 8], 1 where the picture may change and 0 where
    `latents` must come out again. Image i starts from the first noise of a generator seeded with seeds[i]; a prior of
    one image serves all of them. caches_on_device: as in `reference_cache`. Returns [B, 16, height / 8, width / 8]
    float32 in the VAE's space, on the CPU.

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
    guide = CfgConditions(
        dit,
        positive=encode_conditions(dit, positive, prior.width, prior.height, batch, prior.tokens),
        negative=None if cfg == 1 else encode_conditions(dit, negative, prior.width, prior.height, batch),
        cache=reference_cache(dit, references, caches_on_device),
        step_cache=StepCache(approximations.step_cache) if approximations.step_cache else None,
    )
    times = dit.model.embed_time(schedule.timesteps.to(device), prior.width, prior.height, dit.dtype)  # [steps, time width]

    for step in range(schedule.steps):
        sigma, sigma_next = schedule.sigmas[step : step + 2]
        cfg_now = approximations.cfg_at(progress_of(schedule.timesteps[step].item()), cfg)
        seen = x if mask is None else torch.lerp(sigma * noise + (1 - sigma) * start, x, mask)
        v = guided_velocity(guide, seen, times[step : step + 1], cfg_now)
        if mask is not None:  # what is masked out is known, before and after
            v = (x - torch.lerp(start, seen - sigma * v, mask)) / sigma
        x = x + (sigma_next - sigma) * v
        progress(step + 1, schedule.steps)
    if guide.step_cache is not None:
        log.info(str(guide.step_cache))
    return dit.space.denormalise(x).cpu()


@dataclass(frozen=True)
class CfgConditions:
    """Both sides of the guidance. Only the positive one reads the reference cache; without guidance there is no negative."""

    dit: Dit
    positive: Conditions
    negative: Conditions | None
    cache: "Sequence[ReferenceLayer] | None" = None
    step_cache: StepCache | None = None

    def steps_before(self, side: str) -> Branch | None:
        return None if self.step_cache is None else self.step_cache.branch(side)


def guided_velocity(guide: CfgConditions, x: torch.Tensor, time: torch.Tensor, cfg: float) -> torch.Tensor:
    """v = v_u + cfg * (v_c - v_u), [B, 16, h, w] float32. cfg 1 is v_c alone, at half the cost.

    x: [B, 16, h, w] normalised latents. time: [1, time width]. The two sides share a pass where their texts have one length
    and there is no cache: the DiT's own mask for texts masks nothing.
    """
    if cfg == 1:
        return velocity(guide.dit, x, time, guide.positive, guide.cache, guide.steps_before("positive"))
    positive, negative = guide.positive, guide.negative
    same_shape = positive.glyphs.shape == negative.glyphs.shape
    if guide.cache is None and same_shape and batches_cfg(positive.prior[..., 0].numel()):
        both = Conditions(
            torch.cat((positive.prior, negative.prior)), torch.cat((positive.glyphs, negative.glyphs)), positive.rope
        )
        v, v_u = velocity(guide.dit, torch.cat((x, x)), time, both, None, guide.steps_before("both")).chunk(2)
    else:
        v = velocity(guide.dit, x, time, positive, guide.cache, guide.steps_before("positive"))
        v_u = velocity(guide.dit, x, time, negative, None, guide.steps_before("negative"))
    return v_u + cfg * (v - v_u)


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
    check_attention(dit)
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
