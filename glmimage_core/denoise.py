"""The DiT: reference key/value caches, the guided velocity and the Euler loop.

    reference_cache   each reference once through the DiT at t = 0, its keys and values kept
    guided_velocity   a positive pass that reads them, a negative pass that does not, combined
    sample            from noise (or from a partly noised latent) along the schedule to a latent

Latents are normalised in here and in the VAE's own space outside.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .component import Component
from .diffusion import LATENT_PX, dit_token_count, initial_noise, latent_grid, share_a_pass
from .geometry import prior_for_dit
from .prior import Prior
from .progress import Progress, no_progress
from .schedule import Shift, partial_schedule, progress_of
from .step_cache import Branch, StepCache
from .vae import LatentSpace

if TYPE_CHECKING:
    from .references import Reference
    from .transformer import GlmImageDit


log = logging.getLogger(__name__)
KEPT_BYTES = 4 * 2**30
"""Caches that the current run does not need are dropped beyond this; two of 1024 x 1024 pixels fit in bfloat16."""
LayerKeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, each [1, tokens, heads, head width]."""


@dataclass(frozen=True, eq=False)
class Dit(Component):
    """The checkpoint's `transformer`, the space of the latents it was trained on, and its scheduler's shift.

    kept holds the keys and values of the references used last, on the CPU. They depend on nothing but the weights and the
    reference, so a new seed, prompt or number of steps finds them there; with other `weights`, references have others.
    checkpoint is the folder that all this was read from, or a single file, and roots then the folders below which the rest
    was looked for. attention and compiled say how the model was told to compute.
    """

    model: "GlmImageDit"
    space: LatentSpace
    shift: Shift = Shift()  # noqa: RUF009, immutable
    kept: dict[str, list[LayerKeysValues]] = field(default_factory=dict)
    checkpoint: Path | None = None
    roots: tuple[Path, ...] = ()
    attention: str = "auto"
    compiled: bool = False

    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        return () if self.quantized_by else self.model.transformer_blocks  # other libraries' weights cannot be copied alone


@dataclass(frozen=True)
class Conditions:
    """What the DiT sees beside the latents and the time, on its device: all that stays the same through a run.

    prior: [B, T, D], glyphs: [B, L, D], projected to the stream. rope: cosine and sine, [T, head width] each.
    """

    prior: torch.Tensor
    glyphs: torch.Tensor
    rope: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Shortcuts:
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
    shortcuts: Shortcuts = Shortcuts(),
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
    guide = Guide(
        dit,
        positive=conditions_of(dit, positive, prior.width, prior.height, batch, prior.tokens),
        negative=None if cfg == 1 else conditions_of(dit, negative, prior.width, prior.height, batch),
        cache=reference_cache(dit, references, caches_on_device),
        step_cache=StepCache(shortcuts.step_cache) if shortcuts.step_cache else None,
    )
    times = dit.model.time_states(schedule.timesteps.to(device), prior.width, prior.height, dit.dtype)  # [steps, time width]

    for step in range(schedule.steps):
        sigma, sigma_next = schedule.sigmas[step : step + 2]
        cfg_now = shortcuts.cfg_at(progress_of(schedule.timesteps[step].item()), cfg)
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
class Guide:
    """Both sides of the guidance. Only the positive one reads the reference cache; without guidance there is no negative."""

    dit: Dit
    positive: Conditions
    negative: Conditions | None
    cache: "Sequence[ReferenceLayer] | None" = None
    step_cache: StepCache | None = None

    def steps_before(self, side: str) -> Branch | None:
        return None if self.step_cache is None else self.step_cache.branch(side)


def guided_velocity(guide: Guide, x: torch.Tensor, time: torch.Tensor, cfg: float) -> torch.Tensor:
    """v = v_u + cfg * (v_c - v_u), [B, 16, h, w] float32. cfg 1 is v_c alone, at half the cost.

    x: [B, 16, h, w] normalised latents. time: [1, time width]. The two sides share a pass where their texts have one length
    and there is no cache: the DiT's own mask for texts masks nothing.
    """
    if cfg == 1:
        return velocity(guide.dit, x, time, guide.positive, guide.cache, guide.steps_before("positive"))
    positive, negative = guide.positive, guide.negative
    same_shape = positive.glyphs.shape == negative.glyphs.shape
    if guide.cache is None and same_shape and share_a_pass(positive.prior[..., 0].numel()):
        both = Conditions(
            torch.cat((positive.prior, negative.prior)), torch.cat((positive.glyphs, negative.glyphs)), positive.rope
        )
        v, v_u = velocity(guide.dit, torch.cat((x, x)), time, both, None, guide.steps_before("both")).chunk(2)
    else:
        v = velocity(guide.dit, x, time, positive, guide.cache, guide.steps_before("positive"))
        v_u = velocity(guide.dit, x, time, negative, None, guide.steps_before("negative"))
    return v_u + cfg * (v - v_u)


def velocity(
    dit: Dit,
    x: torch.Tensor,
    time: torch.Tensor,
    conditions: Conditions,
    cache: "Sequence[ReferenceLayer] | Sequence[WrittenLayer] | None" = None,
    steps_before: Branch | None = None,
) -> torch.Tensor:
    """One forward of the DiT, [B, 16, h, w] float32. time: [1 or B, time width]."""
    prior, glyphs, rope = conditions.prior, conditions.glyphs, conditions.rope
    return dit.model(x.to(dit.dtype), time.expand(len(x), -1), prior, glyphs, rope, cache, steps_before).float()


