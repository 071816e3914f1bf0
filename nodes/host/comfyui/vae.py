"""The VAE of every family as what travels on a VAE wire: ComfyUI's own class around the checkpoint's model."""

import comfy.model_management as model_management
import comfy.sd
import torch

from ....glmimage_core.checkpoints.header import CONFIG_TENSOR, config_tensor
from ....glmimage_core.diffusion import LATENT_PX
from ....glmimage_core.glm_image.files.single_file import config_to_carry
from ....glmimage_core.vae import Vae, vae_decode_bytes, vae_encode_bytes
from .background import at_work
from .patchers import Holder, Patcher, offload_device, streamable


class VaeModel(Holder):
    """[B, 3, H, W] in -1..1 to latents in the VAE's space and back, with the methods that ComfyUI calls."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.encode(pixels).latent_dist.mode()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.model.decode(latents, return_dict=False)[0]


class ComponentVae(comfy.sd.VAE):
    """A ComfyUI VAE around a Vae component.

    The AutoencoderKL that ComfyUI can build is narrower than GLM-Image's. So this is built as ComfyUI's pixel-space stand-in,
    which costs nothing and has every default of the installed version, and then gets the component's model.
    """

    def __init__(self, vae: Vae, device: torch.device | None = None):
        """device: the device that computes; ComfyUI's device for VAEs by default."""
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, device=device, dtype=vae.model.dtype)
        compute_dtype = streamable(vae.model, self.device)
        self.component = vae.on(self.device, compute_dtype)
        self.first_stage_model = VaeModel(vae.model)
        self.vae_dtype = self.component.dtype
        self.latent_channels = len(vae.space.mean)
        self.downscale_ratio = self.upscale_ratio = LATENT_PX
        self.disable_offload = False
        self.size = None
        config = vae.model.config  # the lambdas must not refer to self, or it would keep itself alive
        self.memory_used_encode = lambda shape, dtype: vae_encode_bytes(config, dtype.itemsize, shape[3], shape[2])
        self.memory_used_decode = lambda shape, dtype: vae_decode_bytes(
            config, dtype.itemsize, shape[3] * LATENT_PX, shape[2] * LATENT_PX
        )
        rest = offload_device(self.device, model_management.vae_offload_device())
        self.patcher = Patcher(self.first_stage_model, load_device=self.device, offload_device=rest)

    def get_sd(self) -> dict[str, torch.Tensor]:
        """What VAESave writes: the weights, and the config without which a VAE of other sizes does not load again."""
        return super().get_sd() | {f"model.{CONFIG_TENSOR}": config_tensor(config_to_carry(self.component))}

    def encode(self, *arguments, **options):
        with at_work(self.patcher):
            return super().encode(*arguments, **options)

    def encode_tiled(self, *arguments, **options):
        with at_work(self.patcher):
            return super().encode_tiled(*arguments, **options)

    def decode(self, *arguments, **options):
        with at_work(self.patcher):
            return super().decode(*arguments, **options)

    def decode_tiled(self, *arguments, **options):
        with at_work(self.patcher):
            return super().decode_tiled(*arguments, **options)
