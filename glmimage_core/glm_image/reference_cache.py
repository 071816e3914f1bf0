"""Each reference once through the DiT, and which references' keys and values are kept."""

from collections.abc import Sequence

import torch

from .dit import Dit, encode_conditions, velocity
from .kv_cache import LayerKeysValues, LayerKVCache, LayerKVWriter
from .references import Reference

REFERENCE_CACHE_BYTES = 4 * 2**30
"""References that the current run does not need are dropped beyond this: two of 1024 x 1024 pixels in bfloat16 fit."""


def reference_kv_caches(dit: Dit, references: Sequence[Reference], on_device: bool = True) -> Sequence[LayerKVCache] | None:
    """The keys and values of the references in order, one object a layer. None without references.

    Each reference is computed at most once as long as `dit.cached_references` holds it. It enters there when it is complete,
    so an interruption leaves nothing half done. The reference used longest ago is dropped first. on_device: copy all layers
    to the device for the whole run; otherwise they are copied there layer by layer in every pass.
    """
    if not references:
        return None
    cached = dit.cached_references
    names = [dit.weights_key + reference.id for reference in references]
    for name, reference in zip(names, references, strict=True):
        layers = cached.pop(name, None)
        if layers is None:
            layers = reference_keys_values(dit, reference)
        cached[name] = layers  # at the end: used last
    _drop_oldest(cached, set(names))
    layers = [LayerKVCache(of_all) for of_all in zip(*(cached[name] for name in names), strict=True)]
    return [layer.on(dit.device) for layer in layers] if on_device else layers


def _drop_oldest(cached: dict[str, list[LayerKeysValues]], needed: set[str]) -> None:
    """Drop references that are not needed now, oldest first, until all that are left fit in REFERENCE_CACHE_BYTES."""
    sizes = {name: sum(_bytes(tensor) for pair in layers for tensor in pair) for name, layers in cached.items()}
    for name in [name for name in cached if name not in needed]:
        if sum(sizes[name] for name in cached) <= REFERENCE_CACHE_BYTES:
            return
        del cached[name]


def _bytes(tensor: torch.Tensor) -> int:
    """What a tensor takes. PyTorch rounds pinned memory up to a power of two."""
    return 1 << (tensor.nbytes - 1).bit_length() if tensor.nbytes and tensor.is_pinned() else tensor.nbytes


def reference_keys_values(dit: Dit, reference: Reference) -> list[LayerKeysValues]:
    """One pass of a reference through the DiT: t = 0, no text, its vision tokens as prior, its own size.

    Returns keys and values of each layer, on the CPU. Source: diffusers' GLM-Image pipeline.
    """
    width, height = reference.width, reference.height
    no_text = torch.empty(1, 0, dit.model.config.text_embed_dim)
    conditions = encode_conditions(dit, no_text, width, height, batch=1, tokens=reference.vision_tokens[None])
    temb = dit.model.embed_time(torch.zeros(1, device=dit.device), width, height, dit.dtype)
    writers = [LayerKVWriter() for _ in dit.model.transformer_blocks]
    velocity(dit, dit.space.normalise(reference.latents.to(dit.device)), temb, conditions, kv_caches=writers)
    return [writer.keys_values for writer in writers]
