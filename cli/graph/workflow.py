"""A workflow file in memory: API format, UI format, or a picture that carries one.

Everything is brought to API format: node id -> {"class_type", "inputs", "_meta": {"title"}}, an input being a value or
a link [node id, output].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ...glmimage_core.json_text import parse_json
from .classes import title_of
from .declared import Nodes, input_types
from .errors import WorkflowError
from .ui_format import BYPASSED, MUTED, read_graph
from .unfold import unfold

PICTURES = (b"\x89PNG", b"\xff\xd8", b"RIFF")  # how PNG, JPEG and WebP begin
PICTURE_NAMES = (".png", ".jpg", ".jpeg", ".webp")


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
    """Read a .json or a picture. Raises WorkflowError for a file that is missing or neither of them."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WorkflowError(f"{path}: {error.strerror}") from error
    try:
        if not content.startswith(PICTURES) and path.suffix.lower() not in PICTURE_NAMES:
            return WorkflowFile(path, parse_json(content))
        texts = _carried(content)
        data, prompt = (parse_json(texts[name]) if name in texts else None for name in ("workflow", "prompt"))
        return WorkflowFile(path, data, prompt)
    except UnidentifiedImageError as error:
        raise WorkflowError(f"{path} is not a picture") from error
    except Image.DecompressionBombError as error:
        raise WorkflowError(f"{path}: {error}") from error
    except OSError as error:
        raise WorkflowError(f"{path} is not a whole picture: {error}") from error
    except UnicodeDecodeError as error:
        raise WorkflowError(f"{path} is neither a workflow in JSON nor a picture that carries one") from error
    except ValueError as error:
        carried = content.startswith(PICTURES)
        raise WorkflowError(
            f"{path}: what it carries is not JSON: {error}" if carried else f"{path} is not JSON: {error}"
        ) from error


def _carried(content: bytes) -> dict[str, str]:
    """The texts of a picture by name: those of a PNG, and of EXIF those that begin with "prompt:" or "workflow:".

    ComfyUI writes the latter into WebP, under tags that mean a camera's maker and model.
    """
    with Image.open(BytesIO(content)) as picture:
        texts = dict(getattr(picture, "text", {}))
        try:
            tags = [tag for tag in picture.getexif().values() if isinstance(tag, str)]
        except SyntaxError:  # of Pillow, for EXIF that it cannot read
            tags = []
    for tag in tags:
        name, colon, text = tag.partition(":")
        if colon and name.lower() in ("prompt", "workflow"):
            # Pillow takes the bytes for Latin-1; ComfyUI writes ASCII, other programs UTF-8
            texts.setdefault(name.lower(), text.rstrip("\0").encode("latin-1", "replace").decode("utf-8", "replace"))
    return texts


def parse_workflow(data: Any, nodes: Nodes, enable: Sequence[str] = ()) -> Workflow:
    """A parsed JSON in either format."""
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        read_graph(data)  # below, each node has an id and a type
        for name in enable:
            _switch_on(data["nodes"], name, nodes)
        return Workflow(unfold(data, nodes), data)
    if enable:
        raise WorkflowError(f"--enable {enable[0]}: a file in API format holds no node that is switched off; give the UI format")
    return Workflow(_api_format(data))


def _switch_on(ui_nodes: list[dict], name: str, nodes: Nodes) -> None:
    """Switch on the node of that id or title. Raises WorkflowError when none is switched off under it."""
    off = [node for node in ui_nodes if node.get("mode") in (MUTED, BYPASSED)]
    titles = {node["id"]: title_of(node["type"], node.get("title"), nodes) for node in off}
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
        place = f"node {node_id} ({node['class_type']})"
        node.setdefault("inputs", {})
        meta = node.get("_meta", {})
        for name, value in (("inputs", node["inputs"]), ("_meta", meta)):
            if not isinstance(value, dict):
                raise WorkflowError(f"{place}: {name} is {value!r}, which is no object")
        if not isinstance(meta.get("title"), str | None):
            raise WorkflowError(f"{place}: its title is {meta['title']!r}, which is no text")
    return data
