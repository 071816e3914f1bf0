"""GLM-Image: the DiT as a MODEL, as ComfyUI's samplers, schedulers, previews and patches expect one, and its sampler."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import comfy.conds
import comfy.model_base
import comfy.model_management as model_management
import comfy.model_sampling
import comfy.samplers
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ....glmimage_core.checkpoints.header import CONFIG_TENSOR, config_tensor
from ....glmimage_core.diffusion import LATENT_PX, dit_token_count, image_seeds, initial_noise, latent_grid, whole_steps
from ....glmimage_core.glm_image.denoise import check_glyphs, check_sample
from ....glmimage_core.glm_image.dit import Conditions, Dit, configure_compute, encode_conditions, of_tile, velocity
from ....glmimage_core.glm_image.files.load import load_dit, load_vae, load_vae_of
from ....glmimage_core.glm_image.files.single_file import config_to_carry
from ....glmimage_core.glm_image.memory import dit_bytes
from ....glmimage_core.glm_image.prior import Prior
from ....glmimage_core.glm_image.reference_cache import reference_kv_caches
from ....glmimage_core.glm_image.references import Reference, check_references, sizes_of
from ....glmimage_core.glm_image.schedule import TRAIN_STEPS, partial_schedule, shift_sigma, timestep_of_sigma
from ....glmimage_core.glm_image.step_cache import StepCache
from ....glmimage_core.glm_image.tiles import Tile, Tiling, blended, tiles_of
from ....glmimage_core.latent_preview import LatentColours, fit_latent_colours
from ....glmimage_core.placement.prediction import Job
from ....glmimage_core.vae import LatentSpace
from ....glmimage_core.weights.linear import mark_tensors, quantization_of
from ..requests import DROP_KEY, PRIOR_KEY, REFERENCES_KEY, REPLAN_KEY, GlmImageRequest, applied_prior, fitting_prior
from .attention_patches import attention_patches, chosen_attention
from .models import ComponentModel, NormalisedLatents, model_patcher
from .progress import write_on_node
from .samplers import IntervalGuider, run_sampler

log = logging.getLogger(__name__)

# In transformer_options
STEP_CACHE_KEY = "glm_image_step_cache"  # for one run of our sampler
TILING_KEY = "glm_image_tiling"  # from GLM-Image Tiles


class PreviewedLatents(NormalisedLatents):
    """With previews, in colours fitted to the VAE."""

    def __init__(self, dit: Dit):
        super().__init__(dit.space)
        self._checkpoint = dit.checkpoint
        self._roots = dit.roots

    @cached_property
    def _colours(self) -> LatentColours | None:
        return _preview_colours(self._checkpoint, self._roots, self._space)

    @property
    def latent_rgb_factors(self) -> list[list[float]] | None:
        """Fitted for the first preview."""
        return self._colours and self._colours.factors.tolist()

    @property
    def latent_rgb_factors_bias(self) -> list[float] | None:
        return self._colours and self._colours.bias.tolist()


def _preview_colours(checkpoint: Path | None, roots: Sequence[Path], space: LatentSpace) -> LatentColours | None:
    """Colours fitted to the VAE in the DiT's folder, or for a DiT from a single file to any VAE with its latent space.

    None, and no previews, without such a VAE.
    """
    if checkpoint is None:
        return None
    try:
        if checkpoint.is_file():
            vae_roots = map(Path, folder_paths.get_folder_paths("vae"))
            return fit_latent_colours(load_vae_of(space, "float32", roots=roots, file_roots=vae_roots))
        return fit_latent_colours(load_vae(checkpoint, "float32"))
    except (FileNotFoundError, ValueError) as error:
        log.warning("there are no previews, because their colours are fitted to the VAE: %s", error)
        return None


class ShiftedSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """GLM-Image's schedule: sigmas shifted by mu, and their map to and from the DiT's timesteps."""

    def set_parameters(self, shift: float = 1.0, timesteps: int = TRAIN_STEPS, multiplier: int = TRAIN_STEPS) -> None:
        self.shift = shift
        self.multiplier = multiplier
        # Not a buffer: the patcher that streams on demand keeps buffers by name and would give this size those of another size.
        self.sigmas = self.sigma(torch.arange(timesteps))

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return timestep_of_sigma(sigma, self.shift)

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        return shift_sigma((timestep + 1) / TRAIN_STEPS, self.shift)

    def percent_to_sigma(self, percent: float) -> float:
        if percent >= 1:
            return 0.0
        return float(shift_sigma(torch.tensor(1 - max(percent, 0.0)), self.shift))


def shifted_sampling(dit: Dit, width: int, height: int) -> ShiftedSampling:
    """The schedule for pictures of width x height pixels."""
    sampling = ShiftedSampling()
    sampling.set_parameters(shift=dit.shift.of_size(width, height))
    return sampling


class ReferenceCacheCond(comfy.conds.CONDConstant):
    """The key/value caches of all references, which only their own side of the guidance reads.

    sizes: their sizes in pixels, as `_sizes` gives them.
    """

    def __init__(self, cache, sizes: list[int]):
        super().__init__(cache)
        self.sizes = sizes

    def process_cond(self, batch_size, **kwargs):
        return self  # the base class would copy the cache without its sizes

    def size(self) -> list:
        return self.sizes


class RotaryEmbeddingCond(comfy.conds.CONDConstant):
    """The rotary embedding of the picture. All conditionings of a pass share it."""

    def process_cond(self, batch_size, **kwargs):
        return self  # the base class would copy it; it is the same for every batch size

    def can_concat(self, other) -> bool:
        return True


class GlmImageModel(ComponentModel):
    """The DiT behind ComfyUI's samplers. Its conditioning comes from GLM-Image Apply Prior."""

    title = "GLM-Image"
    patches = frozenset({"attn1_output_patch"})
    wrappers = attention = True
    unread = ComponentModel.unread | {"reference_latents": "ReferenceLatent has no effect; use GLM-Image Encode Reference"}
    lora_loader = "Load GLM-Image LoRA"

    def __init__(self, dit: Dit, device: torch.device, offload: torch.device):
        super().__init__(
            dit,
            comfy.model_base.ModelType.FLOW,
            sampling=shifted_sampling(dit, *dit.schedule_of),
            latent_format=PreviewedLatents(dit),
            device=device,
            offload=offload,
        )

    def extra_conds(self, *, noise, device, cross_attn, prompt_type="", **options) -> dict[str, comfy.conds.CONDRegular]:
        """The inputs of the DiT from one conditioning. Runs the references whose caches are not kept.

        The negative side gets neither prior nor references, whatever its conditioning carries.
        """
        drop = prompt_type == "negative" or (prompt_type != "positive" and bool(options.get(DROP_KEY)))
        check_glyphs(self.component, cross_attn)
        if PRIOR_KEY in options or not drop:
            prior = options[PRIOR_KEY] if drop else applied_prior(options, prompt_type)
            check_sample(self.component, prior, glyphs=(cross_attn,), batch=len(noise), denoise=1, latents=noise, mask=None)
        references = () if drop else options.get(REFERENCES_KEY, ())
        check_references(references, space=self.component.space)
        dit = self._dit_for_references(device)
        height, width = (side * LATENT_PX for side in noise.shape[2:])
        planned = {"batch": 1} if drop else {"batch": prior.batch, "tokens": prior.tokens, "dropped": prior.dropped}
        with torch.inference_mode():
            inputs = encode_conditions(dit, cross_attn, width=width, height=height, **planned)
            conds = {
                "glyphs": comfy.conds.CONDRegular(inputs.glyph_embeds),
                "prior": comfy.conds.CONDRegular(inputs.prior_embeds),
                "rope": RotaryEmbeddingCond(inputs.image_rotary_emb),
            }
            if references:
                sizes = _flat_sizes(references)
                on_device = self._caches_fit(_job(2 * len(noise), height, width, glyph_tokens=cross_attn.shape[1], sizes=sizes))
                conds["cache"] = ReferenceCacheCond(reference_kv_caches(dit, references, on_device), sizes)
        return conds

    def state_dict_for_saving(self, *arguments, **options) -> dict[str, torch.Tensor]:
        """What ModelSave writes: the weights, and what they need to load again: the config, and the format of quantized ones.

        Raises ValueError for weights that another library quantized.
        """
        if library := self.component.quantized_by:
            raise ValueError(f"weights that {library} quantized cannot be saved; copy the file that they were loaded from")
        beside = {CONFIG_TENSOR: config_tensor(config_to_carry(self.component))} | mark_tensors(self.diffusion_model)
        saved = super().state_dict_for_saving(*arguments, **options)
        return saved | self.model_config.process_unet_state_dict_for_saving(beside)

    def extra_conds_shapes(self, **options) -> dict[str, list]:
        """What takes memory beside the latents, for `memory_required`."""
        glyphs = options.get("cross_attn")
        shapes = {"cache": _flat_sizes(options.get(REFERENCES_KEY, ()))}
        return shapes if glyphs is None else shapes | {"glyphs": list(glyphs.shape)}

    def memory_required(self, input_shape, cond_shapes={}) -> int:  # noqa: B006, ComfyUI's signature
        """Bytes of one pass of input_shape [B, 16, height / 8, width / 8] and of the references' caches."""
        batch, *_, height, width = input_shape  # a video latent has one more dimension; extra_conds refuses it
        sizes = max(cond_shapes.get("cache", ()), key=len, default=[])
        glyph_tokens = max((shape[1] for shape in cond_shapes.get("glyphs", ())), default=Job().glyph_tokens)
        job = _job(batch, height * LATENT_PX, width * LATENT_PX, glyph_tokens=glyph_tokens, sizes=sizes)
        return self._working_bytes(job, caches_on_device=self._caches_fit(job))

    def _working_bytes(self, job: Job, caches_on_device: bool) -> int:
        return dit_bytes(self.diffusion_model.config, self.component.dtype.itemsize, job, caches_on_device)

    def _caches_fit(self, job: Job) -> bool:
        """Whether the caches of all references fit on the device beside the weights. Otherwise each pass brings them by layers.

        ComfyUI asks for the memory of both sides of the guidance in one pass, so both callers count the batch twice.
        """
        if not job.references:  # ComfyUI asks in every step: spare it the sum over all weights
            return True
        usable = model_management.get_total_memory(self.component.device) - model_management.extra_reserved_memory()
        return self._weight_bytes + self._working_bytes(job, caches_on_device=True) <= usable

    @cached_property
    def _weight_bytes(self) -> int:
        return model_management.module_size(self)

    def timestep_at(self, sigma: torch.Tensor, x: torch.Tensor, transformer_options: dict) -> torch.Tensor:
        """The DiT's timestep at a sigma, whatever schedule chose the sigma.

        It depends on the size of what is painted at once: x, [B, 16, h, w], or a tile of it.
        """
        tile, *_ = _tiles(x.shape, transformer_options)
        return timestep_of_sigma(sigma.float(), self.component.shift.of_size(tile.width, tile.height))

    # Not process_timestep: ComfyUI gives it the timestep of the MODEL's schedule, and the DiT's follows from the sigma.
    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **conds):  # noqa: B006
        """x: [B, 16, h, w] noised latents at sigma t: [B]. Returns the denoised latents, [B, 16, h, w] float32."""
        self._warn_of_no_effect(transformer_options)
        timestep = self.timestep_at(t, x, transformer_options).clamp(min=0)
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._velocity, self, wrappers)
        v = executor.execute(x.clone(), timestep, conds, transformer_options)  # a wrapper may write into its input
        return self.model_sampling.calculate_denoised(t, v.float(), x)

    def _velocity(self, x: torch.Tensor, timestep: torch.Tensor, conds: dict, transformer_options: dict) -> torch.Tensor:
        """One forward, or one of each tile, [B, 16, h, w] float32."""
        height, width = (side * LATENT_PX for side in x.shape[2:])
        tiles = _tiles(x.shape, transformer_options)
        prior, device = conds["prior"].to(x.device), x.device
        if prior.shape[1] != dit_token_count(width, height):
            raise ValueError("GLM-Image paints whole pictures; remove the area or the window from the conditioning")
        dit = self.component_on(device)
        rope = tuple(part.to(device) for part in conds["rope"])  # ComfyUI may run one side of the guidance on another card
        conditions = Conditions(prior, conds["glyphs"].to(device), rope)
        temb = dit.model.embed_time(timestep, tiles[0].width, tiles[0].height, dit.dtype)
        step_cache = transformer_options.get(STEP_CACHE_KEY)

        def of_one(tile: Tile, part: torch.Tensor) -> torch.Tensor:
            seen = conditions if len(tiles) == 1 else of_tile(dit, conditions, tile, width)
            side = (*transformer_options.get("cond_or_uncond", ()), *tile)
            branch = step_cache and step_cache.branch(side, timestep[0])
            return velocity(dit, part, temb, seen, kv_caches=conds.get("cache"), step_cache=branch)

        follow_flags = self.component.attention == "auto"
        with (
            chosen_attention(self.diffusion_model, transformer_options, follow_flags=follow_flags) as chosen,
            attention_patches(self.diffusion_model, transformer_options, text_tokens=conditions.glyph_embeds.shape[1]),
        ):
            if chosen and self.component.compiled:
                self.warn_once("compile has no effect with an attention that a node or a flag chose; choose one in the loader")
            return blended(tiles, x, of_one)

    def _warn_of_no_effect(self, transformer_options: dict) -> None:
        self.warn_of_no_effect(transformer_options)
        patched = "attn1_output_patch" in transformer_options.get("patches", {})
        if patched and set(transformer_options.get("cond_or_uncond", (0, 1))) != {0, 1}:
            self.warn_once("attention patches such as NAG's have no effect, because positive and negative do not run in one pass")

    def _dit_for_references(self, device: torch.device) -> Dit:
        """The component with a `weights_key` that changes when a patch on the MODEL changes the weights.

        What a node injects into the layers changes no key, so caches computed with it are not kept.
        """
        dit = replace(self.component_on(device), weights_key=f"{self.current_patcher.patches_uuid} ")
        return replace(dit, cached_references={}) if self.current_patcher.injections else dit


