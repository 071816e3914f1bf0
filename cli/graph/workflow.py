"""A workflow file in memory: API format, UI format, or a PNG that carries one.

Everything is brought to API format: node id -> {"class_type", "inputs", "_meta": {"title"}}, an input being a value or
a link [node id, output].
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from ...glmimage_core.json_text import parse_json
from .errors import WorkflowError

MUTED, BYPASSED = 2, 4  # litegraph's node modes
NOTES = {"Note", "MarkdownNote"}
LINK_FIELDS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = -10, -20  # ids of the nodes that stand for a subgraph's own inputs and outputs
MOST_PASSED = 1000  # reroutes, bypasses and subgraph borders in a row; more is a circle
CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize"}

Nodes = dict[str, type]


@dataclass
class Workflow:
    """prompt: the graph in API format. ui: the file's UI format, where it had one; pictures carry both."""

    prompt: dict[str, dict]
    ui: dict | None = None

    def title(self, node_id: str) -> str:
        """How to name a node to a person: its id and its title."""
        node = self.prompt.get(node_id, {})
        return f"node {node_id} ({node.get('_meta', {}).get('title') or node.get('class_type', 'missing')})"

    def set(self, assignment: str, nodes: Nodes) -> None:
        """Apply NODE.INPUT=VALUE, with NODE an id or a title. Raises WorkflowError when there is no such place."""
        target, equals, value = assignment.partition("=")
        name, dot, input_name = target.rpartition(".")
        if not equals or not dot:
            raise WorkflowError(f"--set {assignment}: write NODE.INPUT=VALUE")
        titled = [node_id for node_id, node in self.prompt.items() if node.get("_meta", {}).get("title") == name]
        matches = [name] if name in self.prompt else titled
        if len(matches) != 1:
            how = "no node has" if not matches else f"nodes {', '.join(matches)} all have"
            there = ", ".join(sorted({self.title(node_id) for node_id in self.prompt}))
            raise WorkflowError(f"--set {assignment}: {how} the id or title {name!r}; there are: {there}")
        node = self.prompt[matches[0]]
        if node["class_type"] in nodes and input_name not in (known := input_types(nodes[node["class_type"]])):
            raise WorkflowError(f"{self.title(matches[0])}: no input {input_name!r}; it has {', '.join(known)}")
        node["inputs"][input_name] = value
        self.ui = None  # it no longer says what is run, and a picture that carried it would mislead


@dataclass(frozen=True)
class WorkflowFile:
    """What a file holds: all that can be known without the nodes.

    data: the JSON of a .json file, in either format, or a picture's graph in UI format. prompt: a picture's in API format.
    """

    path: Path
    data: Any = None
    prompt: Any = None

    def workflow(self, nodes: Nodes, enable: Sequence[str] = ()) -> Workflow:
        """Bring the graph to API format. `nodes` maps class types to classes, for the order of widgets in UI format.

        enable: ids or titles of nodes to switch on that are muted or bypassed in a file in UI format.
        """
        if self.prompt is not None and not enable:
            return Workflow(_api_format(self.prompt), self.data)
        if self.data is not None:
            return parse_workflow(self.data, nodes, enable)
        raise WorkflowError(f"{self.path} carries no workflow" + (" in UI format, for --enable" if enable else ""))


def read_workflow(path: Path, nodes: Nodes, enable: Sequence[str] = ()) -> Workflow:
    """read_file and WorkflowFile.workflow in one."""
    return read_file(path).workflow(nodes, enable)


def read_file(path: Path) -> WorkflowFile:
    """Read a .json or a .png. Raises WorkflowError for a file that is missing or neither of them."""
    try:
        if path.suffix.lower() != ".png":
            return WorkflowFile(path, parse_json(path.read_bytes()))
        with Image.open(path) as picture:
            texts = getattr(picture, "text", {})
        data, prompt = (parse_json(texts[name]) if name in texts else None for name in ("workflow", "prompt"))
        return WorkflowFile(path, data, prompt)
    except UnidentifiedImageError as error:
        raise WorkflowError(f"{path} is not a picture") from error
    except OSError as error:
        raise WorkflowError(f"{path}: {error.strerror or 'not a picture'}") from error
    except UnicodeDecodeError as error:
        raise WorkflowError(f"{path} is neither a workflow in JSON nor a PNG") from error
    except ValueError as error:
        raise WorkflowError(f"{path} is not JSON: {error}") from error


