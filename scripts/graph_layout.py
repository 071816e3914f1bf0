"""A graph in UI format under construction, laid out in columns.

Nodes must not lie over each other in any renderer. So a node is as tall as the tallest one, ComfyUI's new one (Nodes 2.0), draws
it, and the next one leaves room for its title and its badge. The figures below are what both renderers draw in ComfyUI 0.33.0,
in the graph's units.
"""

import uuid
from typing import NamedTuple

from glm_image_pack.cli.graph.declared import input_types, is_widget
from glm_image_pack.cli.graph.nodes import ALL_NODES as OWN_NODES

CONTROL = "control_after_generate"
BYPASSED = 4
SLOT, WIDGET, TEXT, MARGIN = 20, 28, 68, 14  # heights: of a row of sockets, of a widget, of a widget for long texts; around them
TITLE, BADGE = 30, 20  # above a node
GAP = TITLE + BADGE + 16  # between two nodes of a column
PREVIEW = 280  # how much a node grows by that shows a picture forming
PICTURE = 240  # the least that a node shows a picture in
GROUP_TITLE, GROUP_MARGIN = 44, 20
BELOW_GROUP = GROUP_MARGIN + GROUP_TITLE + TITLE + BADGE + 26  # from the last node of a group to the first one of the group below
WINDOW, CORNER = (1520, 790), (68, 92)  # pixels: what menus leave of a window of 1600 x 900, and its upper left corner
READABLE, LARGEST = 0.62, 0.9  # the front end's classic renderer draws no text in a graph that is drawn smaller
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
    """What ComfyUI keeps of a node's origin: without the pack it names the pack. Notes come from the front end itself."""
    if node_type == "MarkdownNote":
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
    """How tall the new renderer draws a node of the file at the least, without its title and without a picture that forms."""
    if node["type"] == "MarkdownNote":
        return MARGIN + SLOT + TEXT
    inputs = input_types(ALL_NODES[node["type"]])
    widgets = {name: options for name, (kind, options) in inputs.items() if is_widget(kind, options)}
    texts = sum(bool(options.get("multiline")) for options in widgets.values())
    controls = sum(bool(options.get(CONTROL)) for options in widgets.values())
    slots = max(len(inputs) - len(widgets), len(node["outputs"]))
    picture = PICTURE if node["type"] in STOCK_PICTURES else 0
    return MARGIN + SLOT * slots + WIDGET * (len(widgets) - texts + controls) + TEXT * texts + picture


class Column:
    """Nodes of one width below each other."""

    def __init__(self, graph: "Graph", left: int, width: int, top: int = 0):
        self.graph, self.left, self.width, self.top = graph, left, width, top

    def add(self, node_type: str, /, *, taller: int = 0, preview: int = 0, **settings) -> dict:
        """The next node. taller: by how much it exceeds what it needs. preview: room for the picture that it shows."""
        node = self.graph.add(node_type, (self.left, self.top), self.width, taller=taller, preview=preview, **settings)
        self.top = round(self.graph.boxes[node["id"]].bottom) + GAP
        return node


class Graph:
    """A graph in UI format under construction. Links are (node, output index)."""

    def __init__(self, name: str):
        self.name = name
        self.nodes: list[dict] = []
        self.links: list[list] = []
        self.groups: list[dict] = []
        self.boxes: dict[int, Box] = {}

    def column(self, left: int, width: int, top: int = 0) -> Column:
        return Column(self, left, width, top)

    def note(self, column: Column, title: str, text: str, height: int) -> dict:
        """A note in Markdown, `height` tall."""
        return column.add("MarkdownNote", title=title, values=[text], taller=height - MARGIN - SLOT - TEXT)

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
            "id": len(self.nodes) + 1,
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
        node["size"][1] = drawn_height(node) + taller
        left, top = position
        self.boxes[node["id"]] = Box(left, top, left + width, top + node["size"][1] + preview)
        self.nodes.append(node)
        return node

    def _connect(self, node: dict, inputs: dict, seeds: str) -> None:
        node_class = ALL_NODES[node["type"]]
        for name, (kind, options) in input_types(node_class).items():
            widget = is_widget(kind, options)
            slot_type = "COMBO" if isinstance(kind, list) else kind
            slot = {"name": name, "type": slot_type, **({"widget": {"name": name}} if widget else {}), "link": None}
            if isinstance(inputs.get(name), tuple):
                source, output = inputs[name]
                slot["link"] = len(self.links) + 1
                source["outputs"][output]["links"].append(slot["link"])
                self.links.append([slot["link"], source["id"], output, node["id"], len(node["inputs"]), slot_type])
            node["inputs"].append(slot)
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
        boxes = [self.boxes[node["id"]] for node in nodes]
        left, top = min(box.left for box in boxes), min(box.top for box in boxes)
        right, bottom = max(box.right for box in boxes), max(box.bottom for box in boxes)
        above = GROUP_TITLE + TITLE + BADGE
        bounding = [left - GROUP_MARGIN, top - above, right - left + 2 * GROUP_MARGIN, bottom - top + above + GROUP_MARGIN]
        number = len(self.groups) + 1
        self.groups.append(
            {"id": number, "title": f"{number}  {title}", "bounding": bounding, "color": color, "font_size": 24, "flags": {}}
        )

    def ui(self) -> dict:
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"glm-image/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": self._view()},
            "version": 0.4,
        }

    def _view(self) -> dict:
        """Where ComfyUI opens the graph: as much of it as a window of 1600 x 900 pixels shows with text that can be read."""
        left, top = min(group["bounding"][0] for group in self.groups), min(group["bounding"][1] for group in self.groups)
        right, bottom = (max(edge) for edge in zip(*(box[2:] for box in self.boxes.values()), strict=True))
        whole = min(WINDOW[0] / (right - left + GROUP_MARGIN), WINDOW[1] / (bottom - top + GROUP_MARGIN))
        scale = round(min(max(whole, READABLE), LARGEST), 2)
        return {"scale": scale, "offset": [round(place / scale - edge) for place, edge in zip(CORNER, (left, top), strict=True)]}
