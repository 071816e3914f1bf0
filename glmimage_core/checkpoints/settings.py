"""Numbers in configs that others wrote."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LAYERS = re.compile(r"(\w+_)?(layers?|blocks)(_per_\w+)?|depth")  # what configs call the number of layers


def finite(value: Any, what: str) -> float:
    """The value, a finite number. Raises ValueError that says what is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or abs(value) > 2**63 or math.isnan(value):  # an integer can be too long for a float
        raise ValueError(f"{what} is {str(value)[:40]}, which is no finite number")
    return value


def positive(value: Any, what: str) -> float:
    """The value, a finite number above 0. Raises ValueError that says what is none."""
    if finite(value, what) <= 0:
        raise ValueError(f"{what} is {value}; it must be above 0")
    return value


def count(value: Any, what: str, most: int = 2**31) -> int:
    """The value, a whole number from 1 to `most`. Raises ValueError that says what is none."""
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{what} is {str(value)[:40]}; it must be a whole number from 1 to {most}")
    return value


def finite_list(values: Any, what: str) -> tuple[float, ...]:
    """The values, a list of finite numbers, as a tuple. Raises ValueError that says what is none."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{what} is {str(values)[:40]}, which is no list")
    return tuple(finite(value, f"number {place} of {what}") for place, value in enumerate(values, 1))


def check_layers(config: Mapping[str, Any], stored: int, source: Path) -> None:
    """Raise ValueError where a config, or one inside it, has more layers than there are tensors: building them takes for ever."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_layers(value, stored, source)
        elif LAYERS.fullmatch(key) and type(value) is int and value > stored:
            raise ValueError(f"{key} in {source} is {str(value)[:40]}, and no more than {stored} tensors are stored")
