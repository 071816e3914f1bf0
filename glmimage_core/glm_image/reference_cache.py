"""Which references' keys and values are kept."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .dit import Dit, encode_conditions, velocity
from .kv_cache import LayerKeysValues, ReferenceLayer, WrittenLayer

if TYPE_CHECKING:
    from .references import Reference


REFERENCE_CACHE_BYTES = 4 * 2**30
"""Caches that the current run does not need are dropped beyond this; two of 1024 x 1024 pixels fit in bfloat16."""


def reference_cache(dit: Dit, references: Sequence["Reference"], on_device: bool = True) -> Sequence[ReferenceLayer] | None:
    """The keys and values of the references in order, by layer, ready to be read. None without references.

    Each reference is computed at most once as long as `dit.cached_references` holds it. It enters there when it is complete,
    so an interruption leaves nothing half done. What was used longest ago is dropped first. on_device: have them there for the
    whole run; otherwise they come layer by layer in every pass.
    """
    if not references:
        return None
    names = [dit.weights_key + reference.id for reference in references]
    for name, reference in zip(names, references, strict=True):
        layers = dit.cached_references.pop(name, None)
        if layers is None:
            layers = reference_keys_values(dit, reference)
        dit.cached_references[name] = layers  # at the end: used last
    _drop_oldest(dit.cached_references, set(names))
    layers = [ReferenceLayer(of_all) for of_all in zip(*(dit.cached_references[name] for name in names), strict=True)]
    return [layer.on(dit.device) for layer in layers] if on_device else layers


def _drop_oldest(kept: dict[str, list[LayerKeysValues]], needed: set[str]) -> None:
    """Drop what is not needed now, oldest first, until all that is kept fits in REFERENCE_CACHE_BYTES."""
    sizes = {name: sum(t.numel() * t.element_size() for pair in layers for t in pair) for name, layers in kept.items()}
    for name in [name for name in kept if name not in needed]:
        if sum(sizes[name] for name in kept) <= REFERENCE_CACHE_BYTES:
            return
        del kept[name]


def reference_keys_values(dit: Dit, reference: "Reference") -> list[LayerKeysValues]:
    """One pass of a reference through the DiT: t = 0, no text, its vision tokens as prior, its own size.

    Returns keys and values of each layer, on the CPU.
    """
    width, height = reference.width, reference.height
    no_text = torch.empty(1, 0, dit.model.config.text_embed_dim)
    conditions = encode_conditions(dit, no_text, width, height, 1, reference.vision_tokens[None])
    time = dit.model.embed_time(torch.zeros(1, device=dit.device), width, height, dit.dtype)
    cache = [WrittenLayer() for _ in dit.model.transformer_blocks]
    velocity(dit, dit.space.normalise(reference.latents.to(dit.device)), time, conditions, cache)
    return [layer.keys_values for layer in cache]
