"""UI format to API format, as ComfyUI's front end does when it queues a graph.

Muted nodes drop out, bypassed ones hand an input of the same type through, subgraphs unfold with ids like "7:3". Nodes that
exist in the browser only dissolve: notes, reroutes, primitives, Set and Get.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

from .classes import Classes
from .declared import Nodes, is_link, is_widget
from .errors import WorkflowError
from .promoted import Host
from .texts import NamedWidgets, dynamic_prompt
from .ui_format import BYPASSED, MUTED, SUBGRAPH_INPUT, Graph, Node, Slot, read_graph, read_subgraphs
from .widgets import SEEDS, check_fits, widget_values

log = logging.getLogger(__name__)

REROUTES = ("Reroute", "Reroute (rgthree)")
SETTERS = ("SetNode", "easy setNode")  # of KJNodes and of Easy-Use
GETTERS = ("GetNode", "easy getNode")
PRIMITIVE = "PrimitiveNode"
VIRTUAL = {"Note", "MarkdownNote", "Label (rgthree)", "Bookmark (rgthree)", *REROUTES, *SETTERS, *GETTERS, PRIMITIVE}
MOST_NODES = 10_000  # with subgraphs unfolded: each may hold others several times, so a small file may mean any number
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


class _Unfolding:
    """What all graphs of one file share: the classes, the definitions, and how many nodes there are so far."""

    def __init__(self, nodes: Nodes, subgraphs: dict[str, Graph]):
        self.classes, self.subgraphs = Classes(nodes), subgraphs
        self.own_texts: list[tuple[str, str, dict]] = []  # node id, input, options: typed into the node itself
        self._count = 0

    def count(self, graph: Graph) -> None:
        self._count += len(graph.nodes)
        if self._count > MOST_NODES:
            raise WorkflowError(f"the workflow has more than {MOST_NODES} nodes when its subgraphs are unfolded")


class _Scope:
    """One graph while it is converted: the whole file, or a subgraph, where `host` in `parent` stands for it."""

    def __init__(self, unfolding: _Unfolding, graph: Graph, *, parent: "_Scope | None" = None, host: Node | None = None):
        unfolding.count(graph)
        self.unfolding, self.graph, self.parent = unfolding, graph, parent
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
        hosts = {node_id: child.host for node_id, child in self.children.items()}
        self.host = Host(host, graph, hosts, classes=unfolding.classes, place=parent.place(host)) if parent else None

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
        return f"node {self.prefix}{node.id} ({self.unfolding.classes.title(node)})"

    def converted(self, node: Node) -> dict[str, Any]:
        """A node in API format."""
        declared = self.unfolding.classes.inputs(node.type)
        inputs = widget_values(node, declared, self.place(node))
        given = {name: value for (node_id, name), value in self.overrides().items() if node_id == node.id}
        for slot in node.inputs:
            if slot.link is not None and (source := self.source(slot.link, slot.type)) is not None:
                given[slot.name] = source
        for name, value in given.items():
            if not is_link(value) and name in declared and is_widget(*declared[name]):
                check_fits(f"{self.place(node)}: {name}", value, declared[name][0])
        own = inputs.keys() - given.keys()
        self.unfolding.own_texts += [(self.prefix + node.id, name, declared[name][1]) for name in sorted(own)]
        title = self.unfolding.classes.title(node)
        return {"class_type": node.type, "inputs": inputs | given, "_meta": {"title": title}}

    def overrides(self) -> dict[tuple[str, str], Any]:
        """Values of widgets of this graph that the node that stands for it holds, by node and input."""
        return self.host.overrides if self.host else {}

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
                value = scope.host.held(link.output)
                held = held if value is None else value
                link_id = scope.host.links.get(link.output)
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
        return next(
            (value for (node_id, _), value in self.overrides().items() if node_id == node.id), node.named.get("value", own)
        )

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
        slots, outputs = (child.host.slots(), child.graph.outputs) if child else (node.inputs, node.outputs)
        if kind in ("*", ""):
            return slots[output] if output < len(slots) else next(iter(slots), None)
        given = outputs[output].type if output < len(outputs) else kind

        def fits(slot: Slot) -> bool:
            return _joins(slot.type, given) and _joins(slot.type, kind)

        same_place = [slot for slot in slots[output : output + 1] if fits(slot)]
        exact = [slot for slot in slots if slot.type == kind]
        return next(iter([*same_place, *exact, *filter(fits, slots)]), None)


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
        yield search, scope.unfolding.classes.title(node), lambda node=node: _widgets_of(scope, node)
        if node.id in scope.children:
            yield from _named_widgets(scope.children[node.id])


def _widgets_of(scope: _Scope, node: Node) -> dict[str, Any]:
    """What the front end shows in a node's widgets, also where a link overrides them."""
    if node.id in scope.children:
        child = scope.children[node.id]
        return {child.graph.inputs[place].name: value for place, value in child.host.values.items()}
    if node.type == PRIMITIVE:
        return {"value": scope.primitive(node)}
    return widget_values(node, scope.unfolding.classes.inputs(node.type), scope.place(node))
