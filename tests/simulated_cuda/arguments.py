"""The tensors among an operation's arguments. torch.utils._pytree knows more containers, and takes most of a pass's time."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for part in value for tensor in tensors_in(part)]


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same arguments, each through a function."""
    if isinstance(value, tuple | list):
        return type(value)([mapped(function, part) for part in value])
    if isinstance(value, dict):
        return {name: mapped(function, part) for name, part in value.items()}
    return function(value)
