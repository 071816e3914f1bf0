"""Linear layers of one input as one product: their weights stand one after another in one memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.nn import Linear, Module, Parameter
from torch.nn.functional import linear

from .compiled import product
from .formats import inner_tensors
from .linear import QuantizedLinear


def side_by_side(layers: Sequence[Module], *, join: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> the outputs of several layers side by side.

    join: in one product, where the weights allow it. The parameters of the layers then are parts of the joined weight, so no
    weight is held twice. Layers that others have changed, and weights whose scales do not belong to rows, are
    called one by one.
    """
    if not (join and _can_be_joined(layers)):
        return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)
    with torch.inference_mode(False), torch.no_grad():
        weight = _join_weights(layers)
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    if isinstance(layers[0], QuantizedLinear):
        return lambda x: product(x, weight, None if bias is None else bias.to(x.dtype))
    return lambda x: linear(x, weight, bias)


def _can_be_joined(layers: Sequence[Module]) -> bool:
    if not all(isinstance(layer, Linear) and not _is_changed(layer) for layer in layers):
        return False
    kinds = {(type(layer).forward, layer.weight.dtype, layer.weight.device, layer.bias is None) for layer in layers}
    if len(kinds) > 1:
        return False
    if isinstance(layers[0], QuantizedLinear):
        forms = {replace(layer.weight._params, scale=None, orig_shape=()) for layer in layers}
        by_rows = (inner.shape[:1] == layer.weight.shape[:1] for layer in layers for inner in inner_tensors(layer.weight))
        return len(forms) == 1 and all(by_rows)
    return type(layers[0]).forward is Linear.forward and all(type(layer.weight.data) is torch.Tensor for layer in layers)


def _is_changed(layer: Linear) -> bool:
    """Whether calling a layer does more than its class says."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def _join_weights(layers: Sequence[Linear]) -> torch.Tensor:
    """One weight of all rows, [all rows, columns]. The layers' own become parts of it, if they are not yet."""
    weights = [layer.weight.data for layer in layers]
    wholes = []
    for parts in zip(*map(inner_tensors, weights), strict=True):  # codes and scales of quantized weights
        whole = _whole(parts)
        wholes.append(torch.cat(parts) if whole is None else whole)
    start = 0
    for layer, weight in zip(layers, weights, strict=True):
        rows = slice(start, start + len(weight))
        _move(layer.weight, [whole[rows] for whole in wholes])
        start = rows.stop
    if not isinstance(layers[0], QuantizedLinear):
        return wholes[0]
    codes, scale = wholes
    params = replace(weights[0]._params, scale=scale, orig_shape=(len(codes), weights[0].shape[1]))
    return type(weights[0])(codes, weights[0]._layout_cls, params)


def _move(parameter: Parameter, places: Sequence[torch.Tensor]) -> None:
    """Have a parameter, which others may hold, live in other places: one for a plain weight, or for codes and scales."""
    if len(places) == 1:
        (parameter.data,) = places
    else:
        parameter._qdata, scale = places
        parameter._params = replace(parameter._params, scale=scale)


def _whole(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The tensor that parts are of, if they follow one another in one memory."""
    first, rows = parts[0], 0
    for part in parts:
        same_memory = part.untyped_storage()._cdata == first.untyped_storage()._cdata and part.is_contiguous()
        if not same_memory or part.storage_offset() != first.storage_offset() + rows * first.stride(0):
            return None
        rows += len(part)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
