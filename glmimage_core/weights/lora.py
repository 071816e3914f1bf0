"""LoRA files: read one, match its keys to a model's layers, apply it to the weights and remove it again.

read_lora            the tensors of a safetensors file, with the alphas that some makers keep beside the weights
states_other_scale   whether a file's metadata says what a reader of its tensors alone does not know
match                these tensors under the names of a model's layers, and the keys that match nothing
applied_loras        W + strength * alpha / rank * up @ down, for as long as a with block runs
applied_loras_bytes  the memory that this takes
"""

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from ..json_text import parse_json
from .formats import dequantized, inner_tensors, is_pinned, map_inner_tensors
from .linear import QuantizedLinear
from .unreadable import unreadable

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
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # where diffusers puts PEFT's config in a file's metadata
PEFT_PREFIXES = ("base_model.model.", "transformer.")  # PEFT's own, and diffusers' for files that PEFT's config goes into
WRAPPERS = {
    *("base_model", "model", "module", "_orig_mod", "_fsdp_wrapped_module"),  # PEFT, DDP, torch.compile, FSDP
    *("pipe", "transformer", "dit", "unet", "diffusion_model", "vision_language_encoder", "text_encoder"),
}
"""What tools put in front of a layer's name, in any order, or between its parts."""
SPELLINGS = (
    (re.compile(r"\.lora_([AB])\.[^.]+\.weight$"), r".lora_\1.weight"),  # with the adapter's name
    (re.compile(r"\.lora_(A|B|up|down)$"), r".lora_\1.weight"),
    (re.compile(r"\.lora_linear_layer\.(up|down)\.weight$"), r".lora.\1.weight"),
    (re.compile(r"\.processor\.to_out_lora\.(up|down)\.weight$"), r".to_out.0.lora.\1.weight"),
    (re.compile(r"\.processor\.(to_\w+)_lora\.(up|down)\.weight$"), r".\1.lora.\2.weight"),
)
FUSED = "to_qkv"
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lora_te_", "lora_te1_", "lycoris_")

PATTERN_SECONDS = 0.5  # of processor time for the patterns of one file; those of a real file take a few milliseconds
PATTERN_CHARACTERS = 10_000  # a pattern of this length compiles in a tenth of a second

CPU = torch.device("cpu")


class LoraError(ValueError):
    """What is wrong with a LoRA, without its name."""


class Match(NamedTuple):
    """tensors: by layer name and suffix. weights: how many weights they change. unmatched: the keys of other models."""

    tensors: dict[str, torch.Tensor]
    weights: int
    unmatched: list[str]


