"""A graph in UI format under construction, laid out in columns.

Nodes must not lie over each other in any renderer. So a node is as tall as the taller one of both draws it, the classic one or
ComfyUI's new one (Nodes 2.0), and the next one leaves room for its title and its badge. The figures below are what both draw in
ComfyUI 0.33.0, in the graph's units.

A graph is described in columns, as if there were room without end. `Graph.settle` then finds places for its groups in which the
whole graph opens large enough to be read.
"""

import math
import re
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from glm_image_pack.cli.graph.declared import input_types, is_widget
from glm_image_pack.cli.graph.nodes import ALL_NODES as OWN_NODES

from graph_packing import (
    BADGE,
    GAP,
    GROUP_BOTTOM,
    GROUP_MARGIN,
    GROUP_TITLE,
    TITLE,
    Block,
    Item,
    Link,
    pack,
    sheet,
)

CONTROL = "control_after_generate"
BYPASSED = 4
SLOT, WIDGET, MARGIN = 20, 28, 14  # heights: of a row of sockets, of a widget; around them
LINE_OF_TEXT, TEXT = 36, 68  # of widgets for short and long texts
CLASSIC_WIDGET, CLASSIC_TEXT = 24, 54  # in the classic renderer, which gives what a seed does after a run a row of its own
PREVIEW = 280  # how much a node grows by that shows a picture forming
SAID = 60  # how much a node grows by that says something when it ran
ERROR = 50  # what Nodes 2.0 adds below a node whose value is refused
ENTER = 24  # what Nodes 2.0 has below the widgets of a node that stands for a subgraph
PICTURE = 240  # the least that a node shows a picture in
LETTER, ROW, PARAGRAPH, HEADING, CODE, NOTE = 4.75, 16, 6, 21, 48, 46  # of a note, whose text is smaller than a widget's
SHORTEST_NOTE, NOTE_MARGIN = 110, 28
WINDOW, CORNER = (1520, 790), (68, 92)  # pixels: what menus leave of a window of 1600 x 900, and its upper left corner
READABLE, LARGEST = 0.58, 0.9  # scales: the front end's classic renderer draws no text in a graph that is drawn below 0.572
LATER = 700  # what an attempt costs more than the one before, in the units of graph_packing.py
ATTEMPTS = (  # columns, scale, and how much nodes get of the height that they would like to have
    *((5, 0.6, 1.0), (5, 0.6, 0.5), (5, 0.585, 0.5), (6, 0.585, 1.0), (6, 0.585, 0.5), (6, 0.585, 0.25)),
    *((6, 0.575, 0.5), (6, 0.575, 0.0), (7, 0.575, 0.0)),
)
SAYING = (  # and show no picture
    *("GLMImageChangedMask", "GLMImageLoadLoRA", "GLMImageLoadPrior", "GLMImagePriorEntropy"),
    *("GLMImageChooseSurest", "GLMImageChooseByText", "GLMImageSize"),
)
PRIMITIVE = "PrimitiveNode"  # of the front end alone: a value for widgets of other nodes
STOCK_PICTURES = ("LoadImage", "SaveImage", "PreviewImage", "PreviewAny")


def _stock(title: str, outputs: tuple[str, ...], **inputs) -> type:
    """The inputs and outputs of a node of ComfyUI that only ComfyUI can run."""
    members = {"TITLE": title, "RETURN_TYPES": outputs, "INPUT_TYPES": classmethod(lambda cls: {"required": inputs})}
    return type("Stock", (), members)


_SEED = ("INT", {"default": 0, CONTROL: True})
_SIDE = ("INT", {"default": 1024})
ALL_NODES = OWN_NODES | {
    "EmptySD3LatentImage": _stock(
        "EmptySD3LatentImage", ("LATENT",), width=_SIDE, height=_SIDE, batch_size=("INT", {"default": 1})
    ),
    "KSampler": _stock(
        "KSampler",
        ("LATENT",),
        model=("MODEL", {}),
        seed=_SEED,
        steps=("INT", {"default": 50}),
        cfg=("FLOAT", {"default": 1.5}),
        sampler_name=(["euler"], {"default": "euler"}),
        scheduler=(["simple"], {"default": "simple"}),
        positive=("CONDITIONING", {}),
        negative=("CONDITIONING", {}),
        latent_image=("LATENT", {}),
        denoise=("FLOAT", {"default": 1.0}),
    ),
    "RandomNoise": _stock("RandomNoise", ("NOISE",), noise_seed=_SEED),
    "KSamplerSelect": _stock("KSamplerSelect", ("SAMPLER",), sampler_name=(["euler"], {"default": "euler"})),
    "CFGGuider": _stock(
        "CFG Guider",
        ("GUIDER",),
        model=("MODEL", {}),
        positive=("CONDITIONING", {}),
        negative=("CONDITIONING", {}),
        cfg=("FLOAT", {"default": 1.5}),
    ),
    "SamplerCustomAdvanced": _stock(
        "SamplerCustomAdvanced",
        ("LATENT", "LATENT"),
        noise=("NOISE", {}),
        guider=("GUIDER", {}),
        sampler=("SAMPLER", {}),
        sigmas=("SIGMAS", {}),
        latent_image=("LATENT", {}),
    ),
}


