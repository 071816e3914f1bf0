"""Writes subgraphs/*.json: blueprints, which ComfyUI's node library offers as nodes of their own.

    python scripts/make_blueprints.py

A blueprint is a graph of one node that stands for a subgraph; its file name is its title. What is asked for in the subgraph's
inputs shows as widgets and slots of that node. A test compares the files with what this writes.
"""

import json
import uuid
from pathlib import Path
from typing import Any

from _pack import ROOT
from glm_image_pack.cli.graph.declared import input_types, is_widget

from graph_layout import ALL_NODES, CONTROL, PREVIEW, Graph
from make_workflows import BLUE, BROWN, CHECKPOINT, COGVIEW3_PROMPT, EDIT, GREEN, PROMPT, PURPLE, YELLOW, sides_of

INPUT_NODE, OUTPUT_NODE = -10, -20  # ids of the nodes that stand for a subgraph's own inputs and outputs
OPTIONAL = 7  # the shape of a slot that may stay empty
IMAGES = 4  # of Encode Reference
CATEGORY = "Image generation and editing"  # of ComfyUI's own blueprints
AREA = 1.55  # megapixels, of the sizes that z.ai recommends
LARGEST = 4.0  # megapixels that GLM-Image was trained for: below that a picture keeps its size
FILL = "Make the door red."
WIDTH, BETWEEN = 380, 120  # pixels of a node, and between two columns
SHOWN = "$$canvas-image-preview"  # how the front end calls the preview on a node


