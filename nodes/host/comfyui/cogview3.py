"""CogView3-Plus and CogView3-Base as a MODEL: what ComfyUI's samplers and schedulers expect of one."""

from collections.abc import Sequence
from dataclasses import replace

import comfy.conds
import comfy.model_base
import comfy.model_management as model_management
import comfy.model_sampling
import torch
from comfy.model_base import ModelType
from comfy.model_sampling import ModelSamplingDiscrete
from comfy.patcher_extension import WrappersMP

from ....glmimage_core.cogview3 import base as cogview3_base
from ....glmimage_core.cogview3.base import GUIDANCE, CogView3Unet, predicted_noise, sizes_embedding, strength_embedding
from ....glmimage_core.cogview3.memory import cogview3_bytes, unet_bytes
from ....glmimage_core.cogview3.plus import CogView3, velocity
from ....glmimage_core.cogview3.text import TOKENS
from ....glmimage_core.component import Component
from ....glmimage_core.diffusion import LATENT_PX
from ....glmimage_core.placement.prediction import Job
from ..requests import micro_conditions
from .background import sampled_alone
from .glm_image import ModelConfig, NormalisedLatents
from .patchers import Patcher, bring_own_tensors, modules_with_own_tensors, offload_device, streamable

NO_SIGNAL = 4.8973451890853435e-08  # what ComfyUI has for none, at the start of a schedule: its sigmas are finite


class ModelSampling(ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The trained schedule. ComfyUI's scheduler `simple` takes the reference's steps of it where their number divides 1000."""

    def __init__(self, alphas_cumprod: torch.Tensor):
        super().__init__()
        alphas = alphas_cumprod.double().clone()
        alphas[-1] = min(NO_SIGNAL, alphas[-2].item() / 2)
        self.set_sigmas(((1 - alphas) / alphas).sqrt().float())


class CogView3ModelBase(comfy.model_base.BaseModel):
    """A painting component behind ComfyUI's samplers. Its conditioning comes from CogView3 Encode Prompt."""

    def __init__(
        self, dit: Component, sampling: ModelSamplingDiscrete, model_type: ModelType, device: torch.device, offload: torch.device
    ):
        config = ModelConfig(ModelConfig.unet_config)
        config.latent_format = NormalisedLatents(dit.space)
        config.manual_cast_dtype = streamable(dit.model, device)
        super().__init__(config, model_type, device=offload)
        self.diffusion_model = dit.model.requires_grad_(False)
        self.dit = dit.on(device, config.manual_cast_dtype)
        self._holders = modules_with_own_tensors(dit.model)
        self.model_sampling = sampling

    def _on_device(self, device: torch.device) -> Component:
        """The component with its weights where a pass computes, and in its precision."""
        bring_own_tensors(self._holders, device)
        return replace(self.dit, model=self.diffusion_model, compute_dtype=self.manual_cast_dtype, device=device)

    @staticmethod
    def _job(input_shape: Sequence[int], tokens: int) -> Job:
        """One pass of input_shape [B, C, height / 8, width / 8]."""
        batch, *_, height, width = input_shape
        return Job(width * LATENT_PX, height * LATENT_PX, batch, glyph_tokens=tokens, guided=False)


class CogView3Model(CogView3ModelBase):
    """The DiT of CogView3-Plus."""

    def __init__(self, dit: CogView3, device: torch.device, offload: torch.device):
        super().__init__(dit, ModelSampling(dit.scheduler.alphas_cumprod), ModelType.V_PREDICTION, device, offload)

    def extra_conds(self, *, noise, cross_attn, **options) -> dict[str, comfy.conds.CONDRegular]:
        height, width = (side * LATENT_PX for side in noise.shape[2:])
        sizes = zip(("original_size", "crop_coords", "target_size"), micro_conditions(options, width, height), strict=True)
        conds = {name: comfy.conds.CONDRegular(torch.tensor([size], dtype=torch.float32)) for name, size in sizes}
        return conds | {"c_crossattn": comfy.conds.CONDRegular(cross_attn)}

    def memory_required(self, input_shape, cond_shapes={}) -> int:  # noqa: B006, ComfyUI's signature
        return cogview3_bytes(self.diffusion_model.config, self.dit.dtype.itemsize, self._job(input_shape, TOKENS))

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **sizes):  # noqa: B006
        """x: [B, 16, h, w] noised latents at sigma t: [B]. Returns the denoised latents, [B, 16, h, w] float32."""
        dit = self._on_device(x.device)
        scaled = self.model_sampling.calculate_input(t, x)
        text = c_crossattn.to(x.device, dit.dtype)
        v = velocity(dit, scaled, self.model_sampling.timestep(t).float(), text=text, **sizes)
        return self.model_sampling.calculate_denoised(t, v, x)


class NoiseSampling(ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """The schedule of Stable Diffusion, which ComfyUI has."""


class CogView3BaseModel(CogView3ModelBase):
    """A UNet of CogView3-Base. A distilled one is told how strong its guidance is by `guidance` in its conditioning."""

    def __init__(self, unet: CogView3Unet, device: torch.device, offload: torch.device):
        sampling = NoiseSampling()
        sampling.set_sigmas(unet.sigmas)
        super().__init__(unet, sampling, ModelType.EPS, device, offload)

    def extra_conds(self, *, noise, cross_attn, guidance=GUIDANCE, **options) -> dict[str, comfy.conds.CONDRegular]:
        height, width = (side * LATENT_PX for side in noise.shape[2:])
        sizes = sizes_embedding(self.dit, micro_conditions(options, width, height))
        conds = {"c_crossattn": cross_attn, "sizes": sizes}
        if self.dit.is_distilled:
            conds["strength"] = strength_embedding(self.dit, guidance)
        return {name: comfy.conds.CONDRegular(value) for name, value in conds.items()}

    def memory_required(self, input_shape, cond_shapes={}) -> int:  # noqa: B006, ComfyUI's signature
        job = self._job(input_shape, cogview3_base.TOKENS)
        return unet_bytes(self.diffusion_model.config, self.dit.dtype.itemsize, job)

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **conds):  # noqa: B006
        """x: [B, 4, h, w] noised latents at sigma t: [B]. Returns the denoised latents, [B, 4, h, w] float32."""
        unet = self._on_device(x.device)
        scaled = self.model_sampling.calculate_input(t, x)
        timesteps = self.model_sampling.timestep(t).float()
        noise = predicted_noise(unet, scaled, timesteps, text=c_crossattn.to(x.device, unet.dtype), **conds)
        return self.model_sampling.calculate_denoised(t, noise, x)


def cogview3_patcher(component: CogView3 | CogView3Unet, device: torch.device) -> comfy.model_patcher.ModelPatcher:
    """CogView3-Plus or a UNet of CogView3-Base as what travels on a MODEL wire, to compute on a device."""
    rest = offload_device(device, model_management.unet_offload_device())
    kind = CogView3Model if isinstance(component, CogView3) else CogView3BaseModel
    patcher = Patcher(kind(component, device, rest), load_device=device, offload_device=rest)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "glm_image", sampled_alone)
    return patcher
