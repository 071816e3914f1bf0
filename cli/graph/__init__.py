"""Runs a workflow file without ComfyUI: reads it, checks it, walks it, saves the pictures."""

from ...nodes import NODE_CLASS_MAPPINGS
from .stock import STOCK_NODES

ALL_NODES = STOCK_NODES | NODE_CLASS_MAPPINGS
