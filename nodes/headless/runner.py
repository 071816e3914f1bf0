"""Checks a workflow and walks it: each node once, after the nodes it needs, and again only when its inputs changed."""

import hashlib
import inspect
import math
from collections import Counter
from typing import Any

from .stock import Folders
from .workflow import Nodes, Workflow, WorkflowError, input_types, is_link


class NodeError(RuntimeError):
    """What a node raised while it ran, with the node's name."""

    def __init__(self, node: str, error: Exception):
        message = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        super().__init__(f"{node}: {message}")
        self.error = error


class Runner:
    """Runs workflows one after another.

    nodes: class types and their classes. keep: hold results for the next run, so that it only runs what changed; without
    it each result goes as soon as nothing needs it, so that a loaded model leaves memory after its last use.
    """

    def __init__(self, nodes: Nodes, folders: Folders, keep: bool = False):
        self.nodes = nodes
        self.folders = folders
        self.keep = keep
        self.executed: list[str] = []  # ids of the nodes that ran in the last run, in order
        self._results: dict[str, tuple] = {}

    def run(self, workflow: Workflow) -> None:
        """Check everything, then run what the output nodes need.

        Raises WorkflowError, before anything runs, when the workflow or a value is wrong, and NodeError when a node fails.
        """
        order = self.check(workflow)
        keys: dict[str, str] = {}
        uses: Counter[str] = Counter()
        for node_id in order:
            keys[node_id] = self._key(workflow, node_id, keys)
            uses.update(keys[source] for source, _ in self._links(workflow, node_id).values())
        self._results = {key: result for key, result in self._results.items() if key in keys.values()}
        self.executed = []
        for node_id in order:
            if keys[node_id] not in self._results:
                self._results[keys[node_id]] = self._execute(workflow, node_id, keys)
                self.executed.append(node_id)
            uses.subtract(keys[source] for source, _ in self._links(workflow, node_id).values())
            if not self.keep:
                self._results = {key: result for key, result in self._results.items() if uses[key] > 0}

    def check(self, workflow: Workflow) -> list[str]:
        """Check all nodes that an output needs. Returns their ids in the order in which they will run."""
        for node_id, node in workflow.prompt.items():
            if node["class_type"] not in self.nodes:
                raise WorkflowError(f"{workflow.title(node_id)}: no such node here: {node['class_type']}")
        outputs = [
            node_id for node_id, node in workflow.prompt.items() if getattr(self.nodes[node["class_type"]], "OUTPUT_NODE", False)
        ]
        if not outputs:
            raise WorkflowError("the workflow has no output, such as a Save Image node")
        depths: dict[str, int] = {}
        for node_id in outputs:
            self._check_links(workflow, node_id, depths, path=())
        for node_id in depths:
            self._check_values(workflow, node_id)
        order: dict[str, None] = {}
        for node_id in outputs:
            self._visit(workflow, node_id, depths, order)
        return list(order)

    def _visit(self, workflow: Workflow, node_id: str, depths: dict[str, int], order: dict[str, None]) -> None:
        """Depth first, the longest chain first, so that loaders run as late as they can."""
        if node_id in order:
            return
        sources = {source for source, _ in self._links(workflow, node_id).values()}
        for source in sorted(sources, key=lambda source: (-depths[source], source)):
            self._visit(workflow, source, depths, order)
        order[node_id] = None

    def _links(self, workflow: Workflow, node_id: str) -> dict[str, tuple[str, int]]:
        """Declared inputs that are links, as name -> (node id, output)."""
        node = workflow.prompt[node_id]
        declared = input_types(self.nodes[node["class_type"]])
        return {name: (str(value[0]), value[1]) for name, value in node["inputs"].items() if name in declared and is_link(value)}

    def _check_links(self, workflow: Workflow, node_id: str, depths: dict[str, int], path: tuple[str, ...]) -> int:
        """Check the links above a node; fills depths, the length of the longest chain above each."""
        if node_id in path:
            raise WorkflowError(f"{workflow.title(node_id)}: its inputs lead back to itself")
        if node_id in depths:
            return depths[node_id]
        node_class = self.nodes[workflow.prompt[node_id]["class_type"]]
        declared = input_types(node_class)
        depth = 0
        for name, (source, output) in self._links(workflow, node_id).items():
            place = f"{workflow.title(node_id)}: {name}"
            if source not in workflow.prompt:
                raise WorkflowError(f"{place} is linked to node {source}, which is missing")
            returned = self.nodes[workflow.prompt[source]["class_type"]].RETURN_TYPES
            if not 0 <= output < len(returned):
                raise WorkflowError(f"{place} is linked to output {output} of {workflow.title(source)}, which has none such")
            kind = declared[name][0]
            wanted = "COMBO" if isinstance(kind, list) else kind
            if returned[output] != wanted:
                raise WorkflowError(f"{place} takes {wanted}, but {workflow.title(source)} gives {returned[output]}")
            depth = max(depth, 1 + self._check_links(workflow, source, depths, (*path, node_id)))
        depths[node_id] = depth
        return depth

    def _check_values(self, workflow: Workflow, node_id: str) -> None:
        """Convert and check the values of one node in place, as ComfyUI does before it queues a graph."""
        node = workflow.prompt[node_id]
        node_class = self.nodes[node["class_type"]]
        required = node_class.INPUT_TYPES().get("required", {})
        validate = getattr(node_class, "VALIDATE_INPUTS", None)
        own = list(inspect.signature(validate).parameters) if validate else []
        values: dict[str, Any] = {"folders": self.folders}
        for name, (kind, options) in input_types(node_class).items():
            place = f"{workflow.title(node_id)}: {name}"
            if name not in node["inputs"]:
                if name in required:
                    raise WorkflowError(f"{place} is missing")
            elif not is_link(node["inputs"][name]):
                values[name] = node["inputs"][name] = _checked(place, node["inputs"][name], kind, options, name in own)
        if validate and (answer := validate(**{name: values.get(name) for name in own})) is not True:
            names = ", ".join(name for name in own if name != "folders")
            raise WorkflowError(f"{workflow.title(node_id)}: {names}: {answer}")

    def _arguments(self, workflow: Workflow, node_id: str, keys: dict[str, str]) -> dict[str, Any]:
        node = workflow.prompt[node_id]
        node_class = self.nodes[node["class_type"]]
        links = self._links(workflow, node_id)
        arguments = {name: node["inputs"][name] for name in input_types(node_class) if name in node["inputs"]}
        for name, (source, output) in links.items():
            arguments[name] = self._results[keys[source]][output]
        hidden = {"FOLDERS": self.folders, "PROMPT": workflow.prompt, "WORKFLOW": workflow.ui}
        return arguments | {name: hidden[kind] for name, kind in node_class.INPUT_TYPES().get("hidden", {}).items()}

    def _key(self, workflow: Workflow, node_id: str, keys: dict[str, str]) -> str:
        """Equal for nodes that will give the same results: class, values, what their links are made of, files read."""
        node = workflow.prompt[node_id]
        node_class = self.nodes[node["class_type"]]
        links = self._links(workflow, node_id)
        parts = [node["class_type"]]
        for name in sorted(set(input_types(node_class)) & set(node["inputs"])):
            source, output = links.get(name, (None, None))
            parts.append(f"{name}={node['inputs'][name]!r}" if source is None else f"{name}<-{keys[source]}.{output}")
        if hasattr(node_class, "IS_CHANGED") and not links:
            parts.append(node_class.IS_CHANGED(**node["inputs"], folders=self.folders))
        if getattr(node_class, "OUTPUT_NODE", False):
            parts.append(node_id)  # what an output node leaves is a file, so two of them never stand for each other
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _execute(self, workflow: Workflow, node_id: str, keys: dict[str, str]) -> tuple:
        node_class = self.nodes[workflow.prompt[node_id]["class_type"]]
        arguments = self._arguments(workflow, node_id, keys)
        try:
            return getattr(node_class(), node_class.FUNCTION)(**arguments)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            raise NodeError(workflow.title(node_id), error) from error


def _checked(place: str, value: Any, kind: Any, options: dict, validates_itself: bool) -> Any:
    """A value converted to its declared type and within its declared range. Raises WorkflowError."""
    if isinstance(kind, list):
        if value not in kind and not validates_itself:
            raise WorkflowError(f"{place} is {value!r}; it must be one of {', '.join(map(str, kind))}")
        return value
    if kind in _CONVERT:
        try:
            value = _CONVERT[kind](value)
        except (ValueError, TypeError, OverflowError):
            raise WorkflowError(f"{place} is {value!r}, which is no {kind}") from None
    else:
        raise WorkflowError(f"{place} is {value!r}, but takes a link to {kind}")
    if validates_itself:
        return value
    for bound, beyond in (("min", lambda limit: value < limit), ("max", lambda limit: value > limit)):
        if bound in options and beyond(options[bound]):
            raise WorkflowError(f"{place} is {value}; its {bound}imum is {options[bound]}")
    return value


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError(value)
    return number


def _boolean(value: Any) -> bool:
    words = {"true": True, "false": False}
    return words[value.lower()] if isinstance(value, str) and value.lower() in words else bool(int(value))


_CONVERT = {"INT": int, "FLOAT": _finite, "BOOLEAN": _boolean, "STRING": str}