class Blueprint(Graph):
    """The graph inside a blueprint. `given` is the node of its own inputs, whose outputs are linked as those of others are."""

    def __init__(self, name: str, kind: str, description: str):
        super().__init__(name)
        self.description = description
        self.category = f"{CATEGORY}/{kind}"
        self.given: dict[str, Any] = {"id": INPUT_NODE, "outputs": []}
        self.values: list[Any] = []  # of the inputs that are widgets, None for the default of the widget inside
        self.results: list[dict] = []
        self.shown: list[dict] = []  # nodes whose previews the blueprint shows
        self.left = -WIDTH - BETWEEN

    def input(self, name: str, kind: str, *, label: str = "", value: Any = None, optional: bool = False) -> tuple[dict, int]:
        """An input of the blueprint, as the source of links. label: what it is called there, if not its name."""
        slot = {"name": name, "type": kind, "links": []}
        slot |= {"label": label} if label else {}
        slot |= {"shape": OPTIONAL} if optional else {}
        self.given["outputs"].append(slot)
        self.values.append(value)
        return self.given, len(self.values) - 1

    def output(self, name: str, kind: str, source: tuple[dict, int]) -> None:
        """An output of the blueprint."""
        node, place = source
        link = len(self.links) + 1
        node["outputs"][place]["links"].append(link)
        self.links.append([link, node["id"], place, OUTPUT_NODE, len(self.results), kind])
        self.results.append({"name": name, "type": kind, "links": [link]})

    def stage(self, title: str, color: str) -> "Stage":
        """A new column of nodes, to the right of the others."""
        self.left += WIDTH + BETWEEN
        return Stage(self, title, color)

    def _connect(self, node: dict, inputs: dict, seeds: str) -> None:
        """As any graph's, and as the front end has it in a subgraph: widgets behind slots, and the blueprint's values in them."""
        super()._connect(node, inputs, seeds)
        node["inputs"].sort(key=lambda slot: "widget" in slot)
        places = {slot["link"]: place for place, slot in enumerate(node["inputs"])}
        for link in self.links:
            link[4] = places.get(link[0], link[4])  # the place among the inputs of the node where it ends
        place = 0
        for name, (kind, options) in input_types(ALL_NODES[node["type"]]).items():
            if is_widget(kind, options):
                source = inputs.get(name)
                if isinstance(source, tuple) and source[0] is self.given and self.values[source[1]] is not None:
                    node["widgets_values"][place] = self.values[source[1]]
                place += 1 + bool(options.get(CONTROL))

    @property
    def id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"glm-image/subgraphs/{self.name}"))

    def ui(self) -> dict:
        """The file: the node that stands for the subgraph, and its definition."""
        return {
            "revision": 0,
            "last_node_id": 1,
            "last_link_id": 0,
            "nodes": [self.host()],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [self.definition()]},
            "extra": {},
        }

    def host(self) -> dict:
        """The node that stands for the subgraph."""
        widgets = [self._is_widget(place) for place in range(len(self.values))]
        inputs = [
            {key: slot[key] for key in ("label", "name", "type", "shape") if key in slot}
            | ({"widget": {"name": slot["name"]}} if widget else {})
            | {"link": None}
            for slot, widget in zip(self.given["outputs"], widgets, strict=True)
        ]
        exposed = [
            {"name": f"{SHOWN}_{place}" if place else SHOWN, "sourceNodeId": str(node["id"]), "sourcePreviewName": SHOWN}
            for place, node in enumerate(self.shown)
        ]
        return {
            "id": 1,
            "type": self.id,
            "pos": [0, 0],
            "size": [440, 180 + 28 * len(inputs)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": inputs,
            "outputs": [{"name": slot["name"], "type": slot["type"], "links": []} for slot in self.results],
            "title": self.name,
            "properties": {"previewExposures": exposed},
            "widgets_values": [],  # those of the widgets inside
        }

    def _is_widget(self, place: int) -> bool:
        """Whether an input of the blueprint stands for a widget inside."""
        link = self.given["outputs"][place]["links"][0]
        (target,) = (slot for node in self.nodes for slot in node["inputs"] if slot["link"] == link)
        return "widget" in target

    def definition(self) -> dict:
        """The subgraph."""
        left, right = -300, self.left + WIDTH + BETWEEN
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        return {
            "id": self.id,
            "version": 1,
            "state": {"lastGroupId": len(self.groups), "lastNodeId": len(self.nodes), "lastLinkId": len(self.links)}
            | {"lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": {"id": INPUT_NODE, "bounding": [left, 0, 160, 40 + 20 * len(self.values)]},
            "outputNode": {"id": OUTPUT_NODE, "bounding": [right, 0, 120, 40 + 20 * len(self.results)]},
            "inputs": self._ends(self.given["outputs"], "input", left + 140),
            "outputs": self._ends(self.results, "output", right + 20),
            "widgets": [],
            "nodes": self.nodes,
            "groups": self.groups,
            "links": [dict(zip(names, link, strict=True)) for link in self.links],
            "extra": {},
            "category": self.category,
            "description": self.description,
        }

    def _ends(self, slots: list[dict], end: str, left: int) -> list[dict]:
        """The inputs or the outputs of the definition."""
        return [
            {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"glm-image/subgraphs/{self.name}/{end}/{slot['name']}"))}
            | {key: slot[key] for key in ("name", "type", "label", "shape") if key in slot}
            | {"linkIds": slot["links"], "pos": [left, 20 + 20 * place]}
            for place, slot in enumerate(slots)
        ]


class Stage:
    """A column of nodes in a group of its own."""

    def __init__(self, graph: Blueprint, title: str, color: str):
        self.graph, self.title, self.color = graph, title, color
        self.column, self.nodes = graph.column(graph.left, WIDTH), []

    def add(self, node_type: str, title: str | None = None, *, shown: bool = False, **inputs) -> dict:
        """The next node. shown: the blueprint shows its preview."""
        node = self.column.add(node_type, title=title, preview=PREVIEW if shown else 0, **inputs)
        self.nodes.append(node)
        self.graph.shown += [node] if shown else []
        return node

    def end(self) -> None:
        self.graph.group(self.title, self.color, *self.nodes)


