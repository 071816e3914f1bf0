"""Checks a workflow and runs it: each node once, after the nodes it needs, and again only when its inputs changed."""

import asyncio
import hashlib
import inspect
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from .declared import Declared, Nodes, declared, is_link, is_widget, validated_by_class
from .errors import WorkflowError, node_boundary
from .stock import Folders
from .workflow import Workflow

log = logging.getLogger(__name__)
GROUP_NODES = ("workflow>", "workflow/")  # how the class types of ComfyUI's older group nodes begin
BROADCAST = "Everywhere"  # in the class types of the nodes that connect inputs by type or name, without links


class Runner:
    """Runs workflows one after another.

    nodes: class types and their classes. keep: hold results for the next run, so that it only runs what changed; without
    it each result goes as soon as nothing needs it, so that a loaded model leaves memory after its last use. on_finished is
    called with the title of each node that ran and its seconds.
    """

    def __init__(
        self,
        nodes: Nodes,
        folders: Folders,
        *,
        keep: bool = False,
        on_finished: Callable[[str, float], None] = lambda title, seconds: None,
    ):
        self.nodes = nodes
        self.folders = folders
        self.keep = keep
        self.on_finished = on_finished
        self.executed: list[str] = []  # ids of the nodes that ran in the last run, in order
        self._results: dict[str, tuple] = {}  # by the nodes' keys

    def run(self, workflow: Workflow) -> None:
        """Check everything, then run what the output nodes need.

        Raises WorkflowError, before anything runs, when the workflow or a value is wrong, and NodeError when a node fails.
        """
        run = Run(workflow, self.nodes, self.folders)
        workflow = run.workflow
        order = run.check()
        keys = run.keys(order)
        uses = Counter(keys[source] for node_id in order for source in run.sources(node_id))
        self._results = {key: result for key, result in self._results.items() if key in keys.values()}
        self.executed = []
        for node_id in order:
            if keys[node_id] not in self._results:
                began = time.perf_counter()
                results = {source: self._results[keys[source]] for source in run.sources(node_id)}
                self._results[keys[node_id]] = run.execute(node_id, results)
                del results  # a result that nothing needs any more must leave memory below
                self.executed.append(node_id)
                self.on_finished(workflow.title(node_id), time.perf_counter() - began)
            uses.subtract(keys[source] for source in run.sources(node_id))
            if not self.keep:
                self._results = {key: result for key, result in self._results.items() if uses[key] > 0}