def parse_workflow(data: Any, nodes: Nodes, enable: Sequence[str] = ()) -> Workflow:
    """A parsed JSON in either format."""
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        for name in enable:
            _switch_on(data["nodes"], name, nodes)
        return Workflow(to_api_format(data, nodes), data)
    if enable:
        raise WorkflowError(f"--enable {enable[0]}: a file in API format holds no node that is switched off; give the UI format")
    return Workflow(_api_format(data))


def _ui_title(node: dict, nodes: Nodes) -> str:
    """What a node of a file in UI format is called: its own title, or its class's."""
    return node.get("title") or getattr(nodes.get(node["type"]), "TITLE", node["type"])


def _switch_on(ui_nodes: list[dict], name: str, nodes: Nodes) -> None:
    """Switch on the node of that id or title. Raises WorkflowError when none is switched off under it."""
    off = [node for node in ui_nodes if node.get("mode", 0) in (MUTED, BYPASSED)]
    titles = {node["id"]: _ui_title(node, nodes) for node in off}
    matches = [node for node in off if name in (str(node["id"]), titles[node["id"]])]
    if len(matches) != 1:
        there = ", ".join(f"{node_id} ({title})" for node_id, title in titles.items()) or "none"
        raise WorkflowError(f"--enable {name}: it is not one node that is switched off; those are: {there}")
    matches[0]["mode"] = 0


def _api_format(data: Any) -> dict[str, dict]:
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict):
        data = data["prompt"]
    if not isinstance(data, dict) or not data:
        raise WorkflowError("this is not a ComfyUI workflow: neither UI format (nodes, links) nor API format (class_type)")
    for node_id, node in data.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise WorkflowError(f"node {node_id} has no class_type: this is not a workflow in API format")
        if not isinstance(node.setdefault("inputs", {}), dict):
            raise WorkflowError(f"node {node_id} ({node['class_type']}): inputs is not an object")
    return data


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