def _tiles(shape: Sequence[int], transformer_options: dict) -> list[Tile]:
    """The parts in which latents of a shape [B, 16, h, w] are painted."""
    height, width = (side * LATENT_PX for side in shape[2:])
    return tiles_of(width, height, transformer_options.get(TILING_KEY))


def _flat_sizes(references: Sequence[Reference]) -> list[int]:
    """[width, height, width, height, ...] in pixels: what memory is predicted from, flat as ComfyUI wants shapes."""
    return [side for size in sizes_of(references) for side in size]


def _job(batch: int, height: int, width: int, *, glyph_tokens: int, sizes: list[int]) -> Job:
    """One pass over pictures of width x height pixels; sizes as `_flat_sizes` gives them."""
    references = tuple(zip(sizes[::2], sizes[1::2], strict=True))
    return Job(width, height, batch, references, glyph_tokens=glyph_tokens)


def sampled_by_a_fitting_plan(executor, noise, latent_image, *arguments, **options):
    """A wrapper around a whole sampling of ComfyUI that plans enlarged latents anew, before the DiT is loaded."""
    plans: dict[int, Prior] = {}
    for entry in (entry for side in executor.class_obj.conds.values() for entry in side if REPLAN_KEY in entry):
        replan = id(entry[REPLAN_KEY])  # both sides share one
        if replan not in plans:
            plans[replan] = fitting_prior(entry, latent_image)
        entry[PRIOR_KEY] = plans[replan]
    return executor(noise, latent_image, *arguments, **options)