class Run:
    """One run of one workflow. What a node class declares is asked for once a run."""

    def __init__(self, workflow: Workflow, nodes: Nodes, folders: Folders):
        self.asked = workflow
        self.workflow = in_parts(workflow, nodes)
        self.prompt = self.workflow.prompt
        self.nodes = nodes
        self.folders = folders
        self._declared: dict[type, Declared] = {}

    def check(self) -> list[str]:
        """Check all nodes that an output needs. Returns their ids in the order in which they will run.

        Raises WorkflowError.
        """
        known = [node_id for node_id, node in self.prompt.items() if node["class_type"] in self.nodes]
        outputs = [node_id for node_id in known if getattr(self._class(node_id), "OUTPUT_NODE", False)]
        unknown = [self.workflow.title(node_id) for node_id in self.prompt if node_id not in known]
        if not outputs:
            here = f"; no such node here: {', '.join(unknown)}" if unknown else ""
            raise WorkflowError(f"the workflow has no output, such as a Save Image node{here}")
        depths = self._depths(outputs)
        for node_id in depths:
            self._check_values(node_id)
        for title in unknown:
            log.warning("%s is left out: no such node here, and no output needs it", title)
        return self._order(outputs, depths)

    def keys(self, order: list[str]) -> dict[str, str]:
        """A key for each node, given in running order. Nodes with equal keys give equal results."""
        keys: dict[str, str] = {}
        for node_id in order:
            keys[node_id] = self._key(node_id, keys)
        return keys

    def sources(self, node_id: str) -> list[str]:
        """The ids of the nodes that an input is linked to, once for each link."""
        return [source for source, _ in self._links(node_id).values()]

    def execute(self, node_id: str, results: Mapping[str, tuple]) -> tuple:
        """Run one node. results: what each of its sources returned, by id. Raises NodeError."""
        node_class, inputs = self._class(node_id), self.prompt[node_id]["inputs"]
        arguments = {name: inputs[name] for name in self._inputs(node_id) if name in inputs}
        arguments |= {name: results[source][output] for name, (source, output) in self._links(node_id).items()}
        ui = self.asked.ui
        hidden = {"FOLDERS": self.folders, "PROMPT": self.asked.prompt, "WORKFLOW": ui, "EXTRA_PNGINFO": ui and {"workflow": ui}}
        arguments |= {name: hidden[kind] for name, kind in self._declares(node_id).hidden.items()}
        log.info("%s runs", self.workflow.title(node_id))
        with node_boundary(self.workflow.title(node_id)):
            outputs = getattr(node_class(), node_class.FUNCTION)(**arguments)
            return asyncio.run(outputs) if inspect.iscoroutine(outputs) else outputs

    def _order(self, outputs: list[str], depths: dict[str, int]) -> list[str]:
        """Depth first, the longest chain first, so that loaders run as late as they can."""
        order: dict[str, None] = {}
        waiting = list(reversed(outputs))
        while waiting:
            sources = [source for source in set(self.sources(waiting[-1])) if source not in order]
            if sources and waiting[-1] not in order:
                waiting += sorted(sources, key=lambda source: (-depths[source], source), reverse=True)  # the last is the next
            else:
                order[waiting.pop()] = None
        return list(order)

    def _class(self, node_id: str) -> type:
        return self.nodes[self.prompt[node_id]["class_type"]]

    def _declares(self, node_id: str) -> Declared:
        node_class = self._class(node_id)
        if node_class not in self._declared:
            with node_boundary(self.workflow.title(node_id)):
                self._declared[node_class] = declared(node_class)
        return self._declared[node_class]

    def _inputs(self, node_id: str) -> dict[str, tuple[Any, dict]]:
        return self._declares(node_id).inputs

    def _links(self, node_id: str) -> dict[str, tuple[str, int]]:
        """Declared inputs that are links, as name -> (node id, output)."""
        inputs, known = self.prompt[node_id]["inputs"], self._inputs(node_id)
        return {name: (str(value[0]), value[1]) for name, value in inputs.items() if name in known and is_link(value)}

    def _known_values(self, node_id: str) -> dict[str, Any]:
        """The inputs whose values are known before anything runs: widgets, and links to nodes that only hand on theirs."""
        values = {}
        for name in self._inputs(node_id):
            value = self.prompt[node_id]["inputs"].get(name)
            while is_link(value) and getattr(self._class(str(value[0])), "CONSTANT", False):
                (constant,) = self._inputs(str(value[0]))
                value = self.prompt[str(value[0])]["inputs"].get(constant)
            if value is not None and not is_link(value):
                values[name] = value
        return values

    def _depths(self, outputs: list[str]) -> dict[str, int]:
        """Check the links above the outputs. Returns the length of the longest chain above each node that they need."""
        sources: dict[str, list[str]] = {}
        waiting = list(reversed(outputs))
        while waiting:
            node_id = waiting.pop()
            if node_id not in sources:
                sources[node_id] = self._checked_sources(node_id)
                waiting += reversed(sources[node_id])
        depths: dict[str, int] = {}
        try:
            for node_id in TopologicalSorter(sources).static_order():
                depths[node_id] = max((1 + depths[source] for source in sources[node_id]), default=0)
        except CycleError as error:
            raise WorkflowError(f"{self.workflow.title(error.args[1][0])}: its inputs lead back to itself") from None
        return depths

    def _checked_sources(self, node_id: str) -> list[str]:
        """The ids of the nodes that a node's inputs are linked to. Raises WorkflowError for a node or a link that cannot be."""
        title = self.workflow.title(node_id)
        if (class_type := self.prompt[node_id]["class_type"]) not in self.nodes:
            raise WorkflowError(f"{title}: {self._advice(class_type)}")
        for name, (source, output) in self._links(node_id).items():
            if source not in self.prompt:
                raise WorkflowError(f"{title}: {name} is linked to node {source}, which is missing")
            if self.prompt[source]["class_type"] in self.nodes:
                self._check_link(f"{title}: {name}", self._inputs(node_id)[name][0], source, output)
        return self.sources(node_id)

    def _advice(self, class_type: str) -> str:
        """What to do about a node that is not known here."""
        if class_type.startswith(GROUP_NODES):
            return "it is a group node; in ComfyUI, convert it to nodes or to a subgraph, and save the workflow again"
        foreign = {node["class_type"] for node in self.prompt.values()} - set(self.nodes)
        return (
            f"no such node here: {', '.join(sorted(foreign))}; run the workflow in ComfyUI, "
            "or use this pack's own sampler and VAE nodes"
        )

    def _check_link(self, place: str, kind: Any, source: str, output: int) -> None:
        """Check that a link comes from an output there is, and of the type that its input takes."""
        returned = self._class(source).RETURN_TYPES
        if not 0 <= output < len(returned):
            raise WorkflowError(f"{place} is linked to output {output} of {self.workflow.title(source)}, which has none such")
        taken = "COMBO" if isinstance(kind, list) else kind
        if taken not in ("*", returned[output]):
            raise WorkflowError(f"{place} takes {taken}, but {self.workflow.title(source)} gives {returned[output]}")

    def _check_values(self, node_id: str) -> None:
        """Convert and check the values of one node in place, as ComfyUI does before it queues a graph."""
        node_class, inputs, title = self._class(node_id), self.prompt[node_id]["inputs"], self.workflow.title(node_id)
        own = validated_by_class(node_class)
        for name, (kind, options) in self._inputs(node_id).items():
            if name not in inputs:
                if name in self._declares(node_id).required:
                    how = "is missing" if is_widget(kind, options) else f"is not connected{self._connected_elsewhere()}"
                    raise WorkflowError(f"{title}: {name} {how}")
            elif not is_link(inputs[name]):
                inputs[name] = _checked(f"{title}: {name}", inputs[name], (kind, options), validates_itself=name in own)
        if not own:
            return
        values = self._known_values(node_id) | {"folders": self.folders}
        names = ", ".join(name for name in own if name != "folders")
        with node_boundary(f"{title}: {names}"):
            answer = node_class.VALIDATE_INPUTS(**{name: values.get(name) for name in own})
        if answer is not True:
            raise WorkflowError(f"{title}: {names}: {answer}")

    def _connected_elsewhere(self) -> str:
        """Which node of the workflow may have connected an input in the browser, which does so without a link."""
        broadcasts = [self.workflow.title(node_id) for node_id, node in self.prompt.items() if BROADCAST in node["class_type"]]
        return f"; {broadcasts[0]} connects inputs in the browser only, so draw the links there" if broadcasts else ""

    def _key(self, node_id: str, keys: Mapping[str, str]) -> str:
        """Made of the class, the values, the keys of the sources and the files that are read."""
        node_class, inputs = self._class(node_id), self.prompt[node_id]["inputs"]
        links = self._links(node_id)
        parts = [self.prompt[node_id]["class_type"]]
        for name in sorted(set(self._inputs(node_id)) & set(inputs)):
            source, output = links.get(name, (None, None))
            parts.append(f"{name}={inputs[name]!r}" if source is None else f"{name}<-{keys[source]}.{output}")
        known = self._known_values(node_id)
        if hasattr(node_class, "IS_CHANGED") and len(known) == len(self._inputs(node_id)):
            with node_boundary(self.workflow.title(node_id)):
                if "folders" in inspect.signature(node_class.IS_CHANGED).parameters:
                    known |= {"folders": self.folders}
                parts.append(node_class.IS_CHANGED(**known))
        if getattr(node_class, "OUTPUT_NODE", False):
            parts.append(node_id)  # what an output node leaves is a file, so two of them never stand for each other
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def in_parts(workflow: Workflow, nodes: Nodes) -> Workflow:
    """The workflow with each loader of several models as a node for each of them, which runs and lets go on its own.

    A class says so by PARTS: a class for each of its outputs, whose inputs are among its own.
    """
    prompt: dict[str, dict] = {}
    outputs: dict[tuple[str, int], str] = {}  # node and output -> the node that stands for it
    for node_id, node in workflow.prompt.items():
        parts = getattr(nodes.get(node["class_type"]), "PARTS", ())
        for output, part in enumerate(parts):
            names = inspect.signature(getattr(part, part.FUNCTION)).parameters
            inputs = {name: value for name, value in node["inputs"].items() if name in names}
            outputs[node_id, output] = f"{node_id}:{part.RETURN_NAMES[0]}"
            prompt[outputs[node_id, output]] = node | {"class_type": part.__name__, "inputs": inputs}
        if not parts:
            prompt[node_id] = node
    for node_id, node in prompt.items():
        links = {name: (str(value[0]), value[1]) for name, value in node["inputs"].items() if is_link(value)}
        if moved := {name: [outputs[place], 0] for name, place in links.items() if place in outputs}:
            prompt[node_id] = node | {"inputs": node["inputs"] | moved}
    return Workflow(prompt, workflow.ui)


