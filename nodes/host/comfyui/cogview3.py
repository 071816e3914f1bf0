"""CogView3-Plus and CogView3-Base as a MODEL, as ComfyUI's samplers and schedulers expect one, and their samplers."""

from collections.abc import Sequence
from dataclasses import replace

import comfy.conds
import comfy.model_sampling
import comfy.samplers
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import ModelSamplingDiscrete

from ....glmimage_core.cogview3 import base
from ....glmimage_core.cogview3.base import (
    GUIDANCE,
    CogView3Unet,
    predicted_noise,
    sizes_embedding,
    steps_of,
    strength_embedding,
)
from ....glmimage_core.cogview3.memory import cogview3_bytes, unet_bytes
from ....glmimage_core.cogview3.plus import CogView3, timesteps_of, velocity
from ....glmimage_core.cogview3.text import TOKENS
from ....glmimage_core.component import Component
from ....glmimage_core.diffusion import LATENT_PX, image_seeds, initial_noise, latent_grid
from ....glmimage_core.placement.prediction import Job
from ..requests import CogView3BaseRequest, CogView3RelayRequest, CogView3Request, micro_conditions
from .models import ComponentModel, NormalisedLatents, model_patcher
from .patchers import bring_own_tensors, modules_with_own_tensors
from .samplers import RelaySampler, run_sampler

# alphas_cumprod in place of 0, where a schedule starts without signal: ComfyUI's own value, as its sigmas are finite.
# Source: rescale_zero_terminal_snr_sigmas in comfy/model_sampling.py.
NO_SIGNAL = 4.8973451890853435e-08


class CogView3Model(ComponentModel):
    """What the MODELs of both CogView3s share. Their conditioning comes from CogView3 Encode Prompt."""

    def __init__(
        self,
        component: CogView3 | CogView3Unet,
        model_type: ModelType,
        *,
        sampling: ModelSamplingDiscrete,
        device: torch.device,
        offload: torch.device,
    ):
        latent_format = NormalisedLatents(component.space)
        super().__init__(component, model_type, sampling=sampling, latent_format=latent_format, device=device, offload=offload)
        self._with_own_tensors = modules_with_own_tensors(component.model)

    def component_on(self, device: torch.device) -> Component:
        """The component with its weights on the device of a pass."""
        bring_own_tensors(self._with_own_tensors, device)
        return super().component_on(device)

    def check_text(self, embeddings: torch.Tensor, width: int) -> None:
        """Raise ValueError for the conditioning of another family, whose embeddings are not `width` wide."""
        if embeddings.shape[-1] != width:
            raise ValueError(
                f"the conditioning is not for {self.title}: its embeddings are {embeddings.shape[-1]} wide, and this model reads "
                f"{width}; connect CogView3 Encode Prompt"
            )

    @staticmethod
    def _job(input_shape: Sequence[int], tokens: int) -> Job:
        """One pass of input_shape [B, C, height / 8, width / 8]."""
        batch, *_, height, width = input_shape
        return Job(width * LATENT_PX, height * LATENT_PX, batch, glyph_tokens=tokens, guided=False)


