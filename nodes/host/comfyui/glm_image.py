"""The DiT as a MODEL: what ComfyUI's samplers, schedulers, previews and patches expect of one."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as model_management
import comfy.model_sampling
import comfy.supported_models_base
import folder_paths
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ....glmimage_core.diffusion import LATENT_PX, dit_token_count
from ....glmimage_core.glm_image.denoise import check_sample
from ....glmimage_core.glm_image.dit import Conditions, Dit, encode_conditions, velocity
from ....glmimage_core.glm_image.files.load import load_dit, load_vae, load_vae_of
from ....glmimage_core.glm_image.memory import dit_bytes
from ....glmimage_core.glm_image.reference_cache import reference_kv_caches
from ....glmimage_core.glm_image.references import Reference, check_references, sizes_of
from ....glmimage_core.glm_image.schedule import TRAIN_STEPS, shift_sigma, timestep_of_sigma
from ....glmimage_core.latent_preview import LatentColours, fit_latent_colours
from ....glmimage_core.placement.prediction import Job
from ....glmimage_core.vae import LatentSpace, check_channels
from ....glmimage_core.weights.linear import quantization_of
from ..requests import DROP_KEY, PRIOR_KEY, REFERENCES_KEY, applied_prior
from .background import sampled_alone
from .patchers import Patcher, offload_device, streamable

log = logging.getLogger(__name__)

STEP_CACHE_KEY = "glm_image_step_cache"  # in transformer_options, for one run of our sampler
USUAL_SIDE = 1024  # pixels; the schedule of a MODEL that went through no GLM-Image Model Sampling


class NormalisedLatents(comfy.latent_formats.LatentFormat):
    """Latents travel in the VAE's space; samplers work on them normalised."""

    def __init__(self, space: LatentSpace):
        self.latent_channels = len(space.mean)
        self._space = space

    def process_in(self, latent: torch.Tensor) -> torch.Tensor:
        check_channels(self._space, latent)
        return self._space.normalise(latent)

    def process_out(self, latent: torch.Tensor) -> torch.Tensor:
        return self._space.denormalise(latent)


class LatentFormat(NormalisedLatents):
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
        """Fitted when the first preview is asked for."""
        return self._colours and self._colours.factors.tolist()

    @property
    def latent_rgb_factors_bias(self) -> list[float] | None:
        return self._colours and self._colours.bias.tolist()


def _preview_colours(checkpoint: Path | None, roots: Sequence[Path], space: LatentSpace) -> LatentColours | None:
    """Fitted to the VAE beside the DiT, or of a DiT from a single file to any of its space; None, and no previews, without."""
    if checkpoint is None:
        return None
    try:
        if checkpoint.is_file():
            vae_roots = map(Path, folder_paths.get_folder_paths("vae"))
            return fit_latent_colours(load_vae_of(space, "float32", roots=roots, file_roots=vae_roots))
        return fit_latent_colours(load_vae(checkpoint, "float32"))
    except (FileNotFoundError, ValueError) as error:
        log.warning("no previews, since their colours are fitted to the VAE: %s", error)
        return None


class ModelSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """GLM-Image's sigmas: shifted by mu, and mapped to and from the timesteps that the DiT is conditioned on."""

    def set_parameters(self, shift: float = 1.0, timesteps: int = TRAIN_STEPS, multiplier: int = TRAIN_STEPS) -> None:
        self.shift = shift
        self.multiplier = multiplier
        # No buffer: the patcher that streams on demand keeps buffers by name, and would give this size those of another one.
        self.sigmas = self.sigma(torch.arange(timesteps))

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return timestep_of_sigma(sigma, self.shift)

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        return shift_sigma((timestep + 1) / TRAIN_STEPS, self.shift)

    def percent_to_sigma(self, percent: float) -> float:
        if percent >= 1:
            return 0.0
        return float(shift_sigma(torch.tensor(1 - max(percent, 0.0)), self.shift))


def model_sampling(dit: Dit, width: int, height: int) -> ModelSampling:
    """The schedule for pictures of width x height pixels."""
    sampling = ModelSampling()
    sampling.set_parameters(shift=dit.shift.of_size(width, height))
    return sampling


class ModelConfig(comfy.supported_models_base.BASE):
    unet_config = {"disable_unet_model_creation": True}
    unet_extra_config = {}


class References(comfy.conds.CONDConstant):
    """The key/value cache of all references; sizes as `_sizes` gives them. Keeps its side of the guidance to itself."""

    def __init__(self, cache, sizes: list[int]):
        super().__init__(cache)
        self.sizes = sizes

    def process_cond(self, batch_size, **kwargs):
        return self

    def size(self) -> list:
        return self.sizes


class Rotary(comfy.conds.CONDConstant):
    """The rotary embedding of the picture, one for all that runs in a pass."""

    def process_cond(self, batch_size, **kwargs):
        return self

    def can_concat(self, other) -> bool:
        return True


