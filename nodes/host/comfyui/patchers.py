"""Our models as ComfyUI's memory manager wants them: layers it can stream and patch, inside a patcher it can evict."""

import comfy.model_management as model_management
import comfy.model_patcher
import comfy.ops
import torch

from ....glmimage_core.component import Component
from ....glmimage_core.weights.formats import dequantized
from ....glmimage_core.weights.linear import QuantizedLinear

LAYERS = ("Linear", "Embedding", "Conv2d", "LayerNorm", "GroupNorm")
# Layers whose weights the libraries read for themselves instead of calling the layer, so that they cannot be streamed.
READ_DIRECTLY = ("position_embedding", "quantize.embedding", "relative_attention_bias")

# The patcher that streams on demand, where this ComfyUI has one; a name that ComfyUI sets when it starts.
Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


class StreamedQuantizedLinear(QuantizedLinear, comfy.ops.manual_cast.Linear):
    """A quantized layer that ComfyUI streams, casts and patches. ComfyUI's own layers forget a patch on such a weight."""

    comfy_cast_weights = False  # set by the patcher while the weight is elsewhere

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() and (self.comfy_cast_weights or self.weight_function or self.bias_function):
            return self.forward_comfy_cast_weights(x)
        return super().forward(x)

    def convert_weight(self, weight: torch.Tensor, inplace: bool = False, **_options) -> torch.Tensor:
        """What ComfyUI adds a patch to."""
        return dequantized(weight)

    def set_weight(
        self, weight: torch.Tensor, inplace_update: bool = False, seed: int | None = None, return_weight: bool = False, **_options
    ) -> torch.Tensor | None:
        """What ComfyUI does with the sum."""
        weight = self.requantized(weight, seed or 0)
        if return_weight:
            return weight
        self.weight = torch.nn.Parameter(weight, requires_grad=False)


class Holder(torch.nn.Module):
    """A model on which ComfyUI can write `device`, which the libraries' models do not allow."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def get_dtype(self) -> torch.dtype:
        return self.model.dtype


class GlmImageArLanguage(Holder):
    """Named so in ComfyUI's log."""


class GlmImageArVision(Holder):
    """Named so in ComfyUI's log."""


class GlmImageGlyphEncoder(Holder):
    """Named so in ComfyUI's log."""


class T5Encoder(Holder):
    """Named so in ComfyUI's log."""


class VisionLanguageModel(Holder):
    """Named so in ComfyUI's log."""


HOLDERS = {
    "model": GlmImageGlyphEncoder,
    "language": GlmImageArLanguage,
    "vision": GlmImageArVision,
    "t5": T5Encoder,
    "vlm": VisionLanguageModel,
}
READ_BY_EACH_TOKEN = {"language": "the AR model", "vlm": "the vision-language model"}


class ManagedComponent:
    """A component on a socket of ours, with a patcher for each of its parts. ComfyUI finds them by `patcher` and `get_models`."""

    def __init__(self, component: Component, patchers: dict[str, comfy.model_patcher.ModelPatcher]):
        self.component = component
        self.patchers = patchers

    @property
    def patcher(self) -> comfy.model_patcher.ModelPatcher:
        """That of the first part."""
        return self.get_models()[0]

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        return list(self.patchers.values())

    def clone(self) -> "ManagedComponent":
        """The same model, to be patched differently."""
        return ManagedComponent(self.component, {part: patcher.clone() for part, patcher in self.patchers.items()})


def offload_device(device: torch.device, usual: torch.device) -> torch.device:
    """Where a model rests that computes on a device: the usual place, or the CPU for another device than the default one."""
    return usual if device == model_management.get_torch_device() else torch.device("cpu")


def managed(component: Component, device: torch.device) -> ManagedComponent:
    """A component that ComfyUI manages, computing on a device in a precision that it is good at."""
    rest = offload_device(device, model_management.text_encoder_offload_device())
    component = component.on(device, streamable(component.model, device))
    patchers = {}
    for part, model in component.parts.items():
        # Every token reads every weight, so they are brought to the device once and stay, where a step can be recorded.
        kind = comfy.model_patcher.ModelPatcher if part in READ_BY_EACH_TOKEN else Patcher
        patchers[part] = kind(HOLDERS[part](model), device, rest)
    return ManagedComponent(component, patchers)


def streamable(model: torch.nn.Module, device: torch.device) -> torch.dtype | None:
    """Give a model's layers ComfyUI's own classes, in place: they compute the same and can be streamed, cast and patched.

    Returns the precision to compute in where the device is not good at the weights' own, else None.
    """
    compute_dtype = model_management.unet_manual_cast(model.dtype, device, [torch.bfloat16, torch.float32])
    computing = compute_dtype or model.dtype
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, QuantizedLinear):
            layer.__class__ = StreamedQuantizedLinear
        if kind not in LAYERS or type(layer) is not getattr(torch.nn, kind) or name.endswith(READ_DIRECTLY):
            continue
        stored = layer.weight.dtype if layer.weight is not None else None
        cast = stored not in (None, computing)
        layer.__class__ = getattr(comfy.ops.manual_cast if cast else comfy.ops.disable_weight_init, kind)
        if isinstance(layer, torch.nn.Embedding):
            layer.bias = None  # which ComfyUI reads on every streamed layer
    if hasattr(model_management, "archive_model_dtypes"):
        model_management.archive_model_dtypes(model)
    return compute_dtype


def load(patcher: comfy.model_patcher.ModelPatcher, working_bytes: int) -> None:
    """Have a patcher's model on its device, as far as there is room beside the working memory."""
    model_management.load_models_gpu([patcher], memory_required=working_bytes)
    # What ComfyUI cannot stream, it leaves behind when only a part fits. It is small.
    bring_own_tensors(modules_with_own_tensors(patcher.model), patcher.load_device)


def modules_with_own_tensors(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Those that hold parameters or buffers themselves and that ComfyUI does not stream."""
    return [
        module
        for module in model.modules()
        if not hasattr(module, "comfy_cast_weights") and (module._parameters or module._buffers)
    ]


def bring_own_tensors(modules: list[torch.nn.Module], device: torch.device) -> None:
    """Move what these hold themselves, not what is below them, to a device."""
    for module in modules:
        module._apply(lambda tensor: tensor.to(device), recurse=False)


def is_dynamic(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether a patcher streams on demand: it brings layers when they are called and keeps those that fit."""
    return getattr(patcher, "is_dynamic", bool)()


def streamed_bytes(patcher: comfy.model_patcher.ModelPatcher, working_bytes: int) -> int:
    """How much of a loaded model is not on its device, so that it is brought there again in every pass."""
    if model_management.is_device_cpu(patcher.load_device):
        return 0
    if is_dynamic(patcher):  # counts what it keeps as free
        room = patcher.get_free_memory(patcher.load_device) + patcher.model.model_loaded_weight_memory
        return max(0, patcher.model_size() + working_bytes - room)
    return patcher.model_size() - patcher.loaded_size() if patcher.model.model_lowvram else 0
