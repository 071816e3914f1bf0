"""UI format as the front end loads it: nodes, slots and links of a file in a form that can be relied on.

What the front end repairs without a word (null, a link to nothing, a number or a text as an id) is repaired here. Other shapes
are refused with the node's id.
"""

from dataclasses import dataclass, field
from typing import Any

from .errors import WorkflowError

MUTED, BYPASSED = 2, 4  # litegraph's node modes
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = "-10", "-20"  # ids of the nodes that stand for a subgraph's own inputs and outputs
LINK_FIELDS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


@dataclass(frozen=True)
class Slot:
    """An input of a node, or of a subgraph. link: the id of the link that ends here. links: ids of those that begin here."""

    name: str
    type: Any
    link: str | None = None
    widget: bool = False
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class Link:
    """Where a link begins and ends: ids of nodes, and places among their outputs and inputs."""

    origin: str
    output: int
    target: str
    input: int


@dataclass(frozen=True)
class Node:
    """One node of a file. values: widgets_values, a list or names. named: widgets_values_named."""

    id: str
    type: str
    title: str | None
    mode: Any
    inputs: list[Slot]
    outputs: list[Slot]
    values: list | dict
    named: dict
    properties: dict


@dataclass(frozen=True)
class Graph:
    """A whole file, or the definition of a subgraph, which alone has inputs, outputs, an id and a name."""

    nodes: dict[str, Node]
    links: dict[str, Link]
    id: str = ""
    name: str = ""
    inputs: list[Slot] = field(default_factory=list)
    outputs: list[Slot] = field(default_factory=list)

    def results(self) -> dict[int, str]:
        """The links that leave a subgraph, by its outputs."""
        return {link.input: link_id for link_id, link in self.links.items() if link.target == SUBGRAPH_OUTPUT}


def read_graph(ui: dict, place: str = "the workflow") -> Graph:
    """A file in UI format, or one definition of a subgraph. Raises WorkflowError that says where a shape is wrong."""
    nodes: dict[str, Node] = {}
    for raw in _list(ui, "nodes", place):
        node = _node(raw, place)
        if node.id in nodes:
            raise WorkflowError(f"{place}: two nodes have the id {node.id}")
        nodes[node.id] = node
    links = ui.get("links")
    links = list(links.values()) if isinstance(links, dict) else _list(ui, "links", place)
    return Graph(
        nodes,
        links=dict(filter(None, map(_link, links))),
        id=str(ui.get("id")),
        name=_text(ui, "name", place) or "",
        inputs=[_slot(slot, f"{place}: an input") for slot in _list(ui, "inputs", place)],
        outputs=[_slot(slot, f"{place}: an output") for slot in _list(ui, "outputs", place)],
    )


def read_subgraphs(ui: dict) -> dict[str, Graph]:
    """The definitions of a file's subgraphs, by their ids. Raises WorkflowError."""
    definitions = _dict(ui, "definitions", "the workflow")
    graphs = [raw for raw in _list(definitions, "subgraphs", "the workflow: definitions") if raw is not None]
    for raw in graphs:
        if not isinstance(raw, dict) or not isinstance(raw.get("id"), str):
            raise WorkflowError("the workflow: a definition of a subgraph has no id")
    return {raw["id"]: read_graph(raw, f"subgraph {raw.get('name') or raw['id']}") for raw in graphs}


def _node(raw: Any, place: str) -> Node:
    if not isinstance(raw, dict):
        raise WorkflowError(f"{place}: a node is {raw!r}, which is no object")
    node_id = _id(raw.get("id"))
    if node_id is None:
        raise WorkflowError(f"{place}: a node of type {raw.get('type')!r} has the id {raw.get('id')!r}, which is none")
    place = f"node {node_id}" if place == "the workflow" else f"{place}: node {node_id}"
    if not isinstance(raw.get("type"), str):
        raise WorkflowError(f"{place}: its type is {raw.get('type')!r}, which is no name of a node")
    values = raw.get("widgets_values")
    if values is not None and not isinstance(values, list | dict):
        raise WorkflowError(f"{place} ({raw['type']}): widgets_values is {values!r}, which is neither a list nor an object")
    return Node(
        id=node_id,
        type=raw["type"],
        title=_text(raw, "title", place),
        mode=raw.get("mode"),
        inputs=[_slot(slot, f"{place}: an input") for slot in _list(raw, "inputs", place)],
        outputs=[_slot(slot, f"{place}: an output") for slot in _list(raw, "outputs", place)],
        values=values or [],
        named=_dict(raw, "widgets_values_named", place),
        properties=_dict(raw, "properties", place),
    )


def _slot(raw: Any, place: str) -> Slot:
    if not isinstance(raw, dict):
        raise WorkflowError(f"{place} is {raw!r}, which is no object")
    links = raw.get("linkIds")
    return Slot(
        name=_text(raw, "name", place) or "",
        type=raw.get("type"),
        link=_id(raw.get("link")),
        widget=isinstance(raw.get("widget"), dict),
        links=tuple(filter(None, map(_id, links))) if isinstance(links, list) else (),
    )


def _link(raw: Any) -> tuple[str, Link] | None:
    """A link [id, from node, from output, to node, to input, type], or an object with the same in newer files, by its id.

    None for what is no link, which the front end drops.
    """
    fields = dict(zip(LINK_FIELDS, raw, strict=False)) if isinstance(raw, list) else raw
    if not isinstance(fields, dict):
        return None
    link_id, origin, output = _id(fields.get("id")), _id(fields.get("origin_id")), _place(fields.get("origin_slot"))
    if link_id is None or origin is None or output is None:
        return None
    target, place = _id(fields.get("target_id")), _place(fields.get("target_slot"))
    return link_id, Link(origin, output, target or "", -1 if place is None else place)


def _id(value: Any) -> str | None:
    """The id of a node or a link as text: files hold 5 and "5" for the same one."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _place(value: Any) -> int | None:
    """A place among slots; the front end takes the text "0" for 0."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 9:
        return int(value)
    return value if type(value) is int and value >= 0 else None


def _list(raw: dict, name: str, place: str) -> list:
    value = raw.get(name)
    if value is not None and not isinstance(value, list):
        raise WorkflowError(f"{place}: {name} is {value!r}, which is no list")
    return value or []


def _dict(raw: dict, name: str, place: str) -> dict:
    value = raw.get(name)
    if value is not None and not isinstance(value, dict):
        raise WorkflowError(f"{place}: {name} is {value!r}, which is no object")
    return value or {}


def _text(raw: dict, name: str, place: str) -> str | None:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise WorkflowError(f"{place}: its {name} is {value!r}, which is no text")
    return value
