"""Writes workflows/*.json (UI format) and workflows/api/*.json (API format) from the descriptions below.

    python scripts/make_workflows.py

UI format is laid out here and converted to API format by the pack's own converter, so the two cannot drift apart. Run it
after a change to a node's inputs; a test compares the files with what it writes.
"""

import importlib
import json
import runpy
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACK = "glm_image_pack"
runpy.run_path(str(ROOT / "__main__.py"))["load_pack"](PACK)
workflow_format = importlib.import_module(f"{PACK}.nodes.headless.workflow")
ALL_NODES = importlib.import_module(f"{PACK}.nodes.headless.cli").ALL_NODES

PROMPT = (
    "A small bookshop on a rainy evening, seen from across the street. Warm light falls through the window onto wet "
    'cobblestones. Above the door hangs a hand-painted wooden sign that says "THE LAST PAGE". A cat sleeps among the books '
    "in the window."
)
EDIT = 'It is winter now: snow lies on the roof and in the garden. Above the door hangs a sign that says "CLOSED".'
COMBINE = "The mug from the second picture stands on the lawn in front of the house from the first picture, as tall as the door."

CONTROL = "control_after_generate"
CHECKPOINT = {"checkpoint": "GLM-Image", "dtype": "auto"}
TOP = 0  # of the first row of nodes
SCENE, MUG = "glm-image-scene.png", "glm-image-mug.png"


class Graph:
    """A graph in UI format under construction. Links are (node, output index)."""

    def __init__(self, name: str, note: str):
        self.name = name
        self.nodes: list[dict] = []
        self.links: list[list] = []
        self.groups: list[dict] = []
        self.add("MarkdownNote", (0, TOP + 680), (380, 260), values=[note], title="About this workflow")

    def add(self, node_type, position, size, title=None, values=None, **inputs) -> dict:
        """Place a node. inputs: links and widget values by name; all other widgets take their defaults."""
        node = {
            "id": len(self.nodes) + 1,
            "type": node_type,
            "pos": list(position),
            "size": list(size),
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {"Node name for S&R": node_type},
            "widgets_values": values or [],
        }
        if title:
            node["title"] = title
        if node_type in ALL_NODES:
            self._connect(node, ALL_NODES[node_type], inputs)
        self.nodes.append(node)
        return node

    def _connect(self, node: dict, node_class: type, inputs: dict) -> None:
        for name, (kind, options) in workflow_format.input_types(node_class).items():
            widget = workflow_format.is_widget(kind, options)
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
                    node["widgets_values"].append("fixed")
        if node["type"] == "LoadImage":
            node["widgets_values"].append("image")  # its upload button
        names = getattr(node_class, "RETURN_NAMES", node_class.RETURN_TYPES)
        node["outputs"] = [
            {"name": name, "type": kind, "links": []} for name, kind in zip(names, node_class.RETURN_TYPES, strict=True)
        ]

    def group(self, title: str, color: str, left: int, top: int, width: int, height: int) -> None:
        """A coloured frame around nodes that span this rectangle, with room for its title and theirs."""
        bounding = [left - 20, top - 90, width + 40, height + 110]
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
            "extra": {},
            "version": 0.4,
        }


