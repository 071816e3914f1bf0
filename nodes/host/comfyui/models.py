"""What the MODEL of every family has: a component behind ComfyUI's samplers, which work on normalised latents."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers

from ....glmimage_core.component import Component
from ....glmimage_core.vae import LatentSpace, check_channels
from ....glmimage_core.weights.lora import states_other_scale
from . import patchers
from .background import sampled_alone
from .patchers import offload_device, streamable
from .progress import warn_on_node

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

    unet_config = {"disable_unet_model_creation": True, "model_channels": 0}  # FreeU asks for the latter before it patches
    unet_extra_config = {}


class DiffusersLoraNames(comfy.model_base.QwenImage, comfy.model_base.HunyuanDiT):
    """A model whose layers a LoRA may name as diffusers, PEFT and SimpleTuner do, for ComfyUI's LoRA loader.

    That loader tells by the class of a MODEL which names it understands beside ComfyUI's own: diffusers' for a QwenImage, PEFT's
    for a HunyuanDiT. It has no other way to be told. Nothing else comes from these classes: ComponentModel and its families
    define, or take from BaseModel, whatever these two define.
    """


class ComponentModel(DiffusersLoraNames):
    """A component behind ComfyUI's samplers."""

    title: str  # the family's, for messages
    # Entries of a conditioning that other families read, and what is to be said of each
    unread: Mapping[str, str] = {
        "reference_latents": "ReferenceLatent has no effect: this model edits no pictures",
        "guidance": "FluxGuidance has no effect; set cfg in the sampler",
    }
    lora_loader: str = ""  # the node that loads a LoRA of this family, if there is one
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
        comfy.model_base.BaseModel.__init__(self, config, model_type, device=offload)
        self.diffusion_model = component.model.requires_grad_(False)
        self.component = component.on(device, config.manual_cast_dtype)
        self.model_sampling = sampling
        self._warned: set[str] = set()

    def component_on(self, device: torch.device) -> Component:
        """The component as it computes now: a node may have put in a compiled model, another precision or another device."""
        return replace(self.component, model=self.diffusion_model, compute_dtype=self.manual_cast_dtype, device=device)

    def extra_conds_shapes(self, **options) -> dict[str, list]:
        """Of a conditioning, what takes memory beside the latents."""
        return {}

    def leave_out_unread(self, conds: Mapping[str, list[dict[str, Any]]]) -> None:
        """Warn of what nodes of other families put into the conditionings of a run, by side. Takes their ControlNets out.

        A ControlNet would compute for nothing, or fail for inputs that this model does not have.
        """
        entries = [entry for side in conds.values() for entry in side]
        controlled = [entry for entry in entries if entry.pop("control", None) is not None]
        if controlled:
            self.warn_once("a ControlNet has no effect")
        for name, advice in self.unread.items():
            if any(name in entry for entry in entries):
                self.warn_once(advice)

    def warn_of_lora_scale(self, metadata: Mapping[str, str] | None) -> None:
        """Warn where the metadata of a LoRA, which ComfyUI's loader does not read, says that it acts at another strength."""
        if metadata and states_other_scale(metadata):
            advice = self.lora_loader and f"; use {self.lora_loader}"
            self.warn_once(f"the alpha in a LoRA's metadata has no effect with ComfyUI's loader{advice}")

    def warn_of_no_effect(self, transformer_options: dict) -> None:
        """Warn, once for each, of what a node put on the MODEL and this model does not apply."""
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
        """Show a text about this model on the node that runs, and log it the first time that it is true."""
        warn_on_node(text)
        if text not in self._warned:
            log.warning("%s: %s", self.title, text)
            self._warned.add(text)


def sampled_with_warnings(executor, *arguments, **options):
    """A wrapper around a whole sampling of ComfyUI that says what of it has no effect."""
    guider = executor.class_obj
    model = guider.model_patcher.model
    model.leave_out_unread(guider.conds)
    model.warn_of_lora_scale(guider.model_patcher.get_attachment("lora_metadata"))
    return executor(*arguments, **options)


def model_patcher(
    kind: type[ComponentModel], component: Component, device: torch.device, *, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """What travels on a MODEL wire for a component that computes on a device.

    disable_dynamic: without ComfyUI's streaming on demand.
    """
    offload = offload_device(device, model_management.unet_offload_device())
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else patchers.Patcher
    patcher = patcher_class(kind(component, device, offload), load_device=device, offload_device=offload)
    for wrapper in (sampled_with_warnings, sampled_alone):
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "glm_image", wrapper)
    return patcher
