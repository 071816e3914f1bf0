"""The node that stands for a subgraph: which of its values belongs to which input of the subgraph, or to which widget inside.

Files hold the values by name, in pairs with proxyWidgets, or by place alone, each with a rule of the front end's.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from .classes import Classes
from .declared import is_widget, validated_by_class
from .errors import WorkflowError
from .ui_format import SUBGRAPH_INPUT, Graph, Node, Slot
from .widgets import CONTROL_VALUES, check_fits, has_companion

log = logging.getLogger(__name__)


class Promoted(NamedTuple):
    """The widget inside a subgraph that an input of the subgraph stands for. kind is None where the class is not known here."""

    name: str
    kind: Any
    options: dict
    validates_itself: bool


class Host:
    """The node that stands for a subgraph, and what it holds.

    graph: the subgraph. children: the hosts within it, by their nodes' ids. place: how to name the node to a person. links: those
    that end at the node, by the subgraph's inputs. values: what it holds, by the subgraph's inputs. overrides: what it holds for
    widgets inside that no input leads to, by node and input.
    """

    def __init__(self, node: Node, graph: Graph, children: Mapping[str, "Host"], *, classes: Classes, place: str):
        self.node, self.graph, self.children, self.classes, self.place = node, graph, children, classes, place
        self.overrides: dict[tuple[str, str], Any] = {}
        self.values: dict[int, Any] = {}
        self.links = self._links()
        self._take_values()

    def slots(self) -> list[Slot]:
        """The inputs of the host: those of the definition, for a file may hold fewer, with the host's links."""
        return [replace(slot, link=self.links.get(place)) for place, slot in enumerate(self.graph.inputs)]

    def held(self, place: int) -> Any:
        """The value that the host holds for an input of the subgraph, or None. Raises WorkflowError for one that does not fit."""
        value, widget = self.values.get(place), self.promoted(place)
        if value is None or widget is None or widget.kind is None:
            return value
        where = f"{self.place}: {self.graph.inputs[place].name}"
        check_fits(where, value, widget.kind)
        if isinstance(widget.kind, list) and not widget.validates_itself and value not in widget.kind:
            raise WorkflowError(f"{where} is {value!r}; it must be one of {', '.join(map(str, widget.kind))}")
        return value

    def promoted(self, place: int) -> Promoted | None:
        """The first widget that an input of the subgraph is linked to, in nested subgraphs too."""
        if not 0 <= place < len(self.graph.inputs):
            return None
        ids = self.graph.inputs[place].links or [
            link_id
            for link_id, link in self.graph.links.items()
            if link.origin == SUBGRAPH_INPUT and link.output == place
        ]  # fmt: skip
        for link_id in ids:
            link = self.graph.links.get(link_id)
            node = self.graph.nodes.get(link.target) if link else None
            slot = next((slot for slot in node.inputs if slot.link == link_id), None) if node else None
            if slot and (found := self._widget(node, slot)):
                return found
        return None

    def _widget(self, node: Node, slot: Slot) -> Promoted | None:
        if node.id in self.children:
            child = self.children[node.id]
            return child.promoted(child.input_named(slot.name))
        if node.type not in self.classes.nodes:
            return Promoted(slot.name, None, {}, validates_itself=True) if slot.widget else None
        kind, options = self.classes.inputs(node.type).get(slot.name, (None, {}))
        itself = slot.name in validated_by_class(self.classes.nodes[node.type])
        return Promoted(slot.name, kind, options, itself) if is_widget(kind, options) else None

    def input_named(self, name: str) -> int:
        """The place of an input of the subgraph, or -1."""
        return next((place for place, slot in enumerate(self.graph.inputs) if slot.name == name), -1)

    def _links(self) -> dict[int, str]:
        """The host's links by the subgraph's inputs, found by name and type, else by name; a file may lack slots."""
        links: dict[int, str] = {}
        free = dict(enumerate(self.graph.inputs))
        for slot in self.node.inputs:
            named = [place for place, own in free.items() if own.name == slot.name]
            typed = [place for place in named if free[place].type == slot.type]
            place = next(iter(typed + named), None)
            if place is not None:
                del free[place]
                if slot.link is not None:
                    links[place] = slot.link
            elif slot.link is not None:
                log.warning("%s has no input %s any more; its link is dropped", self.place, slot.name)
        return links

    def _take_values(self) -> None:
        """Names before pairs before places: which value belongs to which input of the subgraph, or to which widget inside."""
        host, inputs = self.node, self.graph.inputs
        named = host.named or (host.values if isinstance(host.values, dict) else {})
        proxies = host.properties.get("proxyWidgets")
        if named:
            self.values = {place: named[slot.name] for place, slot in enumerate(inputs) if slot.name in named}
        elif isinstance(proxies, list) and proxies:
            for pair, value in zip(proxies, host.values, strict=False):
                if value is not None:
                    self._take_proxy(pair, value)
        else:
            self.values = self._by_place(list(host.values))

    def _by_place(self, waiting: list) -> dict[int, Any]:
        """Value i belongs to promoted input i; some front ends wrote the companion of a seed as well."""
        widgets = {place: widget for place in range(len(self.graph.inputs)) if (widget := self.promoted(place))}
        with_companions = len(waiting) > len(widgets)
        found = {}
        for place, widget in widgets.items():
            if not waiting:
                break
            found[place] = waiting.pop(0)
            companion = with_companions and has_companion(widget.name, widget.kind, widget.options)
            if companion and waiting and waiting[0] in CONTROL_VALUES:
                waiting.pop(0)
        return found

    def _take_proxy(self, pair: Any, value: Any) -> None:
        """A value of an entry of proxyWidgets, [node id, input] with -1 for the subgraph itself. Raises WorkflowError."""
        place = self.place
        if not isinstance(pair, list) or len(pair) < 2 or not isinstance(pair[1], str):
            raise WorkflowError(f"{place}: proxyWidgets has the entry {pair!r}, which names no widget for the value {value!r}")
        node_id, name = str(pair[0]), pair[1]
        if name == "control_after_generate" or name.startswith("$$"):  # for the browser only: what follows a run, a preview
            return
        if not self._set_inside(node_id, name, value):
            raise WorkflowError(f"{place}: the value {value!r} is for {name} of node {node_id} inside, which is not there")

    def _set_inside(self, node_id: str, name: str, value: Any) -> bool:
        """Set an input of the subgraph, or a widget inside. Returns whether there is one."""
        if node_id == "-1":
            place = self.input_named(name)
            self.values[place] = value
            return place >= 0
        node = self.graph.nodes.get(node_id)
        if node is None:
            return False
        for place, slot in enumerate(self.graph.inputs):  # linked: then the subgraph's input holds the value
            if any(self._reaches(link_id, node, name) for link_id in slot.links):
                self.values[place] = value
                return True
        if node_id in self.children:
            return self.children[node_id].set_nested(name, value)
        self.overrides[node_id, name] = value
        return node.type not in self.classes.nodes or is_widget(*self.classes.inputs(node.type).get(name, ("", {})))

    def _reaches(self, link_id: str, node: Node, name: str) -> bool:
        return any(slot.link == link_id and slot.name == name for slot in node.inputs)

    def set_nested(self, name: str, value: Any) -> bool:
        """Set a widget of a nested subgraph by the name of its input, by its own, or by "node id: name"."""
        place = self.input_named(name)
        if place < 0:
            owns = (place for place in range(len(self.graph.inputs)) if (own := self.promoted(place)) and own.name == name)
            place = next(owns, -1)
        if place >= 0:
            self.values[place] = value
            return True
        node_id, colon, inner = name.partition(":")
        return bool(colon) and self._set_inside(node_id.strip(), inner.strip(), value)