class GlmImageModel(comfy.model_base.BaseModel):
    """The DiT behind ComfyUI's samplers. Its conditioning comes from GLM-Image Apply Prior."""

    def __init__(self, dit: Dit, device: torch.device, offload_device: torch.device):
        config = ModelConfig(ModelConfig.unet_config)
        config.latent_format = LatentFormat(dit)
        config.manual_cast_dtype = streamable(dit.model, device)
        super().__init__(config, comfy.model_base.ModelType.FLOW, device=offload_device)
        self.diffusion_model = dit.model.requires_grad_(False)
        self.dit = dit.on(device, config.manual_cast_dtype)
        self.model_sampling = model_sampling(dit, USUAL_SIDE, USUAL_SIDE)
        self._said: set[str] = set()

    def extra_conds(self, *, noise, device, cross_attn, prompt_type="", **options) -> dict[str, comfy.conds.CONDRegular]:
        """What the DiT sees of one conditioning beside the latents. Runs the references whose caches are not kept.

        The negative side sees neither prior nor references, whatever is in its conditioning.
        """
        drop = prompt_type == "negative" or (prompt_type != "positive" and bool(options.get(DROP_KEY)))
        if PRIOR_KEY in options or not drop:
            prior = options[PRIOR_KEY] if drop else applied_prior(options, prompt_type)
            check_sample(self.dit, prior, glyphs=(cross_attn,), batch=len(noise), denoise=1, latents=noise, mask=None)
        references = () if drop else options.get(REFERENCES_KEY, ())
        check_references(references, space=self.dit.space)
        dit = self._dit_with_its_weights(device)
        height, width = (side * LATENT_PX for side in noise.shape[2:])
        with torch.inference_mode():
            seen = encode_conditions(
                dit, cross_attn, width, height, batch=1 if drop else prior.batch, tokens=None if drop else prior.tokens
            )
            conds = {
                "glyphs": comfy.conds.CONDRegular(seen.glyph_embeds),
                "prior": comfy.conds.CONDRegular(seen.prior_embeds),
                "rope": Rotary(seen.image_rotary_emb),
            }
            if references:
                sizes = _sizes(references)
                there = self._caches_fit(2 * len(noise), height, width, cross_attn.shape[1], sizes)
                conds["cache"] = References(reference_kv_caches(dit, references, there), sizes)
        return conds

    def extra_conds_shapes(self, **options) -> dict[str, list]:
        """What takes memory beside the latents, for `memory_required`."""
        glyphs = options.get("cross_attn")
        shapes = {"cache": _sizes(options.get(REFERENCES_KEY, ()))}
        return shapes if glyphs is None else shapes | {"glyphs": list(glyphs.shape)}

    def memory_required(self, input_shape, cond_shapes={}) -> int:  # noqa: B006, ComfyUI's signature
        """Bytes of one pass of input_shape [B, 16, height / 8, width / 8] and of the references' caches."""
        batch, *_, height, width = input_shape  # a video latent is refused later, by name
        sizes = max(cond_shapes.get("cache", ()), key=len, default=[])
        glyph_tokens = max((shape[1] for shape in cond_shapes.get("glyphs", ())), default=Job().glyph_tokens)
        inputs = (batch, height * LATENT_PX, width * LATENT_PX, glyph_tokens, sizes)
        return self._working_bytes(*inputs, caches_on_device=self._caches_fit(*inputs))

    def _working_bytes(
        self, batch: int, height: int, width: int, glyph_tokens: int, sizes: list[int], caches_on_device: bool
    ) -> int:
        references = tuple(zip(sizes[::2], sizes[1::2], strict=True))
        job = Job(width, height, batch, references, glyph_tokens=glyph_tokens)
        return dit_bytes(self.diffusion_model.config, self.dit.dtype.itemsize, job, caches_on_device)

    def _caches_fit(self, *inputs) -> bool:
        """Whether the caches of all references fit on the device beside the weights. Otherwise they come layer by layer.

        ComfyUI asks for the memory of both sides of the guidance in one pass, so both callers count the batch twice.
        """
        *_, sizes = inputs
        if not sizes:  # and nothing to add up, in what ComfyUI asks in every step
            return True
        there = model_management.get_total_memory(self.dit.device) - model_management.extra_reserved_memory()
        return self._weight_bytes + self._working_bytes(*inputs, caches_on_device=True) <= there

    @cached_property
    def _weight_bytes(self) -> int:
        return model_management.module_size(self)

    def clock(self, sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The DiT's timestep at a sigma. It depends on the size of x, [B, 16, h, w], whatever schedule chose the sigma."""
        height, width = (side * LATENT_PX for side in x.shape[2:])
        return timestep_of_sigma(sigma.float(), self.dit.shift.of_size(width, height))

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **conds):  # noqa: B006
        """x: [B, 16, h, w] noised latents at sigma t: [B]. Returns the denoised latents, [B, 16, h, w] float32."""
        timestep = self.clock(t, x).clamp(min=0)
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._velocity, self, wrappers)
        v = executor.execute(x.clone(), timestep, conds, transformer_options)  # a step cache may write into its input
        return self.model_sampling.calculate_denoised(t, v.float(), x)

    def _velocity(self, x: torch.Tensor, timestep: torch.Tensor, conds: dict, transformer_options: dict) -> torch.Tensor:
        """One forward, [B, 16, h, w] float32."""
        height, width = (side * LATENT_PX for side in x.shape[2:])
        prior, device = conds["prior"].to(x.device), x.device
        if prior.shape[1] != dit_token_count(width, height):
            raise ValueError("GLM-Image paints whole pictures; remove the area or the window from the conditioning")
        dit = self._dit(device)
        rotary = tuple(part.to(device) for part in conds["rope"])  # ComfyUI may run one side of the guidance on another card
        conditions = Conditions(prior, conds["glyphs"].to(device), rotary)
        time = dit.model.embed_time(timestep, width, height, dit.dtype)
        patches = transformer_options.get("patches", {}).get("attn1_output_patch", ())
        if patches and "attn1_patch" in transformer_options["patches"]:
            raise ValueError(
                "a node on the MODEL (such as TomePatchModel) changes what goes into attention, for which the DiT of GLM-Image "
                "has no place; remove it"
            )
        self._say_what_has_no_effect(transformer_options)
        step_cache = transformer_options.get(STEP_CACHE_KEY)
        branch = step_cache and step_cache.branch(tuple(transformer_options["cond_or_uncond"]))
        with _attention_patches(self.diffusion_model, patches, transformer_options, conditions.glyph_embeds.shape[1]):
            return velocity(dit, x, time, conditions, kv_caches=conds.get("cache"), step_cache=branch)

    def _say_what_has_no_effect(self, transformer_options: dict) -> None:
        """Warn, once for each, of patches that change nothing here."""
        patches = set(transformer_options.get("patches", {}))
        idle = {f"{kind} patches, for a part it does not have" for kind in patches - {"attn1_output_patch"}}
        replaced = transformer_options.get("patches_replace", {})
        idle |= {f"replaced {kind} parts, which it does not have" for kind, parts in replaced.items() if parts}
        if "attn1_output_patch" in patches and set(transformer_options.get("cond_or_uncond", (0, 1))) != {0, 1}:
            idle.add("attention patches such as NAG's, but positive and negative do not run in one pass")
        for patch in idle - self._said:
            log.warning("the MODEL of GLM-Image carries %s: they have no effect", patch)
        self._said |= idle

    def _dit(self, device: torch.device) -> Dit:
        """The component as it is now: a patch may have put a compiled model, another precision or another device in place."""
        return replace(self.dit, model=self.diffusion_model, compute_dtype=self.manual_cast_dtype, device=device)

    def _dit_with_its_weights(self, device: torch.device) -> Dit:
        """For reference caches, which other weights make other: the patcher names the weights by its patches.

        What a node injects into the layers has no name, so caches made with it are not kept.
        """
        dit = replace(self._dit(device), weights_key=f"{self.current_patcher.patches_uuid} ")
        return replace(dit, cached_references={}) if self.current_patcher.injections else dit


