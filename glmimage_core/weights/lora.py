"""LoRA files: read one, find the weight that each of its keys is for, lay it over the weights and take it off again.

read_lora   a safetensors file, with the alphas that its makers keep beside the weights
match       its tensors by the names of this model's layers, and what matches nothing
applied_loras   W + strength * alpha / rank * up @ down for the length of a with block
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from .linear import QuantizedLinear

# up and down of one layer, by maker: PEFT and diffusers, kohya's scripts, older diffusers
PAIRS = ((".lora_B.weight", ".lora_A.weight"), (".lora_up.weight", ".lora_down.weight"), (".lora.up.weight", ".lora.down.weight"))
PARTNERS = {one: other for up, down in PAIRS for one, other in ((up, down), (down, up))}
ALPHA = ".alpha"
# Other kinds of change that ComfyUI knows; they are matched here and applied there.
OTHER_SUFFIXES = (
    *(".dora_scale", ".diff", ".diff_b", ".set_weight", ".lora_mid.weight", ".reshape_weight"),
    *(".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".hada_t1", ".hada_t2"),
    *(".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2"),
    *(".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight", ".oft_blocks", ".rescale"),
)
SUFFIXES = (*(suffix for pair in PAIRS for suffix in pair), ALPHA, *OTHER_SUFFIXES)
DOTTED_PREFIXES = ("", "transformer.", "diffusion_model.", "vision_language_encoder.", "base_model.model.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lora_te_", "lora_te1_", "lycoris_")


class LoraError(ValueError):
    """What is wrong with a LoRA, without its name."""


class Match(NamedTuple):
    """tensors: by layer name and suffix. weights: how many weights they change. unmatched: the keys of other models."""

    tensors: dict[str, torch.Tensor]
    weights: int
    unmatched: list[str]


def read_lora(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file, with an alpha for each layer where the file or the config beside it states one.

    Raises ValueError for a file that is not safetensors, since reading a pickle can run code, and for PEFT's DoRA.
    """
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        raise ValueError(f"{file.name} is not a safetensors file; other formats can run code when read. Convert it first")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118, not a dict
        stated = _stated_config(file, metadata)
    except SafetensorError as error:
        raise ValueError(f"{file.name} is no safetensors file, or it is damaged ({error}); download it again") from error
    except (ValueError, AttributeError) as error:
        raise ValueError(f"the settings that come with {file.name} cannot be read ({error}); save the LoRA again") from error
    if dora := [key for key in tensors if ".lora_magnitude_vector" in key]:
        # PEFT divides by the norm of the changed weight, ComfyUI's formula for DoRA by that of the original one.
        raise ValueError(f"{file.name} is a DoRA of PEFT's kind ({dora[0]}), which cannot be applied; use a plain LoRA")
    if broken := [key for key, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]:
        raise ValueError(f"{file.name} has numbers that are not finite ({broken[0]}): its training failed; use another one")
    tensors = {key.replace(".default.weight", ".weight"): tensor for key, tensor in tensors.items()}  # an adapter's own name
    return tensors | _stated_alphas(stated, tensors)


def _stated_config(file: Path, metadata: dict[str, str]) -> dict:
    """r, lora_alpha and so on from diffusers' metadata, or from PEFT's adapter_config.json beside the file."""
    if "lora_adapter_metadata" in metadata:
        config = json.loads(metadata["lora_adapter_metadata"])
        return {key.removeprefix("transformer."): value for key, value in config.items()}
    beside = file.parent / "adapter_config.json"
    if file.stem == "adapter_model" and beside.is_file():
        return dict(json.loads(beside.read_text("utf-8")).items())
    return {}


