"""The classes of the nodes of one workflow, each asked once for its inputs."""

from typing import Any

from .declared import Nodes, input_types
from .errors import node_boundary
from .ui_format import Node


class Classes:
    """Class types and their classes."""

    def __init__(self, nodes: Nodes):
        self.nodes = nodes
        self._inputs: dict[str, dict[str, tuple[Any, dict]]] = {}

    def inputs(self, node_type: str) -> dict[str, tuple[Any, dict]]:
        """What a class declares, or nothing for one that is not known here. Raises NodeError."""
        if node_type not in self._inputs:
            with node_boundary(node_type):
                self._inputs[node_type] = input_types(self.nodes[node_type]) if node_type in self.nodes else {}
        return self._inputs[node_type]

    def title(self, node: Node) -> str:
        """What a node is called: its own title, or its class's."""
        return title_of(node.type, node.title, self.nodes)


def title_of(node_type: str, title: str | None, nodes: Nodes) -> str:
    """What a node of a file in UI format is called: its own title, or its class's."""
    return title or getattr(nodes.get(node_type), "TITLE", node_type)
