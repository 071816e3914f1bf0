"""ComfyUI's nodes that hold a value, and the one that shows it."""

import sys

from ....glmimage_core.stated import escaped
from .base import StockNode


class PreviewAny(StockNode):
    """Shown on standard error, since there is no screen: standard output is for the paths of pictures."""

    TITLE = "Preview as Text"
    REQUIRED = {"source": ("*", {})}
    RETURN_TYPES = ("STRING",)
    FUNCTION = "show"
    OUTPUT_NODE = True

    def show(self, source):
        print(f"{self.TITLE}:", *map(escaped, str(source).splitlines()), sep="\n", file=sys.stderr)
        return (str(source),)


class Primitive(StockNode):
    """A node that hands on its one widget. CONSTANT says that its value is known before anything runs."""

    CONSTANT = True
    FUNCTION = "value"

    def value(self, value):
        return (value,)


def _primitive(node_id: str, title: str, kind: str) -> type[Primitive]:
    options = {"control_after_generate": True} if kind == "INT" else {}
    return type(node_id, (Primitive,), {"TITLE": title, "RETURN_TYPES": (kind,), "REQUIRED": {"value": (kind, options)}})


PRIMITIVES = (
    _primitive("PrimitiveInt", "Int", "INT"),
    _primitive("PrimitiveFloat", "Float", "FLOAT"),
    _primitive("PrimitiveString", "String", "STRING"),
    _primitive("PrimitiveStringMultiline", "String (Multiline)", "STRING"),
    _primitive("PrimitiveBoolean", "Boolean", "BOOLEAN"),
)
