"""Integers whose values are known although they are on the meta device: they came from the CPU, and decide shapes.

Each such tensor has the attribute `followed`, its values on the CPU, where every operation on it is repeated.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

MOST = 2**16  # numbers of a tensor that is followed


def on_device(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for one on a GPU."""
    return tensor.device.type == "meta"


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors of an operation's arguments or results, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def follow(func, args: tuple, kwargs: dict, out: Any) -> Any:
    """Remember the values of what an operation gives whose inputs are all followed. Returns what it gives.

    out: that, or None where its shape depends on these values.
    """
    if not all(map(may_be_followed, tensors_in(out))):
        forget(tensors_in(out))
        return out
    known_args, known_kwargs = tree_map_only(torch.Tensor, lambda tensor: getattr(tensor, "followed", tensor), (args, kwargs))
    if "device" in kwargs:
        known_kwargs["device"] = torch.device("cpu")
    values = func(*known_args, **known_kwargs)
    if out is None:
        out = tree_map_only(torch.Tensor, lambda value: torch.empty(value.shape, dtype=value.dtype, device="meta"), values)
    for tensor, value in zip(tensors_in(out), tensors_in(values), strict=True):
        tensor.followed = value
    return out


def forget(tensors: Sequence[torch.Tensor]) -> None:
    """What was known of tensors was overwritten with something that is not."""
    for tensor in tensors:
        tensor.__dict__.pop("followed", None)


def all_followed(func, inputs: Sequence[torch.Tensor]) -> bool:
    """Whether the values of all tensors that an operation takes are known, and decide what it gives."""
    decided = func.namespace == "aten" and "empty" not in func._schema.name and torch.Tag.nondeterministic_seeded not in func.tags
    return decided and all(hasattr(tensor, "followed") for tensor in inputs if on_device(tensor))


def may_be_followed(tensor: torch.Tensor) -> bool:
    return tensor.numel() <= MOST and not tensor.is_floating_point()


def shape_depends_on_values(func, kwargs: dict) -> bool:
    """Whether the CPU must wait for an operation's input before it knows the shape of what the operation gives."""
    of_masks = func._schema.name in ("aten::index", "aten::_unsafe_index")  # which `_index` sees to
    return torch.Tag.dynamic_output_shape in func.tags and not of_masks and kwargs.get("output_size") is None