class VelocitySampling(ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The trained schedule of CogView3-Plus.

    ComfyUI's scheduler `simple` takes the timesteps of diffusers from it, if their number divides 1000.
    """

    def __init__(self, alphas_cumprod: torch.Tensor):
        super().__init__()
        alphas = alphas_cumprod.double().clone()
        alphas[-1] = min(NO_SIGNAL, alphas[-2].item() / 2)
        self.set_sigmas(((1 - alphas) / alphas).sqrt().float())


class CogView3PlusModel(CogView3Model):
    """The DiT of CogView3-Plus."""

    title = "CogView3-Plus"

    def __init__(self, dit: CogView3, device: torch.device, offload: torch.device):
        sampling = VelocitySampling(dit.scheduler.alphas_cumprod)
        super().__init__(dit, ModelType.V_PREDICTION, sampling=sampling, device=device, offload=offload)

    def extra_conds(self, *, noise, cross_attn, **options) -> dict[str, comfy.conds.CONDRegular]:
        self.check_text(cross_attn, self.diffusion_model.config.text_embed_dim)
        height, width = (side * LATENT_PX for side in noise.shape[2:])
        sizes = zip(("original_size", "crop_coords", "target_size"), micro_conditions(options, width, height), strict=True)
        conds = {name: comfy.conds.CONDRegular(torch.tensor([size], dtype=torch.float32)) for name, size in sizes}
        return conds | {"c_crossattn": comfy.conds.CONDRegular(cross_attn)}

    def memory_required(self, input_shape, cond_shapes={}) -> int:  # noqa: B006, ComfyUI's signature
        return cogview3_bytes(self.diffusion_model.config, self.component.dtype.itemsize, self._job(input_shape, TOKENS))

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **sizes):  # noqa: B006
        """x: [B, 16, h, w] noised latents at sigma t: [B]. Returns the denoised latents, [B, 16, h, w] float32."""
        self.warn_of_no_effect(transformer_options)
        dit = self.component_on(x.device)
        scaled = self.model_sampling.calculate_input(t, x)
        timestep = self.model_sampling.timestep(t).float()
        v = velocity(dit, scaled, timestep, text=c_crossattn.to(x.device, dit.dtype), **sizes)
        return self.model_sampling.calculate_denoised(t, v, x)


class NoiseSampling(ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """The schedule of Stable Diffusion, for predictions of the noise."""


class CogView3BaseModel(CogView3Model):
    """A UNet of CogView3-Base. A distilled one reads the strength of its guidance from `guidance` in its conditioning."""

    title = "CogView3-Base"

    def __init__(self, unet: CogView3Unet, device: torch.device, offload: torch.device):
        sampling = NoiseSampling()
        sampling.set_sigmas(unet.sigmas)
        super().__init__(unet, ModelType.EPS, sampling=sampling, device=device, offload=offload)
        if unet.is_distilled:
            self.unread = {name: text for name, text in self.unread.items() if name != "guidance"}

    def extra_conds(self, *, noise, cross_attn, guidance=GUIDANCE, **options) -> dict[str, comfy.conds.CONDRegular]:
        self.check_text(cross_attn, self.diffusion_model.config.cross_attention_dim)
        height, width = (side * LATENT_PX for side in noise.shape[2:])
        sizes = sizes_embedding(self.component, micro_conditions(options, width, height))
        conds = {"c_crossattn": cross_attn, "sizes": sizes}
        if self.component.is_distilled:
            conds["strength"] = strength_embedding(self.component, guidance)
        return {name: comfy.conds.CONDRegular(value) for name, value in conds.items()}

    def memory_required(self, input_shape, cond_shapes={}) -> int:  # noqa: B006, ComfyUI's signature
        job = self._job(input_shape, base.TOKENS)
        return unet_bytes(self.diffusion_model.config, self.component.dtype.itemsize, job)

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **conds):  # noqa: B006
        """x: [B, 4, h, w] noised latents at sigma t: [B]. Returns the denoised latents, [B, 4, h, w] float32."""
        self.warn_of_no_effect(transformer_options)
        unet = self.component_on(x.device)
        scaled = self.model_sampling.calculate_input(t, x)
        timestep = self.model_sampling.timestep(t).float()
        noise = predicted_noise(unet, scaled, timestep, text=c_crossattn.to(x.device, unet.dtype), **conds)
        return self.model_sampling.calculate_denoised(t, noise, x)


def dit_patcher(dit: CogView3, device: torch.device) -> ModelPatcher:
    """CogView3-Plus as what travels on a MODEL wire, to compute on a device."""
    return model_patcher(CogView3PlusModel, dit, device)


def unet_patcher(unet: CogView3Unet, device: torch.device) -> ModelPatcher:
    """A UNet of CogView3-Base as what travels on a MODEL wire, to compute on a device."""
    return model_patcher(CogView3BaseModel, unet, device)


def sample_plus(model: ModelPatcher, request: CogView3Request) -> torch.Tensor:
    """The steps of CogView3-Plus: ComfyUI's euler is DDIM on its schedule."""
    if request.denoise == 0:
        return request.latents.expand(request.batch, -1, -1, -1).clone()
    timesteps = timesteps_of(model.model.component.scheduler, request.steps, request.denoise)
    return run_sampler(
        comfy.samplers.CFGGuider(model),
        request,
        noise=_noise(model, request),
        sampler=comfy.samplers.sampler_object("euler"),
        sigmas=_sigmas_at(model, timesteps),
        latents=request.latents,
        mask=request.mask,
    )


def sample_base(model: ModelPatcher, request: CogView3BaseRequest) -> torch.Tensor:
    run = steps_of(model.model.component, request.steps)
    return run_sampler(
        comfy.samplers.CFGGuider(model),
        _with_strength(model, request),
        noise=_noise(model, request),
        sampler=comfy.samplers.sampler_object("euler"),
        sigmas=_sigmas_at(model, [step.timestep for step in run]),
    )


def relay(model: ModelPatcher, request: CogView3RelayRequest) -> torch.Tensor:
    unet = model.model.component
    run = steps_of(unet, request.steps, request.relay_steps)
    return run_sampler(
        comfy.samplers.CFGGuider(model),
        _with_strength(model, request),
        noise=_noise(model, request),
        sampler=RelaySampler(run, unet.space.normalise(request.low)),
        sigmas=_sigmas_at(model, [step.timestep for step in run]),
        latents=request.low,
    )


def _with_strength(model: ModelPatcher, request: CogView3BaseRequest | CogView3RelayRequest):
    """The request as a distilled UNet takes it: cfg is an input of the model, and there is one pass a step."""
    if not model.model.component.is_distilled:
        return request
    positive = [[text, options | {"guidance": request.cfg}] for text, options in request.positive]
    return replace(request, positive=positive, cfg=1.0)


def _noise(model: ModelPatcher, request: CogView3Request | CogView3BaseRequest | CogView3RelayRequest) -> torch.Tensor:
    channels, grid = len(model.model.component.space.mean), latent_grid(request.width, request.height)
    return initial_noise(image_seeds(request.seed, request.batch), channels, grid)


def _sigmas_at(model: ModelPatcher, timesteps: list[int]) -> torch.Tensor:
    """The sigmas of a run on the MODEL's own schedule: [steps + 1], the last one 0."""
    sigmas = model.get_model_object("model_sampling").sigmas
    return torch.cat([sigmas[timesteps], sigmas.new_zeros(1)]).cpu()