def conditions_of(
    dit: Dit, glyphs: torch.Tensor, width: int, height: int, batch: int, tokens: torch.Tensor | None = None
) -> Conditions:
    """What one side of the guidance sees. Without prior tokens it is the negative side, where every one is dropped.

    glyphs: [1, L, text width] embeddings. tokens: [1 or B, height / 32, width / 32] prior tokens; sides in pixels.
    """
    if tokens is None:
        prior = dit.model.dropped_prior_state(dit.device)
    else:
        prior = dit.model.prior_states(prior_for_dit(tokens).to(dit.device))
    return Conditions(
        prior=prior.to(dit.dtype).expand(batch, dit_token_count(width, height), -1),
        glyphs=dit.model.glyph_states(glyphs.to(dit.device, dit.dtype)).expand(batch, -1, -1),
        rope=rope(dit, width, height),
    )


def rope(dit: Dit, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotary embedding of a picture of width x height pixels, [tokens, head width] each."""
    shape_only = torch.empty(1, 0, *latent_grid(width, height))
    cosine, sine = dit.model.rope(shape_only)
    return cosine.to(dit.device), sine.to(dit.device)


class ReferenceLayer:
    """Keys and values of all references for one layer, [1, tokens, heads, head width] each, as the DiT's attention asks for them.

    Those that are not on the device are brought there each time they are read, which costs time and saves their memory.
    """

    mode = "read"

    def __init__(self, keys_values: Sequence[LayerKeysValues]):
        self.keys_values = keys_values

    def get(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The references' and a picture's own, [B, tokens, heads, head width], joined along the tokens."""
        return tuple(
            torch.cat([*(kept.to(own.device, non_blocking=True).expand(len(own), -1, -1, -1) for kept in all_kept), own], dim=1)
            for all_kept, own in zip(zip(*self.keys_values, strict=True), (keys, values), strict=True)
        )

    def on(self, device: torch.device) -> "ReferenceLayer":
        return ReferenceLayer([(keys.to(device), values.to(device)) for keys, values in self.keys_values])


class WrittenLayer:
    """Takes the keys and values of a reference out of one layer, to the CPU at once, so that no two layers' are on the device."""

    mode = "write"

    def store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys_values = _kept(keys), _kept(values)


def reference_cache(dit: Dit, references: Sequence["Reference"], on_device: bool = True) -> Sequence[ReferenceLayer] | None:
    """The keys and values of the references in order, by layer, ready to be read. None without references.

    Each reference is computed at most once as long as `dit.kept` holds it. A reference enters `kept` when it is complete, so
    an interruption leaves nothing half done. What was used longest ago is dropped first. on_device: have them there for the
    whole run; otherwise they come layer by layer in every pass.
    """
    if not references:
        return None
    names = [dit.weights + reference.id for reference in references]
    for name, reference in zip(names, references, strict=True):
        layers = dit.kept.pop(name, None)
        if layers is None:
            layers = reference_keys_values(dit, reference)
        dit.kept[name] = layers  # at the end: used last
    _drop_oldest(dit.kept, set(names))
    layers = [ReferenceLayer(of_all) for of_all in zip(*(dit.kept[name] for name in names), strict=True)]
    return [layer.on(dit.device) for layer in layers] if on_device else layers


def _drop_oldest(kept: dict[str, list[LayerKeysValues]], needed: set[str]) -> None:
    """Drop what is not needed now, oldest first, until all that is kept fits in KEPT_BYTES."""
    sizes = {name: sum(t.numel() * t.element_size() for pair in layers for t in pair) for name, layers in kept.items()}
    for name in [name for name in kept if name not in needed]:
        if sum(sizes[name] for name in kept) <= KEPT_BYTES:
            return
        del kept[name]


def reference_keys_values(dit: Dit, reference: "Reference") -> list[LayerKeysValues]:
    """One pass of a reference through the DiT: t = 0, no text, its vision tokens as prior, its own size.

    Returns keys and values of each layer, on the CPU.
    """
    width, height = reference.width, reference.height
    no_text = torch.empty(1, 0, dit.model.config.text_embed_dim)
    conditions = conditions_of(dit, no_text, width, height, 1, reference.vision_tokens[None])
    time = dit.model.time_states(torch.zeros(1, device=dit.device), width, height, dit.dtype)
    cache = [WrittenLayer() for _ in dit.model.transformer_blocks]
    velocity(dit, dit.space.normalise(reference.latents.to(dit.device)), time, conditions, cache)
    return [layer.keys_values for layer in cache]


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, where a GPU can fetch it by itself."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


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


def check_attention(dit: Dit) -> None:
    """Raise ValueError where something put another attention processor in place.

    Those of xformers, attention slicing and plain PyTorch drop the rotary embedding and the references without a word.
    """
    from diffusers.models.transformers.transformer_glm_image import GlmImageAttnProcessor

    for block in dit.model.transformer_blocks:
        if not isinstance(block.attn1.processor, GlmImageAttnProcessor):
            raise ValueError(
                f"the attention of the DiT was replaced by {type(block.attn1.processor).__name__}, which knows neither positions "
                "nor references; choose another attention in Load GLM-Image DiT instead"
            )