def _properties(node_type: str) -> dict:
    """What ComfyUI keeps of a node's origin: without the pack it names the pack. Notes and primitives are the front end's."""
    if node_type in ("MarkdownNote", PRIMITIVE):
        return {}
    origin = "comfyui-glm-image" if node_type.startswith("GLMImage") else "comfy-core"
    return {"cnr_id": origin, "Node name for S&R": node_type}


class Box(NamedTuple):
    """What a node may cover: its body, and below it the picture that it shows while it runs."""

    left: float
    top: float
    right: float
    bottom: float


def drawn_height(node: dict) -> int:
    """How tall a node of the file is drawn at the least, without its title and without a picture that forms."""
    if node["type"] == "MarkdownNote":
        return note_height(node["widgets_values"][0], node["size"][0])
    if node["type"] == PRIMITIVE:
        return MARGIN + SLOT + WIDGET * len(node["widgets_values"])
    if node["type"] not in ALL_NODES:
        return _blueprint_height(node)
    inputs = input_types(ALL_NODES[node["type"]])
    widgets = [(kind, options) for kind, options in inputs.values() if is_widget(kind, options)]
    texts = sum(bool(options.get("multiline")) for _, options in widgets)
    lines = sum(kind == "STRING" for kind, _ in widgets) - texts
    controls = sum(bool(options.get(CONTROL)) for _, options in widgets)
    slots = max(len(inputs) - len(widgets), len(node["outputs"]))
    picture = PICTURE if node["type"] in STOCK_PICTURES else 0
    short = len(widgets) - texts
    new = WIDGET * (short - lines) + LINE_OF_TEXT * lines + TEXT * texts
    rows = max(new, CLASSIC_WIDGET * (short + controls) + CLASSIC_TEXT * texts)
    return MARGIN + SLOT * slots + rows + picture


def _blueprint_height(node: dict) -> int:
    """How tall a node is drawn that stands for a subgraph. Its seeds have no control in either renderer."""
    kinds = [slot["type"] for slot in node["inputs"] if "widget" in slot]
    texts = kinds.count("STRING")
    slots = max(len(node["inputs"]) - len(kinds), len(node["outputs"]))
    return MARGIN + SLOT * slots + WIDGET * (len(kinds) - texts) + TEXT * texts + ENTER


def note_height(text: str, width: int) -> int:
    """How tall a note of that width shows all of a text in Markdown."""
    height, seen = NOTE, re.sub(r"\]\([^)]*\)|[*\[]", "", text)
    for number, part in enumerate(re.split(r"```\n?", seen)):
        lines = [line for line in part.split("\n") if line.strip()]
        if number % 2:
            height += CODE + ROW * len(lines)
            continue
        for line in lines:
            rows = math.ceil(len(line) * LETTER / (width - NOTE_MARGIN))
            height += HEADING if line.startswith("##") else PARAGRAPH + ROW * rows
    return max(SHORTEST_NOTE, height)


class Column:
    """Nodes of one width below each other."""

    def __init__(self, graph: "Graph", left: int, width: int, top: int = 0):
        self.graph, self.left, self.width, self.top = graph, left, width, top

    def add(self, node_type: str, /, *, taller: int = 0, preview: int = 0, **settings) -> dict:
        """The next node. taller: by how much it exceeds what it needs. preview: room for the picture that it shows."""
        node = self.graph.add(node_type, (self.left, self.top), self.width, taller=taller, preview=preview, **settings)
        self.end(node)
        return node

    def end(self, node: dict) -> None:
        """What comes next stands below that node."""
        self.top = round(self.graph.boxes[node["id"]].bottom) + GAP