def dit_patcher(dit: Dit, device: torch.device, disable_dynamic: bool = False) -> ModelPatcher:
    """The DiT as what travels on a MODEL wire, to compute on a device."""
    patcher = model_patcher(GlmImageModel, dit, device, disable_dynamic=disable_dynamic)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "glm_image_plan", sampled_by_a_fitting_plan)
    # ComfyUI calls this for a second copy, when a node needs one that does not stream on demand.
    reload = partial(
        _reload,
        roots=dit.roots,
        dtype=str(dit.model.dtype).removeprefix("torch."),
        quantization=quantization_of(dit.model),
        attention=dit.attention,
        compiled=dit.compiled,
        device=device,
    )
    patcher.cached_patcher_init = (reload, (dit.checkpoint,))
    return patcher


def _reload(
    checkpoint: Path,
    *,
    roots: Sequence[Path],
    dtype: str,
    quantization: str,
    attention: str,
    compiled: bool,
    device: torch.device,
    disable_dynamic: bool = False,
) -> ModelPatcher:
    dit = load_dit(checkpoint, dtype, quantization=quantization, roots=roots, device=device)
    return dit_patcher(configure_compute(dit, attention, compiled, device), device, disable_dynamic)


def sample(model: ModelPatcher, request: GlmImageRequest) -> torch.Tensor:
    """Paint what the prior plans with one of ComfyUI's samplers. Every patch on the MODEL takes effect."""
    prior, latents, approximations = request.prior, request.latents, request.approximations
    if request.denoise == 0:
        return latents.expand(request.batch, -1, -1, -1).clone()
    dit = model.model.component
    if isinstance(model.get_model_object("model_sampling"), ShiftedSampling):
        tile, *_ = tiles_of(prior.width, prior.height, model.model_options["transformer_options"].get(TILING_KEY))
        model = for_size(model, tile.width, tile.height)
        sigmas = partial_schedule(request.steps, request.denoise, dit.shift.of_size(tile.width, tile.height)).sigmas
    else:  # a node put another schedule on the MODEL; ComfyUI's scheduler `simple` has GLM-Image's spacing of its steps
        whole = whole_steps(request.steps, request.denoise)
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", whole)[-request.steps - 1 :]
    step_cache = StepCache(approximations.step_cache) if approximations.step_cache else None
    if step_cache is not None:
        model = model.clone()
        model.model_options["transformer_options"][STEP_CACHE_KEY] = step_cache
    guider = IntervalGuider(model, approximations, sigmas) if approximations.limits_guidance else comfy.samplers.CFGGuider(model)
    samples = run_sampler(
        guider,
        request,
        noise=initial_noise(
            image_seeds(request.seed, request.batch), len(dit.space.mean), latent_grid(prior.width, prior.height)
        ),
        sampler=comfy.samplers.sampler_object(request.sampler_name),
        sigmas=sigmas,
        latents=latents,
        mask=request.mask,
    )
    if step_cache is not None:
        log.info(str(step_cache))
        write_on_node(str(step_cache))
    return samples


def for_size(model: ModelPatcher, width: int, height: int) -> ModelPatcher:
    """The MODEL with the schedule for pictures of width x height pixels."""
    model = model.clone()
    model.add_object_patch("model_sampling", shifted_sampling(model.model.component, width, height))
    return model


def in_tiles(model: ModelPatcher, tiling: Tiling) -> ModelPatcher:
    """The MODEL that paints in tiles what is larger than one. Memory is made free for one tile."""

    def prepared(executor, model, noise_shape, *arguments, **options):
        tile, *_ = _tiles(noise_shape, {TILING_KEY: tiling})
        return executor(model, [*noise_shape[:2], *latent_grid(tile.width, tile.height)], *arguments, **options)

    model = model.clone()
    model.model_options["transformer_options"][TILING_KEY] = tiling
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, TILING_KEY, prepared)
    return model