def _stated_alphas(config: dict, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The alpha of each layer that has none of its own, as a tensor for the formula alpha / rank."""
    if config.get("lora_alpha") is None:
        return {}
    patterns = (config.get("alpha_pattern") or {}).items()
    stated = {}
    for key, tensor in tensors.items():
        if not key.endswith(PAIRS[0][1]):
            continue
        layer = key.removesuffix(PAIRS[0][1])
        own = next((alpha for name, alpha in patterns if re.fullmatch(rf"(.*\.)?({name})", layer)), config["lora_alpha"])
        rank = tensor.shape[0]
        stated[layer + ALPHA] = torch.tensor(float(own * math.sqrt(rank) if config.get("use_rslora") else own))
    return {key: alpha for key, alpha in stated.items() if key not in tensors}


def layer_of(key: str) -> str:
    """The layer that a key of a LoRA is for, by the name its maker gave it; the key itself where that cannot be told."""
    return key.removesuffix(next((suffix for suffix in SUFFIXES if key.endswith(suffix)), ""))


def match(lora: dict[str, torch.Tensor], model: torch.nn.Module) -> Match:
    """Find the layers of a model that a LoRA is for, whatever its maker put before their names.

    Raises LoraError when a layer is found and has another shape, since the LoRA is for a model of another size, and when
    half of a pair is missing.
    """
    parameters = model.named_parameters(remove_duplicate=False)
    weights = {key.removesuffix(".weight"): value for key, value in parameters if key.endswith(".weight")}
    names = {}
    for layer in weights:
        # The language model of the AR half is also trained on its own, where its names are shorter.
        for name in {layer, layer.replace("model.language_model.", "model."), layer.removeprefix("model.")}:
            names |= {prefix + name: layer for prefix in DOTTED_PREFIXES}
            names |= {prefix + name.replace(".", "_"): layer for prefix in FLAT_PREFIXES}
    tensors, unmatched = {}, []
    for key, tensor in lora.items():
        theirs = layer_of(key)
        if theirs in names:
            tensors[names[theirs] + key.removeprefix(theirs)] = tensor
        else:
            unmatched.append(key)
    for key in tensors:
        layer = layer_of(key)
        partner = PARTNERS.get(key.removeprefix(layer))
        if partner and layer + partner not in tensors:
            raise LoraError(f"the LoRA is not whole: it has {key}, but not its {partner.strip('.')}; download it again")
    for layer, (up, down) in _pairs(tensors).items():
        ours, theirs = list(weights[layer].shape), [up.shape[0], down.shape[1]]
        if up.ndim == 2 and theirs != ours:
            raise LoraError(f"the LoRA is for another model: it changes {layer} as {theirs}, which is {ours} here")
    changed = {layer_of(key) for key in tensors if not key.endswith(ALPHA)}
    return Match(tensors, len(changed), unmatched)


def _pairs(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(up [out, rank], down [rank, in]) by layer."""
    return {
        key.removesuffix(up): (tensor, tensors[key.removesuffix(up) + down])
        for key, tensor in tensors.items()
        for up, down in PAIRS
        if key.endswith(up) and key.removesuffix(up) + down in tensors
    }


@dataclass(frozen=True, eq=False)
class WeightedLora:
    """Matched tensors of a LoRA and the strength they are laid over the weights with."""

    tensors: dict[str, torch.Tensor]
    strength: float

    def __post_init__(self):
        """Raise ValueError for what is not a plain LoRA."""
        plain = {layer + suffix for layer in self.pairs for suffix in PARTNERS}
        if other := sorted(key for key in set(self.tensors) - plain if not key.endswith(ALPHA)):
            raise ValueError(f"the LoRA has {other[0]}, a kind of change that only ComfyUI applies")

    def delta(self, layer: str) -> torch.Tensor:
        """strength * alpha / rank * up @ down, [out, in] float32. Without an alpha it is the rank."""
        up, down = self.pairs[layer]
        alpha = self.tensors.get(layer + ALPHA)
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        return self.strength * scale * (up.float() @ down.float())

    @cached_property
    def pairs(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return _pairs(self.tensors)


@contextmanager
@torch.inference_mode()
def applied_loras(model: torch.nn.Module, loras: Sequence[WeightedLora]) -> Iterator[None]:
    """Have LoRAs over a model's weights for the length of a with block; afterwards the weights are as before, bit for bit.

    model may be a part of the one they are for: what they change elsewhere is left out.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {name: modules[name] for lora in loras for name in lora.pairs if name in modules}
    quantized = {name for name, layer in layers.items() if isinstance(layer, QuantizedLinear)}
    originals = {name: layer.weight if name in quantized else layer.weight.data for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            change = sum(lora.delta(name) for lora in loras if name in lora.pairs)
            changed = layer.weight.data.float() + change.to(layer.weight.device)
            if name in quantized:  # its codes do not go with `data`
                layer.weight = torch.nn.Parameter(layer.requantized(changed), requires_grad=False)
            else:
                layer.weight.data = changed.to(layer.weight.dtype)
        yield
    finally:
        for name, original in originals.items():
            if name in quantized:
                layers[name].weight = original
            else:
                layers[name].weight.data = original
