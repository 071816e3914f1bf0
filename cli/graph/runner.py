"""Checks a workflow and walks it: each node once, after the nodes it needs, and again only when its inputs changed."""

import asyncio
import hashlib
import inspect
import logging
import math
from collections import Counter
from typing import Any

from .stock import Folders
from .workflow import Nodes, Workflow, WorkflowError, input_types, is_link

log = logging.getLogger(__name__)


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
        self._types: dict[type, dict[str, tuple]] = {}

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
        self._types = {}
        known = [node_id for node_id, node in workflow.prompt.items() if node["class_type"] in self.nodes]
        outputs = [node_id for node_id in known if getattr(self._class(workflow, node_id), "OUTPUT_NODE", False)]
        unknown = [workflow.title(node_id) for node_id in workflow.prompt if node_id not in known]
        if not outputs:
            here = f"; no such node here: {', '.join(unknown)}" if unknown else ""
            raise WorkflowError(f"the workflow has no output, such as a Save Image node{here}")
        depths: dict[str, int] = {}
        for node_id in outputs:
            self._check_links(workflow, node_id, depths, path=())
        for node_id in depths:
            self._check_values(workflow, node_id)
        for title in unknown:
            log.warning("%s is left out: no such node here, and no output needs it", title)
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

    def _class(self, workflow: Workflow, node_id: str) -> type:
        return self.nodes[workflow.prompt[node_id]["class_type"]]

    def _inputs(self, node_class: type) -> dict[str, tuple]:
        """The declared inputs of a class, asked for once a run: a loader looks through folders to tell."""
        if node_class not in self._types:
            self._types[node_class] = input_types(node_class)
        return self._types[node_class]

    def _links(self, workflow: Workflow, node_id: str) -> dict[str, tuple[str, int]]:
        """Declared inputs that are links, as name -> (node id, output)."""
        declared = self._inputs(self._class(workflow, node_id))
        inputs = workflow.prompt[node_id]["inputs"]
        return {name: (str(value[0]), value[1]) for name, value in inputs.items() if name in declared and is_link(value)}

    def _known_values(self, workflow: Workflow, node_id: str) -> dict[str, Any]:
        """The inputs whose values are known before anything runs: widgets, and links to nodes that only hand on theirs."""
        values = {}
        for name in self._inputs(self._class(workflow, node_id)):
            value = workflow.prompt[node_id]["inputs"].get(name)
            while is_link(value) and getattr(self._class(workflow, str(value[0])), "CONSTANT", False):
                value = workflow.prompt[str(value[0])]["inputs"].get("value")
            if value is not None and not is_link(value):
                values[name] = value
        return values

    def _check_links(self, workflow: Workflow, node_id: str, depths: dict[str, int], path: tuple[str, ...]) -> int:
        """Check the links above a node; fills depths, the length of the longest chain above each."""
        if node_id in path:
            raise WorkflowError(f"{workflow.title(node_id)}: its inputs lead back to itself")
        if node_id in depths:
            return depths[node_id]
        if workflow.prompt[node_id]["class_type"] not in self.nodes:
            foreign = {node["class_type"] for node in workflow.prompt.values()} - set(self.nodes)
            raise WorkflowError(
                f"{workflow.title(node_id)}: no such node here: {', '.join(sorted(foreign))}; run the workflow in ComfyUI, "
                "or use this pack's own sampler and VAE nodes"
            )
        declared = self._inputs(self._class(workflow, node_id))
        depth = 0
        for name, (source, output) in self._links(workflow, node_id).items():
            place = f"{workflow.title(node_id)}: {name}"
            if source not in workflow.prompt:
                raise WorkflowError(f"{place} is linked to node {source}, which is missing")
            source_depth = self._check_links(workflow, source, depths, (*path, node_id))
            returned = self._class(workflow, source).RETURN_TYPES
            if not 0 <= output < len(returned):
                raise WorkflowError(f"{place} is linked to output {output} of {workflow.title(source)}, which has none such")
            kind = declared[name][0]
            wanted = "COMBO" if isinstance(kind, list) else kind
            if wanted not in ("*", returned[output]):
                raise WorkflowError(f"{place} takes {wanted}, but {workflow.title(source)} gives {returned[output]}")
            depth = max(depth, 1 + source_depth)
        depths[node_id] = depth
        return depth

    def _check_values(self, workflow: Workflow, node_id: str) -> None:
        """Convert and check the values of one node in place, as ComfyUI does before it queues a graph."""
        node_class, inputs = self._class(workflow, node_id), workflow.prompt[node_id]["inputs"]
        required = node_class.INPUT_TYPES().get("required", {})
        validate = getattr(node_class, "VALIDATE_INPUTS", None)
        own = list(inspect.signature(validate).parameters) if validate else []
        for name, (kind, options) in self._inputs(node_class).items():
            place = f"{workflow.title(node_id)}: {name}"
            if name not in inputs:
                if name in required:
                    raise WorkflowError(f"{place} is missing")
            elif not is_link(inputs[name]):
                inputs[name] = _checked(place, inputs[name], kind, options, name in own)
        values = self._known_values(workflow, node_id) | {"folders": self.folders}
        if validate and (answer := validate(**{name: values.get(name) for name in own})) is not True:
            names = ", ".join(name for name in own if name != "folders")
            raise WorkflowError(f"{workflow.title(node_id)}: {names}: {answer}")

    def _arguments(self, workflow: Workflow, node_id: str, keys: dict[str, str]) -> dict[str, Any]:
        node_class, inputs = self._class(workflow, node_id), workflow.prompt[node_id]["inputs"]
        arguments = {name: inputs[name] for name in self._inputs(node_class) if name in inputs}
        for name, (source, output) in self._links(workflow, node_id).items():
            arguments[name] = self._results[keys[source]][output]
        hidden = {"FOLDERS": self.folders, "PROMPT": workflow.prompt, "WORKFLOW": workflow.ui}
        return arguments | {name: hidden[kind] for name, kind in node_class.INPUT_TYPES().get("hidden", {}).items()}

    def _key(self, workflow: Workflow, node_id: str, keys: dict[str, str]) -> str:
        """Equal for nodes that will give the same results: class, values, what their links are made of, files read."""
        node_class, inputs = self._class(workflow, node_id), workflow.prompt[node_id]["inputs"]
        links = self._links(workflow, node_id)
        parts = [workflow.prompt[node_id]["class_type"]]
        for name in sorted(set(self._inputs(node_class)) & set(inputs)):
            source, output = links.get(name, (None, None))
            parts.append(f"{name}={inputs[name]!r}" if source is None else f"{name}<-{keys[source]}.{output}")
        known = self._known_values(workflow, node_id)
        if hasattr(node_class, "IS_CHANGED") and len(known) == len(self._inputs(node_class)):
            parts.append(node_class.IS_CHANGED(**known, folders=self.folders))
        if getattr(node_class, "OUTPUT_NODE", False):
            parts.append(node_id)  # what an output node leaves is a file, so two of them never stand for each other
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _execute(self, workflow: Workflow, node_id: str, keys: dict[str, str]) -> tuple:
        node_class = self._class(workflow, node_id)
        arguments = self._arguments(workflow, node_id, keys)
        try:
            results = getattr(node_class(), node_class.FUNCTION)(**arguments)
            return asyncio.run(results) if inspect.iscoroutine(results) else results
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            raise NodeError(workflow.title(node_id), error) from error


def _checked(place: str, value: Any, kind: Any, options: dict, validates_itself: bool) -> Any:
    """A value converted to its declared type and within its declared range. Raises WorkflowError."""
    if isinstance(kind, list):
        if value not in kind and not validates_itself:
            raise WorkflowError(f"{place} is {value!r}; it must be one of {', '.join(map(str, kind))}")
        return value
    if kind == "*":
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