def build(name: str, note: str, prompt: str, pictures=(), batch: int = 1, sampler_seeds=(0,)) -> dict:
    """One of the shipped graphs: loaders, the prompt typed once, references, the plan, and a sampler for each seed."""
    graph = Graph(name, note)
    models, words, plan, paint = 0, 480, 960, 1440

    graph.group("Models", "#3f5159", models, TOP, 380, 610)
    ar = graph.add("GLMImageLoadAR", (models, TOP), (380, 130), **CHECKPOINT)
    encoder = graph.add("GLMImageLoadGlyphEncoder", (models, TOP + 180), (380, 100), **CHECKPOINT)
    dit = graph.add("GLMImageLoadDiT", (models, TOP + 330), (380, 130), **CHECKPOINT)
    vae = graph.add("GLMImageLoadVAE", (models, TOP + 510), (380, 100), **CHECKPOINT)

    graph.group("Prompt", "#5b4a6b", words, TOP, 380, 610)
    text = graph.add("PrimitiveStringMultiline", (words, TOP), (380, 260), title="Prompt", value=prompt)
    encoded = graph.add("GLMImageEncodePrompt", (words, TOP + 310), (380, 300), glyph_encoder=(encoder, 0), prompt=(text, 0))

    references = {}
    if pictures:
        graph.group("References", "#6b4a55", words, TOP + 770, 620 * len(pictures) - 60, 360)
    for number, picture in enumerate(pictures):
        left = words + 620 * number
        image = graph.add("LoadImage", (left, TOP + 770), (240, 360), title=f"Reference {number + 1}", image=picture)
        node = graph.add(
            "GLMImageEncodeReference",
            (left + 260, TOP + 770),
            (300, 110),
            ar=(ar, 0),
            vae=(vae, 0),
            image=(image, 0),
            **references,
        )
        references = {"references": (node, 0)}

    graph.group("Plan", "#5f5a3a", plan, TOP, 380, 610)
    prior = graph.add(
        "GLMImageGeneratePrior", (plan, TOP), (380, 400), ar=(ar, 0), prompt=(text, 0), batch_size=batch, **references
    )
    applied = graph.add(
        "GLMImageApplyPrior",
        (plan, TOP + 480),
        (380, 130),
        positive=(encoded, 0),
        negative=(encoded, 1),
        prior=(prior, 0),
        **references,
    )

    several = len(sampler_seeds) > 1
    graph.group("Paint", "#3d5a44", paint, TOP, 800, 470 * len(sampler_seeds) - 60)
    for number, seed in enumerate(sampler_seeds):
        top = TOP + 470 * number
        sampler = graph.add(
            "GLMImageSampler",
            (paint, top),
            (340, 250),
            model=(dit, 0),
            positive=(applied, 0),
            negative=(applied, 1),
            seed=seed,
            title=f"Sampler {number + 1}" if several else None,
        )
        decoded = graph.add("GLMImageVAEDecode", (paint, top + 300), (340, 110), vae=(vae, 0), samples=(sampler, 0))
        graph.add("SaveImage", (paint + 380, top), (420, 410), images=(decoded, 0), filename_prefix=f"glm-image/{name}")
    return graph.ui()


def all_workflows() -> dict[str, dict]:
    """Every shipped workflow in UI format, by file name without its ending."""
    return {
        "text_to_image": build(
            "text_to_image",
            '## Text to image\nType the prompt once, in **Prompt**. Put text that should be drawn in "quotation marks".\n\n'
            "**Generate Prior** plans the composition, **Sampler** paints it. A new seed in the sampler keeps the composition; "
            "a new seed in Generate Prior changes it.",
            PROMPT,
        ),
        "image_edit": build(
            "image_edit",
            "## Edit an image\nChoose your picture in **Reference 1** and say in **Prompt** what is different. Any size and "
            "aspect works.\n\nSet width and height in **Generate Prior** to the size of the result.",
            EDIT,
            pictures=(SCENE,),
        ),
        "several_references": build(
            "several_references",
            "## Combine several images\nReferences are chained: the first one is *the first picture* for the prompt, and so on. "
            "Add as many Encode Reference nodes as you like.\n\nEach is encoded once, and again only when its picture changes.",
            COMBINE,
            pictures=(SCENE, MUG),
        ),
        "variations": build(
            "variations",
            "## Variations\n**batch_size** in Generate Prior plans that many different compositions in one go. Image i uses "
            "seed + i in both stages, so you can make your favourite again alone.",
            PROMPT,
            batch=4,
        ),
        "same_prior_new_seed": build(
            "same_prior_new_seed",
            "## One plan, two paintings\nBoth samplers paint the same prior tokens with their own seed: the composition stays, "
            "details differ. The AR stage runs once.",
            PROMPT,
            sampler_seeds=(0, 1),
        ),
    }


def write(folder: Path) -> None:
    """Write every workflow in both formats below a folder."""
    (folder / "api").mkdir(parents=True, exist_ok=True)
    for name, ui in all_workflows().items():
        prompt = workflow_format.to_api_format(ui, ALL_NODES)
        (folder / f"{name}.json").write_text(json.dumps(ui, indent=1) + "\n", "utf-8")
        (folder / "api" / f"{name}.json").write_text(json.dumps(prompt, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    write(ROOT / "workflows")