def is_link(value: Any) -> bool:
    """Whether an input of API format is a link [node id, output] and not a value."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and isinstance(value[1], int)


def to_api_format(ui: dict, nodes: Nodes) -> dict[str, dict]:
    """UI format to API format, as ComfyUI's frontend does when it queues a graph.

    Widget values are positional there. Muted nodes drop out, bypassed ones hand an input of the same type through,
    reroutes and frontend primitives dissolve, notes are ignored, subgraphs unfold with ids like "7:3".
    """
    try:
        subgraphs = {graph["id"]: graph for graph in ui.get("definitions", {}).get("subgraphs", [])}
        return _UiGraph(ui, nodes, subgraphs).convert()
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise WorkflowError(f"the workflow's UI format is damaged: {error!r}") from error


class _UiGraph:
    """One graph in UI format while it is converted: the whole one, or a subgraph where `node` of `parent` stands for it."""

    def __init__(self, ui: dict, classes: Nodes, subgraphs: dict, *, parent: "_UiGraph | None" = None, node: dict | None = None):
        self.classes, self.subgraphs, self.parent, self.node = classes, subgraphs, parent, node
        self.prefix = f"{parent.prefix}{node['id']}:" if parent else ""
        self.inputs = [slot["name"] for slot in ui.get("inputs", [])]  # a subgraph's own
        self.nodes = {node["id"]: node for node in ui["nodes"]}
        # A link is [id, from node, from output, to node, to input, type], or an object with the same in newer files.
        links = [link if isinstance(link, dict) else dict(zip(LINK_FIELDS, link, strict=False)) for link in ui.get("links") or []]
        self.origins = {link["id"]: (link["origin_id"], link["origin_slot"]) for link in links}
        self.results = {link["target_slot"]: link["id"] for link in links if link.get("target_id") == SUBGRAPH_OUTPUT}
        self.children = {
            node["id"]: _UiGraph(subgraphs[node["type"]], classes, subgraphs, parent=self, node=node)
            for node in self.nodes.values()
            if node["type"] in subgraphs
        }

    def convert(self) -> dict[str, dict]:
        prompt = {}
        for node in self.nodes.values():
            if node.get("mode", 0) in (MUTED, BYPASSED) or node["type"] in {*NOTES, "Reroute", "PrimitiveNode"}:
                continue
            if node["id"] in self.children:
                prompt |= self.children[node["id"]].convert()
                continue
            known = node["type"] in self.classes  # an unknown one matters only where an output needs it
            inputs = self._widget_values(node) if known else {}
            for slot in node.get("inputs", []):
                if slot.get("link") is not None and (source := self._source(slot["link"])) is not None:
                    inputs[slot["name"]] = source
            meta = {"title": _ui_title(node, self.classes)}
            prompt[f"{self.prefix}{node['id']}"] = {"class_type": node["type"], "inputs": inputs, "_meta": meta}
        return prompt

    def _widget_values(self, node: dict) -> dict[str, Any]:
        values = node.get("widgets_values") or []
        widgets = [
            (name, options)
            for name, (kind, options) in input_types(self.classes[node["type"]]).items()
            if is_widget(kind, options)
        ]
        found = {name: options["default"] for name, options in widgets if "default" in options}
        if isinstance(values, dict):
            return found | {name: values[name] for name, _ in widgets if name in values}
        waiting = list(values)
        for name, options in widgets:
            if not waiting:  # saved before the node gained its last inputs, which then have their defaults
                break
            found[name] = waiting.pop(0)
            if options.get("control_after_generate") and waiting and waiting[0] in CONTROL_VALUES:
                waiting.pop(0)
        return found

    def _source(self, link_id: int, passed: int = 0) -> Any:
        """What a link carries: [node id, output], a value, or None where nothing comes."""
        if passed > MOST_PASSED:
            raise WorkflowError(f"link {link_id} runs in a circle")
        origin, output = self.origins[link_id]
        if origin == SUBGRAPH_INPUT and self.parent:
            return self.parent._promoted(self, output, passed)
        if origin not in self.nodes:
            raise WorkflowError(f"link {link_id} comes from node {self.prefix}{origin}, which is missing")
        node = self.nodes[origin]
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node.get("mode", 0) == MUTED:
            return None
        if node["type"] == "Reroute" or node.get("mode", 0) == BYPASSED:
            through = self._link_through(node, output)
            return None if through is None else self._source(through, passed + 1)
        if origin in self.children:
            child = self.children[origin]
            return child._source(child.results[output], passed + 1) if output in child.results else None
        return [f"{self.prefix}{origin}", output]

    def _promoted(self, child: "_UiGraph", place: int, passed: int) -> Any:
        """What an input of a subgraph carries inside: the link to its node here, else its widget there, else None."""
        name = child.inputs[place]
        slots = child.node.get("inputs", [])
        link = next((slot.get("link") for slot in slots if slot["name"] == name), None)
        if link is not None:
            return self._source(link, passed + 1)
        widgets = [slot["name"] for slot in slots if "widget" in slot]
        by_place = dict(zip(widgets, child.node.get("widgets_values") or [], strict=False))
        return child.node.get("widgets_values_named", by_place).get(name)

    @staticmethod
    def _link_through(node: dict, output: int) -> int | None:
        """The input link that a reroute or a bypassed node hands to one of its outputs: same place, else same type."""
        inputs = node.get("inputs", [])
        if node["type"] == "Reroute":
            return inputs[0]["link"]
        wanted = node["outputs"][output]["type"]
        candidates = inputs[output : output + 1] + inputs
        return next((slot["link"] for slot in candidates if slot["type"] == wanted and slot.get("link") is not None), None)


def is_widget(kind: Any, options: dict) -> bool:
    """Whether an input of this type shows as a widget, and so has its place among widgets_values."""
    return (isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")) and not options.get("forceInput")