class GlmImage:
    """What the blueprints of GLM-Image share: their widgets, in this order, and the stages inside."""

    def __init__(self, graph: Blueprint, prompt: str, aspect: str, megapixels: float):
        self.graph = graph
        self.prompt = graph.input("prompt", "STRING", value=prompt)
        self.aspect = graph.input("aspect", "COMBO", label="aspect or size", value=aspect)
        self.megapixels = graph.input("megapixels", "FLOAT", value=megapixels)
        self.composition_seed = graph.input("composition_seed", "INT", label="composition seed")
        self.detail_seed = graph.input("detail_seed", "INT", label="detail seed")
        self.steps = graph.input("steps", "INT")
        checkpoint = graph.input("checkpoint", "COMBO", value=CHECKPOINT["checkpoint"])
        quantization = graph.input("quantization", "COMBO")
        stage = graph.stage("Model", BLUE)
        loader = stage.add("GLMImageLoad", checkpoint=checkpoint, quantization=quantization)
        stage.end()
        self.dit, self.ar, self.glyph_encoder, self.vae = ((loader, output) for output in range(4))

    def sides(self, stage: Stage, **image) -> dict[str, tuple[dict, int]]:
        """Width and height that the model knows, as inputs. image: the picture that they follow, if any."""
        inputs = {"aspect": self.aspect, "megapixels": self.megapixels, "ar": self.ar, "fit": True, **image}
        return sides_of(stage.add("GLMImageSize", **inputs))

    def paint(self, words: Stage, sides: dict, references: dict, **start) -> tuple[dict, int]:
        """Plan and picture. words: where the prompt is encoded. references, start: those of Generate Prior and the latents to
        start from, if any. Returns the picture."""
        encoded = words.add("GLMImageEncodePrompt", glyph_encoder=self.glyph_encoder, prompt=self.prompt)
        words.end()
        plan = self.graph.stage("Plan", YELLOW)
        planned = {"ar": self.ar, "prompt": self.prompt, "seed": self.composition_seed, **sides, **references}
        prior = plan.add("GLMImageGeneratePrior", shown=True, seeds="fixed", **planned)
        both = {"positive": (encoded, 0), "negative": (encoded, 1)}
        applied = plan.add("GLMImageApplyPrior", **both, prior=(prior, 0), **references)
        plan.end()
        paint = self.graph.stage("Paint", GREEN)
        both = {"positive": (applied, 0), "negative": (applied, 1)}
        painted = {"model": self.dit, "seed": self.detail_seed, "steps": self.steps, **both, **start}
        sampler = paint.add("GLMImageSampler", shown=True, **painted)
        decoded = paint.add("GLMImageVAEDecode", vae=self.vae, samples=(sampler, 0))
        paint.end()
        return decoded, 0


def text_to_image() -> Blueprint:
    """A prompt becomes a picture."""
    graph = Blueprint(
        "Text to Image (GLM-Image)",
        "Text to image",
        "Plans a picture from a prompt and paints it with GLM-Image. Text in quotation marks is drawn.",
    )
    picture = graph.input("image", "IMAGE", label="size of picture (optional)", optional=True)
    glm = GlmImage(graph, PROMPT, "1280 x 1280", AREA)
    words = graph.stage("Prompt and size", PURPLE)
    graph.output("image", "IMAGE", glm.paint(words, glm.sides(words, image=picture), {}))
    return graph


def image_edit() -> Blueprint:
    """One to four pictures and a prompt become a picture."""
    graph = Blueprint(
        "Image Edit (GLM-Image)",
        "Edit image",
        "Changes a picture as a prompt says, or combines up to four, with GLM-Image. Pictures 2 to 4 may stay empty.",
    )
    names = ["image", *(f"image_{number}" for number in range(2, IMAGES + 1))]
    labels = ["picture 1", *(f"picture {number} (optional)" for number in range(2, IMAGES + 1))]
    pictures = {
        name: graph.input(name, "IMAGE", label=label, optional=name != "image") for name, label in zip(names, labels, strict=True)
    }
    glm = GlmImage(graph, EDIT, "image size", AREA)
    words = graph.stage("Prompt, size, pictures", PURPLE)
    sides = glm.sides(words, image=pictures["image"])
    encoded = words.add("GLMImageEncodeReference", ar=glm.ar, vae=glm.vae, **pictures)
    graph.output("image", "IMAGE", glm.paint(words, sides, {"references": (encoded, 0)}))
    return graph


