"""UI format to API format, as ComfyUI's front end does when it queues a graph.

Muted nodes drop out, bypassed ones hand an input of the same type through, subgraphs unfold with ids like "7:3". Nodes that
exist in the browser only dissolve: notes, reroutes, primitives, Set and Get.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from .declared import Nodes, input_types, is_link, is_widget, validated_by_class
from .errors import WorkflowError, node_boundary
from .texts import NamedWidgets, dynamic_prompt
from .ui_format import BYPASSED, MUTED, SUBGRAPH_INPUT, Graph, Node, Slot, read_graph, read_subgraphs
from .widgets import CONTROL_VALUES, SEEDS, check_fits, has_companion, widget_values

log = logging.getLogger(__name__)

REROUTES = ("Reroute", "Reroute (rgthree)")
SETTERS = ("SetNode", "easy setNode")  # of KJNodes and of Easy-Use
GETTERS = ("GetNode", "easy getNode")
PRIMITIVE = "PrimitiveNode"
VIRTUAL = {"Note", "MarkdownNote", "Label (rgthree)", "Bookmark (rgthree)", *REROUTES, *SETTERS, *GETTERS, PRIMITIVE}
MOST_NODES = (
    10_000  # of a file with its subgraphs unfolded: each may hold others several times, so a small file may mean any number
)
MOST_NESTED = 100  # subgraphs within subgraphs


def unfold(ui: dict, nodes: Nodes) -> dict[str, dict]:
    """A file in UI format as API format. Raises WorkflowError that names node and input."""
    unfolding = _Unfolding(nodes, read_subgraphs(ui))
    whole = _Scope(unfolding, read_graph(ui))
    prompt: dict[str, dict] = {}
    for scope in whole.walk():
        for node in scope.active():
            prompt[scope.prefix + node.id] = scope.converted(node)
    _resolve_texts(whole, unfolding, prompt)
    return prompt


def title_of(node_type: str, title: str | None, nodes: Nodes) -> str:
    """What a node of a file in UI format is called: its own title, or its class's."""
    return title or getattr(nodes.get(node_type), "TITLE", node_type)


class Promoted(NamedTuple):
    """The widget inside a subgraph that an input of the subgraph stands for. kind is None where the class is not known here."""

    name: str
    kind: Any
    options: dict
    validates_itself: bool


class _Unfolding:
    """What all graphs of one file share: the classes, the definitions, and how many nodes there are so far."""

    def __init__(self, nodes: Nodes, subgraphs: dict[str, Graph]):
        self.nodes, self.subgraphs = nodes, subgraphs
        self.own_texts: list[tuple[str, str, dict]] = []  # node id, input, options: typed into the node itself
        self._count = 0
        self._declared: dict[str, dict[str, tuple[Any, dict]]] = {}

    def count(self, graph: Graph) -> None:
        self._count += len(graph.nodes)
        if self._count > MOST_NODES:
            raise WorkflowError(f"the workflow has more than {MOST_NODES} nodes when its subgraphs are unfolded")

    def inputs(self, node_type: str) -> dict[str, tuple[Any, dict]]:
        """What a class declares, or nothing for one that is not known here."""
        if node_type not in self._declared:
            with node_boundary(node_type):
                self._declared[node_type] = input_types(self.nodes[node_type]) if node_type in self.nodes else {}
        return self._declared[node_type]