def read_lora(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file, with an alpha for each layer where the file or the config beside it states one.

    Raises ValueError for a file that is not safetensors, since reading a pickle can run code, for a damaged one, and for PEFT's
    DoRA.
    """
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        raise ValueError(f"{file.name} is not a safetensors file; other formats can run code when read. Convert it first")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise unreadable(file, error) from error
    spelled = {_spelled(key): key for key in tensors}
    if len(spelled) < len(tensors):
        raise ValueError(f"{file.name} holds several adapters under other names; save each in a file of its own")
    tensors = {name: tensors[key] for name, key in spelled.items()}
    if dora := [key for key in tensors if ".lora_magnitude_vector" in key]:
        # PEFT divides by the norm of the changed weight, ComfyUI's formula for DoRA by that of the original one.
        raise ValueError(f"{file.name} is a DoRA of PEFT's kind ({dora[0]}), which cannot be applied; use a plain LoRA")
    if odd := [key for key, tensor in tensors.items() if not _has_lora_shape(key, tensor)]:
        tensor = tensors[odd[0]]
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{file.name} is not understood: {odd[0]} has the shape {list(tensor.shape)} and is {kind}")
    try:
        tensors = _config_alphas(_peft_config(file, metadata), tensors) | tensors
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"the settings that come with {file.name} cannot be read ({error}); save the LoRA again") from error
    if broken := [key for key, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]:
        raise ValueError(f"{file.name} has numbers that are not finite ({broken[0]}): its training failed; use another one")
    return tensors


def _has_lora_shape(key: str, tensor: torch.Tensor) -> bool:
    """Whether an alpha is one number, and up and down have rows and columns of numbers that are no codes."""
    if key.endswith(ALPHA):
        return tensor.numel() == 1
    return tensor.ndim >= 2 and tensor.numel() > 0 and tensor.is_floating_point() if key.endswith(tuple(PARTNERS)) else True


def _peft_config(file: Path, metadata: Mapping[str, str]) -> dict:
    """PEFT's settings (r, lora_alpha and so on): diffusers' metadata, or the adapter_config.json beside PEFT's own file."""
    if DIFFUSERS_CONFIG in metadata:
        config = parse_json(metadata[DIFFUSERS_CONFIG])
        return {key.removeprefix("transformer."): value for key, value in config.items()}
    config_file = file.parent / "adapter_config.json"
    if file.stem == "adapter_model" and config_file.is_file():
        return dict(parse_json(config_file.read_bytes()).items())
    return {}


def states_other_scale(metadata: Mapping[str, str]) -> bool:
    """Whether a file's metadata gives its layers an alpha that is not their rank, so that who ignores it applies another LoRA."""
    try:
        config = _peft_config(Path(), metadata)
    except (ValueError, AttributeError):
        return False  # it cannot be read, and so says nothing
    patterns = config.get("alpha_pattern") or config.get("rank_pattern")
    return config.get("lora_alpha") is not None and bool(
        patterns or config.get("use_rslora") or config["lora_alpha"] != config.get("r")
    )


def _config_alphas(config: Mapping, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The alpha that PEFT's config states for each layer, as a tensor for the formula alpha / rank."""
    if config.get("lora_alpha") is None:
        return {}
    _, down_suffix = PAIRS[0]
    ranks = {key.removesuffix(down_suffix): len(tensor) for key, tensor in tensors.items() if key.endswith(down_suffix)}
    layer_alphas = _match_patterns(config.get("alpha_pattern") or {}, ranks)
    alphas = {}
    for layer, rank in ranks.items():
        alpha = layer_alphas.get(layer, config["lora_alpha"])
        alphas[layer + ALPHA] = torch.tensor(float(alpha * math.sqrt(rank) if config.get("use_rslora") else alpha))
    return alphas


def _match_patterns(patterns: Mapping[str, float], layers: Sequence[str]) -> dict[str, float]:
    """The value of the first pattern that matches each layer; layers that no pattern matches are left out.

    As PEFT's get_pattern_key: a pattern matches a layer's whole name, or its end after a dot. Most are plain names; others are
    regular expressions, which anyone can write into a file. `regex` matches as `re` does and can stop a match that would take
    forever; transformers requires it. Raises ValueError for a broken pattern and for patterns that take too long.
    """
    import regex

    deadline = time.process_time() + PATTERN_SECONDS
    matchers = []
    for pattern, value in patterns.items():
        if re.fullmatch(r"[\w.-]+", pattern):
            matchers.append((f".{pattern}", None, value))
            continue
        if len(pattern) > PATTERN_CHARACTERS or time.process_time() > deadline:
            raise ValueError(f"alpha_pattern is too long, at {pattern[:40]!r}")
        try:
            matchers.append(("", regex.compile(rf"(.*\.)?({pattern})"), value))
        except regex.error as error:
            raise ValueError(f"alpha_pattern {pattern!r} is no regular expression: {error}") from error
    try:
        found = {layer: _first_match(matchers, layer, deadline) for layer in layers}
    except TimeoutError as error:
        raise ValueError("alpha_pattern takes too long to match; it should name layers") from error
    return {layer: value for layer, value in found.items() if value is not None}


def _first_match(matchers: Sequence[tuple], layer: str, deadline: float) -> float | None:
    """The value of the first matcher (ending, expression, value) that matches a layer. Raises TimeoutError at the deadline."""
    prefix = next((prefix for prefix in PEFT_PREFIXES if layer.startswith(prefix)), "")
    dotted, names = f".{layer}", {layer, layer.removeprefix(prefix)}  # PEFT itself sees the name without the prefix
    for ending, expression, value in matchers:
        left = deadline - time.process_time()
        if left <= 0:
            raise TimeoutError
        if expression is None:
            matches = dotted.endswith(ending)
        else:
            matches = any(expression.fullmatch(name, timeout=left) for name in names)
        if matches:
            return value
    return None


def layer_of(key: str) -> str:
    """The layer that a key of a LoRA is for, by the name its maker gave it; the key itself where that cannot be told."""
    return key.removesuffix(next((suffix for suffix in SUFFIXES if key.endswith(suffix)), ""))


def match(lora: Mapping[str, torch.Tensor], model: torch.nn.Module) -> Match:
    """Map a LoRA's keys to the model's layers, ignoring the prefixes that different tools add.

    Raises LoraError for a layer of another shape, since the LoRA is for a model of another size, and for half a pair.
    """
    parameters = model.named_parameters(remove_duplicate=False)
    weights = {key.removesuffix(".weight"): value for key, value in parameters if key.endswith(".weight")}
    layers, flat = {}, {}  # by each name that a tool may give them, without what it puts in front
    for layer in weights:
        # The language model inside a vision-language model is also trained on its own, where its names are shorter.
        for name in {layer, layer.replace("model.language_model.", "model."), layer.removeprefix("model.")}:
            layers[_without_wrappers(name)] = layer
            flat |= {prefix + name.replace(".", "_"): layer for prefix in FLAT_PREFIXES}
    tensors, unmatched = {}, []
    for key, tensor in _apart(lora).items():
        name = layer_of(key)
        layer = flat.get(name) or layers.get(_without_wrappers(name))
        if layer is None:
            unmatched.append(key)
        else:
            tensors[layer + key.removeprefix(name)] = _as_matrix(tensor, weights[layer])
    for key in tensors:
        layer = layer_of(key)
        partner = PARTNERS.get(key.removeprefix(layer))
        if partner and layer + partner not in tensors:
            raise LoraError(f"the LoRA is not whole: it has {key}, but not its {partner.strip('.')}")
    for layer, (up, down) in _pairs(tensors).items():
        if up.shape[1] != down.shape[0]:
            raise LoraError(
                f"the LoRA does not fit together: of {layer}, one half has rank {up.shape[1]} and the other {down.shape[0]}"
            )
        layer_shape, lora_shape = list(weights[layer].shape), [up.shape[0], down.shape[1]]
        if up.ndim == 2 and lora_shape != layer_shape:
            raise LoraError(f"the LoRA is for another model: it changes {layer} as {lora_shape}, which is {layer_shape} here")
    changed = {layer_of(key) for key in tensors if not key.endswith(ALPHA)}
    return Match(tensors, len(changed), unmatched)


def _spelled(key: str) -> str:
    """A key with its ending as PAIRS has it."""
    for spelling, own in SPELLINGS:
        key = spelling.sub(own, key)
    return key


def _without_wrappers(name: str) -> str:
    """A layer's name without the parts that tools add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _apart(lora: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without layers that were fused: queries, keys and values share `down`, and `up` has their rows in this order."""
    apart = {}
    for key, tensor in lora.items():
        layer = layer_of(key)
        suffix = key.removeprefix(layer)
        if not layer.endswith(FUSED) or suffix not in (*PARTNERS, ALPHA):
            apart[key] = tensor
            continue
        is_up = any(suffix == up for up, _ in PAIRS)
        for kind, part in zip("qkv", tensor.chunk(3) if is_up else (tensor,) * 3, strict=False):
            apart[layer.removesuffix(FUSED) + f"to_{kind}{suffix}"] = part
    return apart


def _as_matrix(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A convolution of 1 x 1, as some write what changes a linear layer, as the matrix that it is."""
    return tensor.flatten(1) if weight.ndim == 2 and tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def _pairs(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(up [out, rank], down [rank, in]) by layer."""
    return {
        key.removesuffix(up): (tensor, tensors[key.removesuffix(up) + down])
        for key, tensor in tensors.items()
        for up, down in PAIRS
        if key.endswith(up) and key.removesuffix(up) + down in tensors
    }


@dataclass(frozen=True, eq=False)
class WeightedLora:
    """The matched tensors of a LoRA and its strength."""

    tensors: dict[str, torch.Tensor]
    strength: float

    def __post_init__(self):
        """Raise ValueError for a LoRA that is not plain: up and down matrices with an alpha."""
        plain = {layer + suffix for layer, (up, _) in self.pairs.items() if up.ndim == 2 for suffix in (*PARTNERS, ALPHA)}
        if other := sorted(key for key in set(self.tensors) - plain if not key.endswith(ALPHA)):
            raise ValueError(f"the LoRA has {other[0]}, a kind of change that only ComfyUI applies")

    def delta(self, layer: str, device: torch.device = CPU) -> torch.Tensor:
        """strength * alpha / rank * up @ down, [out, in] float32, computed on a device. A missing alpha equals the rank."""
        up, down = (half.to(device).float() for half in self.pairs[layer])
        alpha = self.tensors.get(layer + ALPHA)
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        return (up @ down).mul_(self.strength * scale)

    @cached_property
    def pairs(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return _pairs(self.tensors)


@contextmanager
@torch.inference_mode()
def applied_loras(model: torch.nn.Module, loras: Sequence[WeightedLora], *, offload_device: torch.device = CPU) -> Iterator[None]:
    """Apply LoRAs to a model's weights for as long as a with block runs; afterwards the weights are as before, bit for bit.

    model may be a part of the model that the LoRAs were matched to: layers outside of it are left out.

    The original weights wait on `offload_device`, so that a device holds each weight once. Weights that lie on `offload_device`
    already have no second place: there, originals and changed weights are in memory together. `applied_loras_bytes` counts both.
    """
    with ExitStack() as originals:
        for name, layer in _changed_layers(model, loras).items():
            # The way back is registered before the change, so that an interrupt finds it at any time.
            if layer.weight.device == offload_device:
                # Assigning to `data` would leave the codes of a QuantizedTensor in place.
                owner, attribute = (layer, "weight") if _is_quantized(layer) else (layer.weight, "data")
                originals.callback(setattr, owner, attribute, getattr(owner, attribute))
                changed = _pinned_like(layer.weight, _changed_weight(layer, name, loras))
                setattr(owner, attribute, torch.nn.Parameter(changed, requires_grad=False) if owner is layer else changed)
            else:
                original = map_inner_tensors(lambda tensor: tensor.to(offload_device, copy=True), layer.weight)
                originals.callback(_overwrite, layer.weight, original)
                _overwrite(layer.weight, _changed_weight(layer, name, loras))
        yield


def applied_loras_bytes(
    model: torch.nn.Module, loras: Sequence[WeightedLora], device: torch.device, *, offload_device: torch.device = CPU
) -> int:
    """Bytes that `applied_loras` needs on a device beside the weights of a model.

    On any other device than `offload_device` they are free again when the with block begins.
    """
    layers = _changed_layers(model, loras).values()
    # float32 tensors of a weight's size: the delta and the weight; dequantizing makes one more for a moment.
    changing = max((layer.weight.numel() * 4 * (3 if _is_quantized(layer) else 2) for layer in layers), default=0)
    if device != offload_device:
        return changing
    return changing + sum(tensor.nbytes for layer in layers for tensor in inner_tensors(layer.weight))


def _changed_layers(model: torch.nn.Module, loras: Sequence[WeightedLora]) -> dict[str, torch.nn.Module]:
    """The layers of a model that LoRAs change, by name."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {name: modules[name] for lora in loras for name in lora.pairs if name in modules}


def _changed_weight(layer: torch.nn.Module, name: str, loras: Sequence[WeightedLora]) -> torch.Tensor:
    """W plus the deltas of all LoRAs, added in float32, in the format and dtype of W."""
    first, *others = (lora for lora in loras if name in lora.pairs)
    changed = first.delta(name, layer.weight.device)
    for lora in others:
        changed += lora.delta(name, layer.weight.device)
    if _is_quantized(layer):
        changed += dequantized(layer.weight.data.float())
        return layer.requantized(changed)
    changed += layer.weight.data
    return changed.to(layer.weight.dtype)


def _is_quantized(layer: torch.nn.Module) -> bool:
    return isinstance(layer, QuantizedLinear)


def _pinned_like(original: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in pinned memory if the original is: a streamed block is copied from there while another one computes."""
    return map_inner_tensors(torch.Tensor.pin_memory, tensor) if is_pinned(original) else tensor


def _overwrite(weight: torch.Tensor, source: torch.Tensor) -> None:
    """Copy another tensor of the same format into a weight's own memory."""
    for target, inner in zip(inner_tensors(weight), inner_tensors(source), strict=True):
        target.copy_(inner)