def _checked(place: str, value: Any, declared: tuple[Any, dict], *, validates_itself: bool) -> Any:
    """A value converted to its declared type and within its declared range. Raises WorkflowError."""
    kind, options = declared
    if isinstance(kind, list):
        if value not in kind and isinstance(value, str) and value.replace("\\", "/") in kind:
            return value.replace("\\", "/")  # of a file in a folder, from Windows
        if value not in kind and not (validates_itself and isinstance(value, str)):
            shown = str if isinstance(value, str) else repr  # the number 1 is not the choice '1'
            raise WorkflowError(f"{place} is {value!r}; it must be one of {', '.join(map(shown, kind))}")
        return value
    if kind == "*":
        return value
    if kind not in _CONVERT:
        raise WorkflowError(f"{place} is {value!r}, but takes a link to {kind}")
    try:
        value = _CONVERT[kind](value)
    except (ValueError, TypeError, OverflowError):
        raise WorkflowError(f"{place} is {value!r}, which is no {kind}") from None
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


def _text(value: Any) -> str:
    if not isinstance(value, str | int | float):  # null, a list and an object are no prompt, though each can be written as text
        raise TypeError(value)
    return str(value)


_CONVERT = {"INT": int, "FLOAT": _finite, "BOOLEAN": _boolean, "STRING": _text}
