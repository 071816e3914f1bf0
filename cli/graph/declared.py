"""What a node class declares of its inputs, as ComfyUI's front end and server read it."""

import inspect
from collections.abc import Collection
from typing import Any, NamedTuple

Nodes = dict[str, type]


class Declared(NamedTuple):
    """What a node class declares. inputs: name -> (type, options), required before optional. hidden: what a runner adds."""

    inputs: dict[str, tuple[Any, dict]]
    required: Collection[str]
    hidden: dict[str, str]


def declared(node_class: type) -> Declared:
    """Ask a node class for its inputs. This can be slow: a loader looks through folders for the names of checkpoints."""
    kinds = node_class.INPUT_TYPES()
    entries = {**kinds.get("required", {}), **kinds.get("optional", {})}
    inputs = {name: (entry[0], entry[1] if len(entry) > 1 else {}) for name, entry in entries.items()}
    return Declared(inputs, kinds.get("required", {}).keys(), kinds.get("hidden", {}))


def input_types(node_class: type) -> dict[str, tuple[Any, dict]]:
    """All declared inputs of a node class, required before optional, as name -> (type, options)."""
    return declared(node_class).inputs


def validated_by_class(node_class: type) -> list[str]:
    """The names that a class checks itself, in VALIDATE_INPUTS."""
    validate = getattr(node_class, "VALIDATE_INPUTS", None)
    return list(inspect.signature(validate).parameters) if validate else []


def is_widget(kind: Any, options: dict) -> bool:
    """Whether an input of this type shows as a widget, and so has its place among widgets_values."""
    return (isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")) and not options.get("forceInput")


def is_link(value: Any) -> bool:
    """Whether an input of API format is a link [node id, output] and not a value."""
    return isinstance(value, list) and len(value) == 2 and type(value[0]) in (str, int) and type(value[1]) is int
