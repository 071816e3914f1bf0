"""A workflow changed so that the built-in model runs it, whatever checkpoint, size, LoRA or language model it names.

What has to change is said in the log; prompts, seeds, steps and all else stay as they are.
"""

import logging

from ...glmimage_core.glm_image.files.components import BUILT_IN, NANO
from ...glmimage_core.glm_image.files.inspect import trained_on
from ...glmimage_core.glm_image.trained_on import TrainedOn
from .declared import Nodes, input_types, is_link, is_widget
from .errors import WorkflowError
from .workflow import Workflow

log = logging.getLogger(__name__)

WHOLE, WRITER = "GLMImageLoad", "GLMImageLoadAR"
AR_OF = {WHOLE: 1, WRITER: 0}  # the output that is the AR model
LOADERS = (WHOLE, WRITER, "GLMImageLoadGlyphEncoder", "GLMImageLoadDiT", "GLMImageLoadVAE")
LORA, HALVES = "GLMImageLoadLoRA", ("model", "ar")  # what it hands on, in the order of its outputs
REWRITERS = {"GLMImageEnhancePrompt": "prompt", "GLMImageEnhancePromptAPI": "prompt", "GLMImageDescribe": "instruction"}
TEXT = "PrimitiveStringMultiline"  # what a rewriter becomes: the text that it was given


def run_on_nano(workflow: Workflow, nodes: Nodes) -> None:
    """Change a workflow in place. Raises WorkflowError if it loads no model of GLM-Image."""
    prompt = workflow.prompt
    loaders = [node_id for node_id, node in prompt.items() if node["class_type"] in LOADERS]
    if not loaders:
        raise WorkflowError(f"--nano: the workflow loads no model of GLM-Image, so {NANO} can take no part in it")
    for node_id in loaders:
        _load_nano(prompt[node_id], nodes)
    for node_id, node in list(prompt.items()):
        if node["class_type"] == LORA:
            log.warning("%s is left out: there is no LoRA for nano", workflow.title(node_id))
            _hand_on(prompt, node_id)
        elif node["class_type"] in REWRITERS:
            log.warning("%s is left out: its text goes to nano as it is", workflow.title(node_id))
            text = node["inputs"].get(REWRITERS[node["class_type"]], "")
            prompt[node_id] = node | {"class_type": TEXT, "inputs": {"value": text}}
    _fit_sizes(workflow, nodes, trained_on(BUILT_IN[NANO]))
    workflow.ui = None  # it no longer says what is run, and a picture that carried it would mislead


def _load_nano(loader: dict, nodes: Nodes) -> None:
    """In float32, in which a CPU is at its best, and without what big models need."""
    defaults = {
        name: options["default"]
        for name, (kind, options) in input_types(nodes[loader["class_type"]]).items()
        if is_widget(kind, options) and "default" in options
    }
    loader["inputs"] = defaults | {"checkpoint": NANO, "dtype": "float32"}


def _hand_on(prompt: dict[str, dict], node_id: str) -> None:
    """Link what needs a LoRA's outputs to what the LoRA was given, and remove it."""
    given = prompt.pop(node_id)["inputs"]
    for node in prompt.values():
        for name, value in list(node["inputs"].items()):
            if is_link(value) and str(value[0]) == node_id and 0 <= value[1] < len(HALVES):
                node["inputs"][name] = given.get(HALVES[value[1]])


def _fit_sizes(workflow: Workflow, nodes: Nodes, limits: TrainedOn) -> None:
    """Sizes of plans become the nearest that the model knows, and the same sizes elsewhere become the same."""
    prompt = workflow.prompt
    writer = next(([node_id, AR_OF[node["class_type"]]] for node_id, node in prompt.items() if node["class_type"] in AR_OF), None)
    fitted: dict[tuple[int, int], tuple[int, int]] = {}
    for node_id, node in prompt.items():
        if node["class_type"] == "GLMImageSize" and writer is not None:
            node["inputs"] |= {"fit": True, "ar": writer}
        size = _size(prompt, nodes, node)
        if node["class_type"] == "GLMImageGeneratePrior" and size and limits.size_warnings(*size):
            fitted[size] = limits.nearest_size(*size)
            log.warning("%s: nano knows no %dx%d; %dx%d is taken", workflow.title(node_id), *size, *fitted[size])
    for node in prompt.values():
        if (size := _size(prompt, nodes, node)) in fitted:
            for name, side in zip(("width", "height"), fitted[size], strict=True):
                holder, own = _typed(prompt, nodes, node["inputs"], name)
                holder[own] = side


def _size(prompt: dict[str, dict], nodes: Nodes, node: dict) -> tuple[int, int] | None:
    """The width and height of a node where both are typed: in the node, or in a primitive that it is linked to."""
    typed = (_typed(prompt, nodes, node["inputs"], name) for name in ("width", "height"))
    sides = tuple(holder.get(own) for holder, own in typed)
    return sides if all(type(side) is int and side > 0 for side in sides) else None


def _typed(prompt: dict[str, dict], nodes: Nodes, inputs: dict, name: str) -> tuple[dict, str]:
    """Where the value of an input is typed, as inputs of a node and a name among them."""
    seen = set()
    while is_link(link := inputs.get(name)) and (source := str(link[0])) not in seen and source in prompt:
        if not getattr(nodes.get(prompt[source]["class_type"]), "CONSTANT", False):
            break
        seen.add(source)
        inputs, name = prompt[source]["inputs"], next(iter(input_types(nodes[prompt[source]["class_type"]])))
    return inputs, name
