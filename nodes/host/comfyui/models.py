"""What the MODEL of every family has: a component behind ComfyUI's samplers, which work on normalised latents."""

import logging
from dataclasses import replace

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers

from ....glmimage_core.component import Component
from ....glmimage_core.vae import LatentSpace, check_channels
from . import patchers
from .background import sampled_alone
from .patchers import offload_device, streamable

log = logging.getLogger(__name__)


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


class OwnModelConfig(comfy.supported_models_base.BASE):
    """The configuration that ComfyUI's BaseModel wants. It keeps ComfyUI from building a model: ours is built already."""

    unet_config = {"disable_unet_model_creation": True}
    unet_extra_config = {}


class ComponentModel(comfy.model_base.BaseModel):
    """A component behind ComfyUI's samplers."""

    title: str  # the family's, for messages
    patches: frozenset[str] = frozenset()  # kinds of patches on a MODEL that this family's forward applies
    attention = False  # whether the attention that a node chose computes
    wrappers = False  # whether wrappers around the diffusion model run

    def __init__(
        self,
        component: Component,
        model_type: comfy.model_base.ModelType,
        *,
        sampling: torch.nn.Module,
        latent_format: comfy.latent_formats.LatentFormat,
        device: torch.device,
        offload: torch.device,
    ):
        config = OwnModelConfig(OwnModelConfig.unet_config)
        config.latent_format = latent_format
        config.manual_cast_dtype = streamable(component.model, device)
        super().__init__(config, model_type, device=offload)
        self.diffusion_model = component.model.requires_grad_(False)
        self.component = component.on(device, config.manual_cast_dtype)
        self.model_sampling = sampling
        self._warned: set[str] = set()

    def component_on(self, device: torch.device) -> Component:
        """The component as it computes now: a node may have put in a compiled model, another precision or another device."""
        return replace(self.component, model=self.diffusion_model, compute_dtype=self.manual_cast_dtype, device=device)

    def warn_of_no_effect(self, control: object, transformer_options: dict) -> None:
        """Warn, once for each, of what a node put on the MODEL or into the conditioning and this model does not apply."""
        if control is not None:
            self.warn_once("a ControlNet has no effect")
        for kind in set(transformer_options.get("patches", {})) - self.patches:
            self.warn_once(f"{kind} patches on the MODEL have no effect")
        for kind, blocks in transformer_options.get("patches_replace", {}).items():
            if blocks:
                self.warn_once(f"replaced {kind} blocks on the MODEL have no effect")
        if not self.attention and "optimized_attention_override" in transformer_options:
            self.warn_once("an attention that a node chose has no effect")
        if not self.wrappers and get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options):
            self.warn_once("a wrapper around the diffusion model, such as EasyCache's, has no effect")

    def warn_once(self, text: str) -> None:
        """Log a text about this model the first time that it is true."""
        if text not in self._warned:
            log.warning("%s: %s", self.title, text)
            self._warned.add(text)


def model_patcher(
    kind: type[ComponentModel], component: Component, device: torch.device, *, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """What travels on a MODEL wire for a component that computes on a device.

    disable_dynamic: without ComfyUI's streaming on demand.
    """
    offload = offload_device(device, model_management.unet_offload_device())
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else patchers.Patcher
    patcher = patcher_class(kind(component, device, offload), load_device=device, offload_device=offload)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "glm_image", sampled_alone)
    return patcher