class _Scope:
    """One graph while it is converted: the whole file, or a subgraph, where `host` in `parent` stands for it."""

    def __init__(self, unfolding: _Unfolding, graph: Graph, *, parent: "_Scope | None" = None, host: Node | None = None):
        unfolding.count(graph)
        self.unfolding, self.graph, self.parent, self.host = unfolding, graph, parent, host
        self.prefix = f"{parent.prefix}{host.id}:" if parent else ""
        self.depth = parent.depth + 1 if parent else 0
        self.results = graph.results()
        if self.depth > MOST_NESTED or graph.id in self._above():
            raise WorkflowError(f"subgraph {graph.name or graph.id} holds itself, or is more than {MOST_NESTED} subgraphs deep")
        self.children = {
            node.id: _Scope(unfolding, unfolding.subgraphs[node.type], parent=self, host=node)
            for node in graph.nodes.values()
            if node.type in unfolding.subgraphs
        }
        self.overrides: dict[tuple[str, str], Any] = {}  # by node and input: values of inner widgets that the host holds
        self.values: dict[int, Any] = {}  # by the subgraph's inputs: values that the host holds
        if host:
            self.host_links = self._links_of_host()
            self._take_values_of_host()

    def _above(self) -> set[str]:
        """The definitions around this one."""
        above, scope = set(), self.parent
        while scope and scope.parent:
            above.add(scope.graph.id)
            scope = scope.parent
        return above

    def walk(self) -> Iterator["_Scope"]:
        """This graph and those of its subgraphs that are neither muted nor bypassed."""
        yield self
        for node_id, child in self.children.items():
            if self.graph.nodes[node_id].mode not in (MUTED, BYPASSED):
                yield from child.walk()

    def active(self) -> list[Node]:
        """The nodes that API format holds."""
        return [
            node
            for node in self.graph.nodes.values()
            if node.mode not in (MUTED, BYPASSED) and node.type not in VIRTUAL and node.id not in self.children
        ]

    def place(self, node: Node) -> str:
        """How to name a node to a person."""
        return f"node {self.prefix}{node.id} ({title_of(node.type, node.title, self.unfolding.nodes)})"

    def converted(self, node: Node) -> dict[str, Any]:
        """A node in API format."""
        declared = self.unfolding.inputs(node.type)
        inputs = widget_values(node, declared, self.place(node))
        typed = set(inputs)
        for (node_id, name), value in self.overrides.items():
            if node_id == node.id and name in declared:
                check_fits(f"{self.place(node)}: {name}", value, declared[name][0])
                inputs[name] = value
                typed.discard(name)
        for slot in node.inputs:
            if slot.link is not None and (source := self.source(slot.link, slot.type)) is not None:
                inputs[slot.name] = source
                typed.discard(slot.name)
        self.unfolding.own_texts += [(self.prefix + node.id, name, declared[name][1]) for name in inputs if name in typed]
        title = title_of(node.type, node.title, self.unfolding.nodes)
        return {"class_type": node.type, "inputs": inputs, "_meta": {"title": title}}

    # Where a link comes from

    def source(self, link_id: str, kind: Any) -> Any:
        """What a link carries to an input of a type: [node id, output], a value, or None where nothing comes."""
        scope: _Scope = self
        held, seen = None, set()
        while link_id is not None:
            if (scope.prefix, link_id) in seen:
                raise WorkflowError(f"{self.prefix}link {link_id} runs in a circle")
            seen.add((scope.prefix, link_id))
            link = scope.graph.links.get(link_id)
            if link is None:
                return None
            if link.origin == SUBGRAPH_INPUT and scope.parent:
                # The outermost host that holds a value decides, as each one inside was set from it.
                value = scope.held(link.output)
                held = held if value is None else value
                link_id = scope.host_links.get(link.output)
                if link_id is None:
                    return held
                kind, scope = scope.graph.inputs[link.output].type, scope.parent
                continue
            node = scope.graph.nodes.get(link.origin)
            if node is None:
                return None
            if node.type == PRIMITIVE:  # it writes its value into what it is linked to, even when it is switched off
                return scope.primitive(node)
            if node.mode == MUTED:
                return None
            if node.type in GETTERS:
                scope, link_id = scope.through_setter(node)
            elif node.type in REROUTES + SETTERS:
                link_id = node.inputs[0].link if node.inputs else None
            elif node.mode == BYPASSED:
                slot = scope.bypass(node, link.output, kind)
                link_id, kind = (slot.link, slot.type) if slot else (None, kind)
            elif node.id in scope.children:
                scope = scope.children[node.id]
                link_id = scope.results.get(link.output)
            else:
                return [scope.prefix + node.id, link.output]
        return None

    def primitive(self, node: Node) -> Any:
        """What a primitive of the browser holds."""
        own = next(iter(node.values.values() if isinstance(node.values, dict) else node.values), None)
        return next((value for (node_id, _), value in self.overrides.items() if node_id == node.id), node.named.get("value", own))

    def through_setter(self, getter: Node) -> tuple["_Scope", str | None]:
        """The graph and the link that the Set node of the same name takes: in this graph, else in those around it."""
        name, scope = _constant(getter), self
        while scope:
            for node in scope.graph.nodes.values():
                if node.type in SETTERS and _constant(node) == name:
                    return scope, node.inputs[0].link if node.inputs else None
            scope = scope.parent
        log.warning("%s: there is no Set node of the name %s", self.place(getter), name)
        return self, None

    def bypass(self, node: Node, output: int, kind: Any) -> Slot | None:
        """The input that a bypassed node hands to one of its outputs: that of the same place, else of the same type."""
        child = self.children.get(node.id)
        slots, outputs = (child.slots(), child.graph.outputs) if child else (node.inputs, node.outputs)
        if kind in ("*", ""):
            return slots[output] if output < len(slots) else next(iter(slots), None)
        given = outputs[output].type if output < len(outputs) else kind

        def fits(slot: Slot) -> bool:
            return _joins(slot.type, given) and _joins(slot.type, kind)

        same_place = [slot for slot in slots[output : output + 1] if fits(slot)]
        exact = [slot for slot in slots if slot.type == kind]
        return next(iter([*same_place, *exact, *filter(fits, slots)]), None)

    # What the node that stands for a subgraph holds

    def slots(self) -> list[Slot]:
        """The inputs of the host: those of the definition, for a file may hold fewer, with the host's links."""
        return [replace(slot, link=self.host_links.get(place)) for place, slot in enumerate(self.graph.inputs)]

    def held(self, place: int) -> Any:
        """The value that the host holds for an input of the subgraph, or None. Raises WorkflowError for one that does not fit."""
        value, widget = self.values.get(place), self.promoted(place)
        if value is None or widget is None or widget.kind is None:
            return value
        where = f"{self.parent.place(self.host)}: {self.graph.inputs[place].name}"
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
        if node.type not in self.unfolding.nodes:
            return Promoted(slot.name, None, {}, validates_itself=True) if slot.widget else None
        kind, options = self.unfolding.inputs(node.type).get(slot.name, (None, {}))
        itself = slot.name in validated_by_class(self.unfolding.nodes[node.type])
        return Promoted(slot.name, kind, options, itself) if is_widget(kind, options) else None

    def input_named(self, name: str) -> int:
        """The place of an input of the subgraph, or -1."""
        return next((place for place, slot in enumerate(self.graph.inputs) if slot.name == name), -1)

    def _links_of_host(self) -> dict[int, str]:
        """The host's links by the subgraph's inputs, found by name and type, else by name; a file may lack slots."""
        links: dict[int, str] = {}
        free = dict(enumerate(self.graph.inputs))
        for slot in self.host.inputs:
            named = [place for place, own in free.items() if own.name == slot.name]
            typed = [place for place in named if free[place].type == slot.type]
            place = next(iter(typed + named), None)
            if place is not None:
                del free[place]
                if slot.link is not None:
                    links[place] = slot.link
            elif slot.link is not None:
                log.warning("%s has no input %s any more; its link is dropped", self.parent.place(self.host), slot.name)
        return links

    def _take_values_of_host(self) -> None:
        """Names before pairs before places: which value belongs to which input of the subgraph, or to which widget inside."""
        host, inputs = self.host, self.graph.inputs
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
        place = self.parent.place(self.host)
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
        known = self.unfolding.inputs(node.type)
        self.overrides[node_id, name] = value
        return name in known or node.type not in self.unfolding.nodes

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