def _sizes(references: Sequence[Reference]) -> list[int]:
    """[width, height, width, height, ...] in pixels: what memory is predicted from, flat as ComfyUI wants shapes."""
    return [side for size in sizes_of(references) for side in size]


@contextmanager
def _attention_patches(model: torch.nn.Module, patches: list[Callable], options: dict, text_tokens: int) -> Iterator[None]:
    """Hand what attention puts out, [B, text and image tokens, width], to the patches of stock nodes."""
    handles = []
    for index, block in enumerate(model.transformer_blocks if patches else ()):
        attention = block.attn1

        def patch(layer, inputs, index=index, attention=attention):
            (out,) = inputs
            here = {
                "block": ("transformer", index),
                "n_heads": attention.heads,
                "dim_head": out.shape[-1] // attention.heads,
                "img_slice": [text_tokens, out.shape[1]],
            }
            for function in patches:
                out = function(out, options | here)
            return (out,)

        handles.append(attention.to_out[0].register_forward_pre_hook(patch))
    # A block that was compiled without the patches would run without them.
    with torch.compiler.set_stance("force_eager") if patches else nullcontext():
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def dit_patcher(dit: Dit, device: torch.device, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The DiT as what travels on a MODEL wire, to compute on a device."""
    rest = offload_device(device, model_management.unet_offload_device())
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else Patcher
    patcher = patcher_class(GlmImageModel(dit, device, rest), load_device=device, offload_device=rest)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "glm_image", sampled_alone)
    # How ComfyUI gets a second copy, where a node needs one that does not stream on demand
    settings = (str(dit.model.dtype).removeprefix("torch."), quantization_of(dit.model), dit.attention, dit.compiled)
    patcher.cached_patcher_init = (_reload, (dit.checkpoint, dit.roots, *settings, device))
    return patcher


def _reload(
    checkpoint: Path,
    roots: Sequence[Path],
    dtype: str,
    quantization: str,
    attention: str,
    compiled: bool,
    device: torch.device,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    from ....glmimage_core.glm_image.dit import configure_compute

    dit = load_dit(checkpoint, dtype, quantization=quantization, roots=roots, device=device)
    return dit_patcher(configure_compute(dit, attention, compiled, device), device, disable_dynamic)
