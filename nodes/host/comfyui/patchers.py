"""Components as ComfyUI's memory manager wants them: layers that it can stream and patch, in a patcher that it can evict."""

import comfy.model_management as model_management
import comfy.model_patcher
import comfy.ops
import torch

from ....glmimage_core.component import Component
from ....glmimage_core.weights.formats import dequantized
from ....glmimage_core.weights.linear import QuantizedLinear

LAYERS = ("Linear", "Embedding", "Conv2d", "LayerNorm", "GroupNorm")
# Layers that cannot be streamed: the libraries read their weights directly instead of calling the layer.
READ_DIRECTLY = ("position_embedding", "quantize.embedding", "relative_attention_bias")

# The patcher that streams on demand, if this ComfyUI has one. ComfyUI sets the name when it starts.
Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


class StreamedQuantizedLinear(QuantizedLinear, comfy.ops.manual_cast.Linear):
    """A quantized layer that ComfyUI streams, casts and patches. ComfyUI's own layers forget a patch on such a weight."""

    comfy_cast_weights = False  # the patcher sets it while the weight is not on the device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() and (self.comfy_cast_weights or self.weight_function or self.bias_function):
            return self.forward_comfy_cast_weights(x)
        return super().forward(x)

    def convert_weight(self, weight: torch.Tensor, inplace: bool = False, **_options) -> torch.Tensor:
        """The weight that ComfyUI adds a patch to."""
        return dequantized(weight)

    def set_weight(
        self, weight: torch.Tensor, inplace_update: bool = False, seed: int | None = None, return_weight: bool = False, **_options
    ) -> torch.Tensor | None:
        """Store, or return, a weight that ComfyUI has patched."""
        weight = self.requantized(weight, seed or 0)
        if return_weight:
            return weight
        self.weight = torch.nn.Parameter(weight, requires_grad=False)


class Holder(torch.nn.Module):
    """A module around a model. ComfyUI sets `device` on it, which is a read-only property of the libraries' models."""

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
    """A component on one of our sockets, with a patcher for each of its parts.

    ComfyUI finds the patchers by `patcher` and `get_models`.
    """

    def __init__(self, component: Component, patchers: dict[str, comfy.model_patcher.ModelPatcher]):
        self.component = component
        self.patchers = patchers

    @property
    def patcher(self) -> comfy.model_patcher.ModelPatcher:
        """The first part's patcher."""
        return self.get_models()[0]

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        return list(self.patchers.values())

    def clone(self) -> "ManagedComponent":
        """The same model with patchers of its own, for other patches."""
        return ManagedComponent(self.component, {part: patcher.clone() for part, patcher in self.patchers.items()})


def offload_device(device: torch.device, usual: torch.device) -> torch.device:
    """Where the weights of an idle model are: the usual place, or the CPU if the model computes on a device of its own."""
    return usual if device == model_management.get_torch_device() else torch.device("cpu")


def managed(component: Component, device: torch.device) -> ManagedComponent:
    """A component that ComfyUI manages, computing on a device in a precision that the device supports well."""
    rest = offload_device(device, model_management.text_encoder_offload_device())
    component = component.on(device, streamable(component.model, device))
    patchers = {}
    for part, model in component.parts.items():
        # Every token reads every weight. So these are loaded once and stay on the device, where a CUDA graph can record a step.
        kind = comfy.model_patcher.ModelPatcher if part in READ_BY_EACH_TOKEN else Patcher
        patchers[part] = kind(HOLDERS[part](model), device, rest)
    return ManagedComponent(component, patchers)


def streamable(model: torch.nn.Module, device: torch.device) -> torch.dtype | None:
    """Give a model's layers ComfyUI's own classes, in place. They compute the same and can be streamed, cast and patched.

    Returns the precision to compute in, or None if the device supports the weights' own precision well.
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
            layer.bias = None  # ComfyUI reads the bias of every streamed layer
    if hasattr(model_management, "archive_model_dtypes"):
        model_management.archive_model_dtypes(model)
    return compute_dtype


def load(patcher: comfy.model_patcher.ModelPatcher, working_bytes: int) -> None:
    """Load as much of a patcher's model to its device as fits beside the working memory."""
    model_management.load_models_gpu([patcher], memory_required=working_bytes)
    # If only a part fits, ComfyUI leaves behind the tensors that it cannot stream. They are small.
    bring_own_tensors(modules_with_own_tensors(patcher.model), patcher.load_device)


def modules_with_own_tensors(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that have parameters or buffers of their own and that ComfyUI does not stream."""
    return [
        module
        for module in model.modules()
        if not hasattr(module, "comfy_cast_weights") and (module._parameters or module._buffers)
    ]


def bring_own_tensors(modules: list[torch.nn.Module], device: torch.device) -> None:
    """Move the modules' own tensors, not those of their submodules, to a device."""
    for module in modules:
        module._apply(lambda tensor: tensor.to(device), recurse=False)


def is_dynamic(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether a patcher streams on demand: it loads layers when they are called and keeps those that fit."""
    return getattr(patcher, "is_dynamic", bool)()


def streamed_bytes(patcher: comfy.model_patcher.ModelPatcher, working_bytes: int) -> int:
    """Bytes of a loaded model that are not on its device, so that every pass copies them there again."""
    if model_management.is_device_cpu(patcher.load_device):
        return 0
    if is_dynamic(patcher):  # its free memory includes the weights it keeps there
        room = patcher.get_free_memory(patcher.load_device) + patcher.model.model_loaded_weight_memory
        return max(0, patcher.model_size() + working_bytes - room)
    return patcher.model_size() - patcher.loaded_size() if patcher.model.model_lowvram else 0