class Graph:
    """A graph in UI format under construction. Links are (node, output index)."""

    first = 1
    """The number of its first node. The front end renumbers nodes of a subgraph whose numbers the graph around it has, too."""

    def __init__(self, name: str):
        self.name = name
        self.nodes: list[dict] = []
        self.links: list[list] = []
        self.groups: list[dict] = []
        self.boxes: dict[int, Box] = {}
        self.wishes: dict[int, int] = {}  # by how much nodes would like to exceed what they need
        self.members: list[list[dict]] = []  # of the groups
        self.subgraphs: list[dict] = []

    def column(self, left: int, width: int, top: int = 0) -> Column:
        return Column(self, left, width, top)

    def note(self, column: Column, title: str, text: str) -> dict:
        """A note in Markdown, as tall as its text."""
        return column.add("MarkdownNote", title=title, values=[text])

    def add(
        self,
        node_type: str,
        position: tuple[float, float],
        width: int,
        /,  # nodes have inputs of these names, too
        *,
        taller: int = 0,
        preview: int = 0,
        title: str | None = None,
        values: list | None = None,
        bypassed: bool = False,
        seeds: str = "randomize",
        **inputs,
    ) -> dict:
        """Place a node. inputs: links and widget values by name; all other widgets take their defaults. seeds: what its seed
        does after a run."""
        node = {
            "id": self.first + len(self.nodes),
            "type": node_type,
            "pos": list(position),
            "size": [width, 0],
            "flags": {},
            "order": len(self.nodes),
            "mode": BYPASSED if bypassed else 0,
            "inputs": [],
            "outputs": [],
            "properties": _properties(node_type),
            "widgets_values": values or [],
        }
        if title:
            node["title"] = title
        if node_type in ALL_NODES:
            self._connect(node, inputs, seeds)
        self._put(node, taller, preview or SAID * (node_type in SAYING))
        return node

    def place(self, column: Column, host: dict, subgraph: dict, *, preview: int = 0) -> dict:
        """The next node of a column: it stands for a subgraph."""
        place = {
            "id": self.first + len(self.nodes),
            "order": len(self.nodes),
            "pos": [column.left, column.top],
            "size": [column.width, 0],
        }
        self._put(node := host | place, 0, preview)
        self.subgraphs.append(subgraph)
        column.end(node)
        return node

    def _put(self, node: dict, taller: int, preview: int) -> None:
        """A node gets its height, and the graph gets the node."""
        (left, top), (width, _) = node["pos"], node["size"]
        node["size"][1] = drawn_height(node) + taller
        self.boxes[node["id"]] = Box(left, top, left + width, top + node["size"][1] + preview)
        self.wishes[node["id"]] = taller
        self.nodes.append(node)

    def choose(self, column: Column, title: str, nodes: Sequence[dict], name: str, value: str) -> None:
        """One node whose value is the choice of several nodes, above them in their group. name: of their input, a combo."""
        chooser = column.add(PRIMITIVE, title=title, values=[value, "fixed", ""])  # "": no filter for what it may change to
        output = {"name": "COMBO", "type": "COMBO", "widget": {"name": name}, "links": []}
        chooser["outputs"].append(output)
        for node in nodes:
            self._link((chooser, 0), node, [slot["name"] for slot in node["inputs"]].index(name))
        next(members for members in self.members if nodes[0] in members).insert(0, chooser)

    def _link(self, source: tuple[dict, int], node: dict, place: int) -> None:
        """A link to a node's input, by its place among them."""
        (origin, output), slot = source, node["inputs"][place]
        slot["link"] = len(self.links) + 1
        origin["outputs"][output]["links"].append(slot["link"])
        self.links.append([slot["link"], origin["id"], output, node["id"], place, slot["type"]])

    def _connect(self, node: dict, inputs: dict, seeds: str) -> None:
        node_class = ALL_NODES[node["type"]]
        for name, (kind, options) in input_types(node_class).items():
            widget = is_widget(kind, options)
            slot_type = "COMBO" if isinstance(kind, list) else kind
            slot = {"name": name, "type": slot_type, **({"widget": {"name": name}} if widget else {}), "link": None}
            node["inputs"].append(slot)
            if isinstance(inputs.get(name), tuple):
                self._link(inputs[name], node, len(node["inputs"]) - 1)
            if widget:
                value = inputs.get(name)
                node["widgets_values"].append(options.get("default", "") if value is None or isinstance(value, tuple) else value)
                if options.get(CONTROL):
                    node["widgets_values"].append(seeds)
        if node["type"] == "LoadImage":
            node["widgets_values"].append("image")  # its upload button
        kinds = (
            () if node["type"] in ("SaveImage", "PreviewImage") else node_class.RETURN_TYPES
        )  # older ComfyUIs give it no output
        names = getattr(node_class, "RETURN_NAMES", kinds)
        node["outputs"] = [{"name": name, "type": kind, "links": []} for name, kind in zip(names, kinds, strict=True)]

    def group(self, title: str, color: str, *nodes: dict) -> None:
        """A numbered, coloured frame around nodes, their titles and the pictures that they show."""
        number = len(self.groups) + 1
        self.members.append(sorted(nodes, key=lambda node: node["id"]))
        self.groups.append(
            {"id": number, "title": f"{number}  {title}", "bounding": [], "color": color, "font_size": 24, "flags": {}}
        )
        self._frame()

    def _frame(self) -> None:
        """Draw the frames around their nodes."""
        for group, nodes in zip(self.groups, self.members, strict=True):
            boxes = [self.boxes[node["id"]] for node in nodes]
            left, top = min(box.left for box in boxes), min(box.top for box in boxes)
            right, bottom = max(box.right for box in boxes), max(box.bottom for box in boxes)
            above = GROUP_TITLE + TITLE + BADGE
            group["bounding"] = [
                left - GROUP_MARGIN,
                top - above,
                right - left + 2 * GROUP_MARGIN,
                bottom - top + above + GROUP_BOTTOM,
            ]

    def settle(self) -> None:
        """Move groups and notes to where the whole graph opens large enough to be read.

        Groups stand in reading order from above, with the columns that they are described in where there is room. Raises
        ValueError if there is no room at all.
        """
        links = []
        for _, source, output, target, place, _ in self.links:
            ends = source, self._below(source, "outputs", output), target, self._below(target, "inputs", place)
            links.append(Link(*ends))
        found = []
        for number, (columns, scale, share) in enumerate(ATTEMPTS):
            on = sheet(columns, scale)
            if packed := pack(self._blocks(on.width, share), links, on):
                cost, places = packed
                found.append((cost + LATER * number, number, on, places))
        if not found:
            raise ValueError(f"{self.name}: there is no room for {len(self.nodes)} nodes; make notes shorter, or a group smaller")
        _, _, on, places = min(found, key=lambda attempt: attempt[:2])
        for node in self.nodes:
            left, top, height = places[node["id"]]
            self.boxes[node["id"]] = Box(left, top, left + on.width, top + height + self._shown(node))
            node["pos"], node["size"] = [left, top], [on.width, height]
        self._frame()

    def _blocks(self, width: int, share: float) -> list[Block]:
        """Notes without a frame, then groups, at that width of their nodes and with that share of the height they would like."""

        def item(number: int, node: dict) -> Item:
            height = drawn_height(node | {"size": [width, 0]}) + int(share * self.wishes[node["id"]])
            return Item(number, node["id"], height, self._shown(node))

        framed = {node["id"] for nodes in self.members for node in nodes}
        blocks = [Block(((item(0, node),),), framed=False) for node in self.nodes if node["id"] not in framed]
        for nodes in self.members:
            lefts = sorted({node["pos"][0] for node in nodes})
            numbered = list(enumerate(nodes))
            described = tuple(tuple(item(*entry) for entry in numbered if entry[1]["pos"][0] == left) for left in lefts)
            blocks.append(Block(described, low=min(node["pos"][1] for node in nodes) > 0))
        return blocks

    def _shown(self, node: dict) -> int:
        """How much room below a node is for what it shows while it runs."""
        box = self.boxes[node["id"]]
        return round(box.bottom - box.top - node["size"][1])

    def _below(self, node_id: int, side: str, number: int) -> int:
        """How far a socket is below the top of its node, about."""
        slots = self.nodes[node_id - self.first][side]
        sockets = sum("widget" not in slot for slot in slots)
        return MARGIN + (SLOT * number if number < sockets else SLOT * sockets + WIDGET * (number - sockets))

    def ui(self) -> dict:
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"glm-image/{self.name}")),
            "revision": 0,
            "last_node_id": self.first + len(self.nodes) - 1,
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": self._view()},
            "version": 0.4,
            **({"definitions": {"subgraphs": self.subgraphs}} if self.subgraphs else {}),
        }

    def _view(self) -> dict:
        """Where ComfyUI opens the graph: as much of it as a window of 1600 x 900 pixels shows with text that can be read."""
        left = min(-GROUP_MARGIN, *(group["bounding"][0] for group in self.groups))
        top = min(group["bounding"][1] for group in self.groups)
        right, bottom = (max(edge) for edge in zip(*(box[2:] for box in self.boxes.values()), strict=True))
        whole = min(WINDOW[0] / (right - left + GROUP_MARGIN), WINDOW[1] / (bottom - top + GROUP_MARGIN))
        scale = round(min(max(whole, READABLE), LARGEST), 2)
        return {"scale": scale, "offset": [round(place / scale - edge) for place, edge in zip(CORNER, (left, top), strict=True)]}
