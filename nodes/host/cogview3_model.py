"""CogView3-Plus as a MODEL: what ComfyUI's samplers and schedulers expect of one."""

from dataclasses import replace

import comfy.conds
import comfy.model_base
import comfy.model_management as model_management
import comfy.model_sampling
import torch

from ...glmimage_core import memory
from ...glmimage_core.cogview3 import TOKENS, CogView3, velocity
from ...glmimage_core.geometry import LATENT_PX
from . import micro_conditions_of
from .dit_model import ModelConfig, NormalisedLatents
from .patchers import Patcher, bring_own_tensors, modules_with_own_tensors, streamable

NO_SIGNAL = 4.8973451890853435e-08  # what ComfyUI has for none, at the start of a schedule: its sigmas are finite


class ModelSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The trained schedule. ComfyUI's scheduler `simple` takes the reference's steps of it where their number divides 1000."""

    def __init__(self, alphas_cumprod: torch.Tensor):
        super().__init__()
        alphas = alphas_cumprod.double().clone()
        alphas[-1] = min(NO_SIGNAL, alphas[-2].item() / 2)
        self.set_sigmas(((1 - alphas) / alphas).sqrt().float())


class CogView3Model(comfy.model_base.BaseModel):
    """The DiT behind ComfyUI's samplers. Its conditioning comes from CogView3-Plus Encode Prompt."""

    def __init__(self, dit: CogView3, device: torch.device, offload_device: torch.device):
        config = ModelConfig(ModelConfig.unet_config)
        config.latent_format = NormalisedLatents(dit.space)
        config.manual_cast_dtype = streamable(dit.model, device)
        super().__init__(config, comfy.model_base.ModelType.V_PREDICTION, device=offload_device)
        self.diffusion_model = dit.model.requires_grad_(False)
        self.dit = dit.on(device, config.manual_cast_dtype)
        self._holders = modules_with_own_tensors(dit.model)
        self.model_sampling = ModelSampling(dit.scheduler.alphas_cumprod)

    def extra_conds(self, *, noise, cross_attn, **options) -> dict[str, comfy.conds.CONDRegular]:
        height, width = (side * LATENT_PX for side in noise.shape[2:])
        sizes = zip(("original_size", "crop_coords", "target_size"), micro_conditions_of(options, width, height), strict=True)
        conds = {name: comfy.conds.CONDRegular(torch.tensor([size], dtype=torch.float32)) for name, size in sizes}
        return conds | {"c_crossattn": comfy.conds.CONDRegular(cross_attn)}

    def memory_required(self, input_shape, cond_shapes={}) -> int:  # noqa: B006, ComfyUI's signature
        """Bytes of one pass of input_shape [B, 16, height / 8, width / 8]."""
        batch, *_, height, width = input_shape
        job = memory.Job(width * LATENT_PX, height * LATENT_PX, batch, glyph_tokens=TOKENS, guided=False)
        return memory.cogview3_bytes(self.diffusion_model.config, self.dit.dtype.itemsize, job)

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **sizes):  # noqa: B006
        """x: [B, 16, h, w] noised latents at sigma t: [B]. Returns the denoised latents, [B, 16, h, w] float32."""
        bring_own_tensors(self._holders, x.device)
        dit = replace(self.dit, model=self.diffusion_model, compute_dtype=self.manual_cast_dtype, device=x.device)
        scaled = self.model_sampling.calculate_input(t, x)
        v = velocity(dit, scaled, self.model_sampling.timestep(t).float(), c_crossattn.to(x.device, dit.dtype), sizes)
        return self.model_sampling.calculate_denoised(t, v, x)


def cogview3_patcher(dit: CogView3) -> comfy.model_patcher.ModelPatcher:
    """CogView3-Plus as what travels on a MODEL wire."""
    device, offload_device = model_management.get_torch_device(), model_management.unet_offload_device()
    return Patcher(CogView3Model(dit, device, offload_device), load_device=device, offload_device=offload_device)
