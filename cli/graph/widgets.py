"""The values of a node's widgets, by name. In UI format most files hold them as a list, whose order is the front end's."""

import math
from typing import Any

from .declared import is_widget
from .errors import WorkflowError
from .ui_format import Node

CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
SEEDS = ("seed", "noise_seed")  # INT inputs of these names have a companion also where the class does not ask for one


def has_companion(name: str, kind: Any, options: dict) -> bool:
    """Whether the front end sets a second widget, control_after_generate, behind an input's own."""
    return bool(options.get("control_after_generate", kind == "INT" and name in SEEDS))


def widget_values(node: Node, inputs: dict[str, tuple[Any, dict]], place: str) -> dict[str, Any]:
    """What a node's widgets hold: names before places, and defaults for inputs that are newer than the file.

    inputs: what the node's class declares. Raises WorkflowError, which begins with place, for a value that does not fit.
    """
    widgets = {name: (kind, options) for name, (kind, options) in inputs.items() if is_widget(kind, options)}
    found = {name: options["default"] for name, (_, options) in widgets.items() if "default" in options}
    named = node.named or (node.values if isinstance(node.values, dict) else _by_place(node.values, widgets))
    given = {name: named[name] for name in widgets if name in named}
    for name, value in given.items():
        check_fits(f"{place}: {name}", value, widgets[name][0])
    return found | given


def _by_place(values: list, widgets: dict[str, tuple[Any, dict]]) -> dict[str, Any]:
    waiting, found = list(values), {}
    for name, (kind, options) in widgets.items():
        if not waiting:  # saved before the node gained its last inputs, which then have their defaults
            break
        found[name] = waiting.pop(0)
        if has_companion(name, kind, options) and waiting and waiting[0] in CONTROL_VALUES:
            waiting.pop(0)
    return found


def check_fits(place: str, value: Any, kind: Any) -> None:
    """Check that a widget of a type can hold a value: one that it cannot hold is most likely another widget's.

    Raises WorkflowError, which begins with place.
    """
    name = "COMBO" if isinstance(kind, list) else kind
    if not _FITS[name](value):
        raise WorkflowError(f"{place} is {value!r}, which is no {name}")


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (isinstance(value, float) and math.isfinite(value))


def _is_whole(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or float(value).is_integer())


_FITS = {
    "STRING": lambda value: isinstance(value, str),
    "INT": _is_whole,
    "FLOAT": _is_number,
    "BOOLEAN": lambda value: value in (True, False) or (isinstance(value, str) and value.lower() in ("true", "false")),
    "COMBO": lambda value: isinstance(value, str | int | float | bool),
}
