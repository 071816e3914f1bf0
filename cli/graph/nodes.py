"""All nodes that a workflow may hold when it runs without ComfyUI, by their ids."""

from ...nodes import NODE_CLASS_MAPPINGS
from .stock import STOCK_NODES

ALL_NODES = STOCK_NODES | NODE_CLASS_MAPPINGS