def _constant(node: Node) -> Any:
    """The name that a Set or a Get node carries."""
    if isinstance(node.values, dict):
        return node.values.get("Constant")
    return node.values[0] if node.values else node.named.get("Constant")


def _joins(one: Any, other: Any) -> bool:
    """Whether the front end lets an output of one type into an input of the other."""
    names = [set(str(kind or "*").lower().split(",")) for kind in (one, other)]
    return any("*" in kinds for kinds in names) or not names[0].isdisjoint(names[1])


def _resolve_texts(whole: _Scope, unfolding: _Unfolding, prompt: dict[str, dict]) -> None:
    """Resolve choices in prompts, and names in file names, where they were typed into the node that takes them.

    Choices follow the text and the seeds of the graph: a run repeats, another seed may choose otherwise, and the same prompt in
    two nodes stays the same.
    """
    seeds = [node["inputs"][name] for node in prompt.values() for name in SEEDS if name in node["inputs"]]
    seeds = [seed for seed in seeds if not is_link(seed)]
    names, now = NamedWidgets(list(_named_widgets(whole))), time.localtime()
    for node_id, name, options in unfolding.own_texts:
        inputs, text = prompt[node_id]["inputs"], prompt[node_id]["inputs"][name]
        if not isinstance(text, str):
            continue
        if options.get("dynamicPrompts"):
            inputs[name] = dynamic_prompt(text, f"{seeds} {text}")
        elif name == "filename_prefix":
            inputs[name] = names.replaced(text, now)
        if inputs[name] != text:
            log.info("node %s: %s became %r", node_id, name, inputs[name])


def _named_widgets(scope: _Scope) -> Iterator[tuple[str, str | None, Any]]:
    for node in scope.graph.nodes.values():
        search = node.properties.get("Node name for S&R") or node.type
        yield search, title_of(node.type, node.title, scope.unfolding.nodes), lambda node=node: _widgets_of(scope, node)
        if node.id in scope.children:
            yield from _named_widgets(scope.children[node.id])


def _widgets_of(scope: _Scope, node: Node) -> dict[str, Any]:
    """What the front end shows in a node's widgets, also where a link overrides them."""
    if node.id in scope.children:
        child = scope.children[node.id]
        return {child.graph.inputs[place].name: value for place, value in child.values.items()}
    if node.type == PRIMITIVE:
        return {"value": scope.primitive(node)}
    return widget_values(node, scope.unfolding.inputs(node.type), scope.place(node))