def inpaint() -> Blueprint:
    """The masked part of a picture is painted anew; the rest comes back as it was."""
    graph = Blueprint(
        "Image Inpainting (GLM-Image)",
        "Inpaint image",
        "Paints what a mask covers anew, as a prompt says, with GLM-Image. The rest keeps its pixels.",
    )
    picture, mask = graph.input("image", "IMAGE"), graph.input("mask", "MASK")
    glm = GlmImage(graph, FILL, "image size", LARGEST)
    stage = graph.stage("Picture and mask", BROWN)
    sides = glm.sides(stage, image=picture)
    scale = {"upscale_method": "lanczos", "crop": "center", **sides}
    fitted = stage.add("ImageScale", "Picture in that size", image=picture, **scale), 0
    shown = stage.add("MaskToImage", mask=mask)
    shown = stage.add("ImageScale", "Mask in that size", image=(shown, 0), **scale | {"upscale_method": "area"})
    hard = stage.add("ImageToMask", image=(shown, 0), channel="red")
    grown = stage.add("GrowMask", mask=(hard, 0), expand=8)
    stage.end()
    words = graph.stage("Prompt", PURPLE)
    encoded = words.add("GLMImageEncodeReference", ar=glm.ar, vae=glm.vae, image=fitted)
    latent = words.add("GLMImageVAEEncode", vae=glm.vae, image=fitted)
    masked = words.add("SetLatentNoiseMask", samples=(latent, 0), mask=(grown, 0))
    painted = glm.paint(words, sides, {"references": (encoded, 0)}, latent_image=(masked, 0))
    stage = graph.stage("Put back", BROWN)
    edge = stage.add("MaskToImage", mask=(grown, 0))
    edge = stage.add("ImageBlur", "Soft edge", image=(edge, 0), blur_radius=8, sigma=3.0)
    soft = stage.add("ImageToMask", image=(edge, 0), channel="red")
    parts = {"destination": fitted, "source": painted, "mask": (soft, 0)}
    whole = stage.add("ImageCompositeMasked", **parts, x=0, y=0, resize_source=False)
    stage.end()
    graph.output("image", "IMAGE", (whole, 0))
    return graph


def cogview3_plus() -> Blueprint:
    """A prompt becomes a picture, without a plan."""
    graph = Blueprint(
        "Text to Image (CogView3-Plus)",
        "Text to image",
        "Paints a picture from a long English caption with CogView3-Plus, 512 to 2048 pixels a side.",
    )
    prompt = graph.input("prompt", "STRING", value=COGVIEW3_PROMPT)
    sides = {name: graph.input(name, "INT") for name in ("width", "height")}
    seed, steps = graph.input("seed", "INT"), graph.input("steps", "INT")
    checkpoint = graph.input("checkpoint", "COMBO", value="CogView3-Plus-3B")
    stage = graph.stage("Model", BLUE)
    loaded = stage.add("GLMImageLoadCogView3", checkpoint=checkpoint)
    stage.end()
    stage = graph.stage("Prompt", PURPLE)
    encoded = stage.add("GLMImageCogView3Encode", text_encoder=(loaded, 1), prompt=prompt)
    stage.end()
    stage = graph.stage("Paint", GREEN)
    both = {"positive": (encoded, 0), "negative": (encoded, 1)}
    inputs = {"model": (loaded, 0), "seed": seed, "steps": steps, **both, **sides}
    sampler = stage.add("GLMImageCogView3Sampler", shown=True, **inputs)
    decoded = stage.add("GLMImageVAEDecode", vae=(loaded, 2), samples=(sampler, 0))
    stage.end()
    graph.output("image", "IMAGE", (decoded, 0))
    return graph


def write(folder: Path) -> None:
    """Write every blueprint into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for blueprint in (text_to_image(), image_edit(), inpaint(), cogview3_plus()):
        (folder / f"{blueprint.name}.json").write_text(json.dumps(blueprint.ui(), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    write(ROOT / "subgraphs")
