"""Writes workflows/*.json (UI format) and workflows/api/*.json (API format) from the descriptions below.

    python scripts/make_workflows.py

UI format is laid out here and converted to API format by the pack's own converter, so the two cannot drift apart. Run it
after a change to a node's inputs; a test compares the files with what it writes.
"""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from _pack import ROOT
from glm_image_pack.cli.graph.declared import input_types, is_widget
from glm_image_pack.cli.graph.nodes import ALL_NODES as OWN_NODES
from glm_image_pack.cli.graph.unfold import unfold
from glm_image_pack.glmimage_core.glm_image.files.components import NANO


def _stock(title: str, outputs: tuple[str, ...], **inputs) -> type:
    """The inputs and outputs of a node of ComfyUI that only ComfyUI can run."""
    members = {"TITLE": title, "RETURN_TYPES": outputs, "INPUT_TYPES": classmethod(lambda cls: {"required": inputs})}
    return type("Stock", (), members)


_SEED = ("INT", {"default": 0, "control_after_generate": True})
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

PROMPT = (
    "A small bookshop on a rainy evening, seen from across the street. Warm light falls through the window onto wet "
    'cobblestones. Above the door hangs a hand-painted wooden sign that says "THE LAST PAGE". A cat sleeps among the books '
    "in the window."
)
EDIT = 'It is winter now: snow lies on the roof and in the garden. Above the door hangs a sign that says "CLOSED".'
RESTYLE = "An oil painting of a small house on a lawn in the evening, thick brush strokes, warm light in both windows."
COMBINE = "The mug from the second picture stands on the lawn in front of the house from the first picture, as tall as the door."

SHORT_PROMPT = 'a cosy bookshop with a sign "THE LAST PAGE" and a sleeping cat'
VLM = "Glmga"
REWRITING = {"typed": "prompt", "group": "Rewrite", "answer": "Rewritten prompt"}
REWRITERS = {  # with the input that is typed, what its group and its answer are called, and values of other inputs
    "GLMImageEnhancePromptAPI": REWRITING | {"model": "qwen3"},
    "GLMImageEnhancePrompt": REWRITING,
    "GLMImageDescribe": {"typed": "instruction", "group": "Describe", "answer": "Description"},
}
SEEING = ("GLMImageEnhancePrompt", "GLMImageDescribe")
COGVIEW3_PROMPT = (
    "A lighthouse on a rocky coast at dusk, its warm light falling on wet stones and low waves, a few gulls above, in the "
    "distance a dark blue sea under a sky of orange and violet clouds; a photograph taken from a low angle."
)
INSTRUCTION = "Describe this picture as the caption of a watercolour of the same scene, in one paragraph."
NANO_PROMPT = "A large red star in the centre and two small yellow circles on a blue background."
NANO_EDIT = "Change the red circle to blue."

CONTROL = "control_after_generate"
BYPASSED = 4
CHECKPOINT = {"checkpoint": "GLM-Image", "dtype": "auto"}
BUILT_IN = {"checkpoint": NANO, "dtype": "float32"}  # a CPU is at its best in float32, and it is small
OF_NANO = {"checkpoint": BUILT_IN, "plan": {"width": 256, "height": 256}, "steps": 20}
TOP = 0  # of the first row of nodes
SCENE, MUG, SHAPES = "glm-image-scene.png", "glm-image-mug.png", "glm-image-shapes.png"


class Graph:
    """A graph in UI format under construction. Links are (node, output index)."""

    def __init__(self, name: str, note: str):
        self.name = name
        self.nodes: list[dict] = []
        self.links: list[list] = []
        self.groups: list[dict] = []
        self.add("MarkdownNote", (0, TOP + 680), (380, 260), values=[note], title="About this workflow")

    def add(self, node_type, position, size, title=None, values=None, bypassed=False, **inputs) -> dict:
        """Place a node. inputs: links and widget values by name; all other widgets take their defaults."""
        node = {
            "id": len(self.nodes) + 1,
            "type": node_type,
            "pos": list(position),
            "size": list(size),
            "flags": {},
            "order": len(self.nodes),
            "mode": BYPASSED if bypassed else 0,
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
                    node["widgets_values"].append("fixed")
        if node["type"] == "LoadImage":
            node["widgets_values"].append("image")  # its upload button
        kinds = (
            () if node["type"] in ("SaveImage", "PreviewImage") else node_class.RETURN_TYPES
        )  # older ComfyUIs give it no output
        names = getattr(node_class, "RETURN_NAMES", kinds)
        node["outputs"] = [{"name": name, "type": kind, "links": []} for name, kind in zip(names, kinds, strict=True)]

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


MODELS, WORDS, PLAN, PAINT = 0, 480, 960, 1440  # left edges of the columns, from the first stage to the last
BELOW = TOP + 770  # of the second row
SAMPLER = TOP + 180  # below Apply Prior
SAMPLER_ROOM = 370
PREVIEW = 210  # how much a sampler grows by when it shows the picture forming


class Loaded(NamedTuple):
    """The nodes that every graph begins with."""

    ar: dict
    dit: dict
    vae: dict
    text: dict
    encoded: dict
    ar_output: int = 0


def begin(graph: Graph, prompt: str, checkpoint: dict = CHECKPOINT, rewriter: str = "") -> Loaded:
    """Loaders, and the prompt typed once. rewriter: the node that rewrites it, if any."""
    graph.group("Models", "#3f5159", MODELS, TOP, 380, 610)
    ar = graph.add("GLMImageLoadAR", (MODELS, TOP), (380, 110), **checkpoint)
    encoder = graph.add("GLMImageLoadGlyphEncoder", (MODELS, TOP + 155), (380, 90), **checkpoint)
    dit = graph.add("GLMImageLoadDiT", (MODELS, TOP + 290), (380, 165), **checkpoint)
    vae = graph.add("GLMImageLoadVAE", (MODELS, TOP + 500), (380, 90), **checkpoint)

    graph.group("Prompt", "#5b4a6b", WORDS, TOP, 380, 610)
    text = graph.add("PrimitiveStringMultiline", (WORDS, TOP), (380, 260), title="Prompt", value=prompt)
    if rewriter:
        text = rewritten(graph, rewriter, text)
    encoded = graph.add("GLMImageEncodePrompt", (WORDS, TOP + 310), (380, 300), glyph_encoder=(encoder, 0), prompt=(text, 0))
    return Loaded(ar, dit, vae, text, encoded)


def rewritten(graph: Graph, rewriter: str, text: dict) -> dict:
    """The node that writes the prompt, from the text that is typed, with what it needs and what shows its answer."""
    inputs, left, top = dict(REWRITERS[rewriter]), WORDS, BELOW + 60
    typed, group, answer = (inputs.pop(name) for name in ("typed", "group", "answer"))
    if rewriter in SEEING:
        vlm = graph.add("GLMImageLoadVLM", (WORDS, top), (380, 110), checkpoint=VLM)
        inputs["vlm"], left = (vlm, 0), WORDS + 420
    if rewriter == "GLMImageDescribe":
        inputs["images"] = graph.add("LoadImage", (WORDS, top + 170), (380, 330), title="Picture", image=SCENE), 0
    graph.group(group, "#6b4a55", WORDS, top, left - WORDS + 860, 500)
    writer = graph.add(rewriter, (left, top), (400, 500), **{typed: (text, 0)}, **inputs)
    graph.add("PreviewAny", (left + 440, top), (420, 500), title=answer, source=(writer, 0))
    return writer


def planned(graph: Graph, loaded: Loaded, references: dict, **settings) -> dict[str, tuple]:
    """The plan, with room below it for its preview, and Apply Prior. Returns both conditionings as inputs of a sampler."""
    graph.group("Plan", "#5f5a3a", PLAN, TOP, 380, 610)
    inputs = {"ar": (loaded.ar, loaded.ar_output), "prompt": (loaded.text, 0), **settings, **references}
    prior = graph.add("GLMImageGeneratePrior", (PLAN, TOP), (380, 400), **inputs)
    sides = {"positive": (loaded.encoded, 0), "negative": (loaded.encoded, 1)}
    applied = graph.add("GLMImageApplyPrior", (PAINT, TOP), (340, 130), **sides, prior=(prior, 0), **references)
    return {"positive": (applied, 0), "negative": (applied, 1)}


def build(
    name: str,
    note: str,
    prompt: str,
    pictures=(),
    sampler_seeds=(0,),
    lora: bool = False,
    checkpoint: dict = CHECKPOINT,
    plan: Mapping | None = None,
    rewriter: str = "",
    steps: int | None = None,
) -> dict:
    """Text to image or an edit, and a sampler for each seed. With a place for a LoRA, bypassed until a file is chosen.

    plan: what Generate Prior has other than by default.
    """
    graph = Graph(name, note)
    loaded = begin(graph, prompt, checkpoint, rewriter)
    if lora:
        graph.group("LoRA", "#6b4a55", WORDS, BELOW, 380, 170)
        halves = {"model": (loaded.dit, 0), "ar": (loaded.ar, 0)}
        changed = graph.add("GLMImageLoadLoRA", (WORDS, BELOW), (380, 170), bypassed=True, **halves, lora_name="lora.safetensors")
        loaded = loaded._replace(dit=changed, ar=changed, ar_output=1)
    references = {}
    if pictures:
        graph.group("References", "#6b4a55", WORDS, BELOW, 620 * len(pictures) - 60, 360)
    for number, picture in enumerate(pictures):
        left = WORDS + 620 * number
        image = graph.add("LoadImage", (left, BELOW), (240, 360), title=f"Reference {number + 1}", image=picture)
        inputs = {"ar": (loaded.ar, loaded.ar_output), "vae": (loaded.vae, 0), "image": (image, 0), **references}
        node = graph.add("GLMImageEncodeReference", (left + 260, BELOW), (300, 110), **inputs)
        references = {"references": (node, 0)}
    conditioning = planned(graph, loaded, references, **(plan or {}))

    several = len(sampler_seeds) > 1
    graph.group("Paint", "#3d5a44", PAINT, TOP, 800, 180 + (SAMPLER_ROOM + PREVIEW) * len(sampler_seeds) - 60)
    for number, seed in enumerate(sampler_seeds):
        title = f"Sampler {number + 1}" if several else None
        paint(graph, loaded, SAMPLER + (SAMPLER_ROOM + PREVIEW) * number, title=title, seed=seed, steps=steps, **conditioning)
    return graph.ui()


def paint(graph: Graph, loaded: Loaded, top: int, **inputs) -> None:
    """Our sampler, with room below it for its preview, and the picture decoded and saved."""
    sampler = graph.add("GLMImageSampler", (PAINT, top), (340, 330), model=(loaded.dit, 0), **inputs)
    first = top == SAMPLER
    above = TOP if first else top
    decoded = graph.add("GLMImageVAEDecode", (PAINT + 380, above), (420, 110), vae=(loaded.vae, 0), samples=(sampler, 0))
    save = {"images": (decoded, 0), "filename_prefix": f"glm-image/{graph.name}"}
    graph.add("SaveImage", (PAINT + 380, above + 160), (420, 440 if first else 260), **save)


def restyle(name: str, note: str) -> dict:
    """A picture painted over: its own latent, partly noised, under a new plan of its own size."""
    graph = Graph(name, note)
    loaded = begin(graph, RESTYLE)
    graph.group("Picture", "#6b4a55", WORDS, BELOW, 900, 360)
    image = graph.add("LoadImage", (WORDS, BELOW), (260, 360), title="Picture", image=SCENE)
    size = graph.add("GLMImageSize", (WORDS + 300, BELOW), (280, 150), aspect="like image", image=(image, 0), ar=(loaded.ar, 0))
    sides = {"width": (size, 0), "height": (size, 1)}
    scale = {"upscale_method": "lanczos", "crop": "center", **sides}
    fitted = graph.add("ImageScale", (WORDS + 620, BELOW), (280, 180), image=(image, 0), **scale)
    latent = graph.add("GLMImageVAEEncode", (WORDS + 620, BELOW + 240), (280, 60), vae=(loaded.vae, 0), image=(fitted, 0))
    conditioning = planned(graph, loaded, {}, **sides)
    graph.group("Paint", "#3d5a44", PAINT, TOP, 800, 180 + SAMPLER_ROOM + PREVIEW - 60)
    paint(graph, loaded, SAMPLER, latent_image=(latent, 0), denoise=0.7, **conditioning)
    return graph.ui()


def cogview3_plus(name: str, note: str) -> dict:
    """Text to image without a plan, and a place for what writes the caption, bypassed."""
    graph = Graph(name, note)
    graph.group("Models", "#3f5159", MODELS, TOP, 380, 610)
    loaded = graph.add("GLMImageLoadCogView3", (MODELS, TOP), (380, 120), checkpoint="CogView3-Plus-3B")
    vlm = graph.add("GLMImageLoadVLM", (MODELS, TOP + 200), (380, 110), checkpoint=VLM, bypassed=True)
    graph.group("Prompt", "#5b4a6b", WORDS, TOP, 860, 610)
    text = graph.add("PrimitiveStringMultiline", (WORDS, TOP), (400, 260), title="Prompt", value=COGVIEW3_PROMPT)
    written = graph.add(
        "GLMImageEnhancePrompt", (WORDS, TOP + 310), (400, 300), bypassed=True, vlm=(vlm, 0), prompt=(text, 0), language="en"
    )
    encoded = graph.add("GLMImageCogView3Encode", (WORDS + 440, TOP), (420, 400), text_encoder=(loaded, 1), prompt=(written, 0))
    graph.group("Paint", "#3d5a44", PAINT, TOP, 800, 610)
    sides = {"positive": (encoded, 0), "negative": (encoded, 1)}
    sampler = graph.add("GLMImageCogView3Sampler", (PAINT, TOP), (340, 330), model=(loaded, 0), **sides)
    decoded = graph.add("GLMImageVAEDecode", (PAINT + 380, TOP), (420, 110), vae=(loaded, 2), samples=(sampler, 0))
    save = {"images": (decoded, 0), "filename_prefix": f"glm-image/{name}"}
    graph.add("SaveImage", (PAINT + 380, TOP + 160), (420, 440), **save)
    return graph.ui()


def cogview3_base(name: str, note: str) -> dict:
    """A picture by the base, and its relay to twice the sides."""
    graph = Graph(name, note)
    graph.group("Models", "#3f5159", MODELS, TOP, 380, 610)
    t5 = graph.add("GLMImageLoadT5", (MODELS, TOP), (380, 110), checkpoint="CogView3-Plus-3B")
    base = graph.add("GLMImageLoadCogView3Base", (MODELS, TOP + 180), (380, 110), checkpoint="cogview3-base-3b")
    second = graph.add(
        "GLMImageLoadCogView3Base",
        (MODELS, TOP + 360),
        (380, 110),
        title="Load CogView3-Base (relay)",
        checkpoint="cogview3-relay-3b",
    )
    graph.group("Prompt", "#5b4a6b", WORDS, TOP, 860, 610)
    text = graph.add("PrimitiveStringMultiline", (WORDS, TOP), (400, 260), title="Prompt", value=COGVIEW3_PROMPT)
    of_family = {"text_encoder": (t5, 0), "prompt": (text, 0), "family": "CogView3-Base"}
    encoded = graph.add("GLMImageCogView3Encode", (WORDS + 440, TOP), (420, 430), **of_family)
    sides = {"positive": (encoded, 0), "negative": (encoded, 1)}
    graph.group("Paint", "#3d5a44", PAINT, TOP, 800, 610)
    painted = graph.add("GLMImageCogView3BaseSampler", (PAINT, TOP), (340, 330), model=(base, 0), **sides)
    small = graph.add("GLMImageVAEDecode", (PAINT + 380, TOP), (420, 110), vae=(base, 1), samples=(painted, 0))
    graph.add("PreviewImage", (PAINT + 380, TOP + 160), (420, 440), images=(small, 0))
    below = TOP + 750
    graph.group("Relay", "#4d5a3d", PAINT, below, 800, 610)
    relayed = {"model": (second, 0), "vae": (base, 1), "image": (small, 0), **sides}
    relay = graph.add("GLMImageCogView3Relay", (PAINT, below), (340, 330), **relayed)
    large = graph.add("GLMImageVAEDecode", (PAINT + 380, below), (420, 110), vae=(base, 1), samples=(relay, 0))
    save = {"images": (large, 0), "filename_prefix": f"glm-image/{name}"}
    graph.add("SaveImage", (PAINT + 380, below + 160), (420, 440), **save)
    return graph.ui()


def remote(name: str, note: str) -> dict:
    """The whole of it elsewhere."""
    graph = Graph(name, note)
    graph.group("Prompt", "#5b4a6b", MODELS, TOP, 380, 610)
    text = graph.add("PrimitiveStringMultiline", (MODELS, TOP), (380, 260), title="Prompt", value=PROMPT)
    graph.group("Paint", "#3d5a44", WORDS, TOP, 860, 610)
    painted = graph.add("GLMImageRemote", (WORDS, TOP), (400, 480), prompt=(text, 0))
    save = {"images": (painted, 0), "filename_prefix": f"glm-image/{name}"}
    graph.add("SaveImage", (WORDS + 440, TOP), (420, 610), **save)
    return graph.ui()


def planned_by_size(graph: Graph, aspect: str) -> tuple[Loaded, dict[str, tuple], dict[str, tuple]]:
    """Loaders, prompt, and a plan whose size one node sets. Returns that size and both conditionings as inputs, too."""
    loaded = begin(graph, PROMPT)
    graph.group("Size", "#6b4a55", WORDS, BELOW, 380, 130)
    size = graph.add("GLMImageSize", (WORDS, BELOW), (380, 130), aspect=aspect, ar=(loaded.ar, 0))
    sides = {"width": (size, 0), "height": (size, 1)}
    return loaded, sides, planned(graph, loaded, {}, **sides)


def stock_sampler(name: str, note: str) -> dict:
    """The plan painted by ComfyUI's own nodes, all of one size."""
    graph = Graph(name, note)
    loaded, sides, conditioning = planned_by_size(graph, "1728 x 960")
    graph.group("Paint", "#3d5a44", PAINT, TOP, 800, 790 + PREVIEW)
    sized = graph.add("GLMImageModelSampling", (PAINT, SAMPLER), (340, 110), model=(loaded.dit, 0), **sides)
    empty = graph.add("EmptySD3LatentImage", (PAINT, SAMPLER + 160), (340, 110), **sides)
    sampler = graph.add("KSampler", (PAINT, SAMPLER + 320), (340, 290), model=(sized, 0), latent_image=(empty, 0), **conditioning)
    decoded = graph.add("VAEDecode", (PAINT + 380, TOP), (420, 50), samples=(sampler, 0), vae=(loaded.vae, 0))
    graph.add("SaveImage", (PAINT + 380, TOP + 100), (420, 440), images=(decoded, 0), filename_prefix=f"glm-image/{name}")
    return graph.ui()


def custom_sampler(name: str, note: str) -> dict:
    """The plan painted by ComfyUI's custom sampler along GLM-Image's own schedule."""
    graph = Graph(name, note)
    loaded, sides, conditioning = planned_by_size(graph, "1088 x 1472")
    graph.group("Paint", "#3d5a44", PAINT, TOP, 800, 940)
    noise = graph.add("RandomNoise", (PAINT, SAMPLER), (340, 90))
    guider = graph.add("CFGGuider", (PAINT, SAMPLER + 140), (340, 110), model=(loaded.dit, 0), **conditioning)
    method = graph.add("KSamplerSelect", (PAINT, SAMPLER + 300), (340, 60))
    sigmas = graph.add("GLMImageScheduler", (PAINT, SAMPLER + 410), (340, 190), model=(loaded.dit, 0), **sides)
    empty = graph.add("EmptySD3LatentImage", (PAINT, SAMPLER + 650), (340, 110), **sides)
    parts = {"noise": noise, "guider": guider, "sampler": method, "sigmas": sigmas, "latent_image": empty}
    links = {part: (node, 0) for part, node in parts.items()}
    sampler = graph.add("SamplerCustomAdvanced", (PAINT + 380, TOP), (420, 130), **links)
    decoded = graph.add("VAEDecode", (PAINT + 380, TOP + 180 + PREVIEW), (420, 50), samples=(sampler, 0), vae=(loaded.vae, 0))
    save = {"images": (decoded, 0), "filename_prefix": f"glm-image/{name}"}
    graph.add("SaveImage", (PAINT + 380, TOP + 280 + PREVIEW), (420, 440), **save)
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
            plan={"batch_size": 4},
        ),
        "same_prior_new_seed": build(
            "same_prior_new_seed",
            "## One plan, two paintings\nBoth samplers paint the same prior tokens with their own seed: the composition stays, "
            "details differ. The AR stage runs once.",
            PROMPT,
            sampler_seeds=(0, 1),
        ),
        "restyle": restyle(
            "restyle",
            "## Paint over a picture\nThe picture is encoded, partly noised and painted over under a new plan. **denoise** in "
            "the sampler says how much: 0.5 keeps most of it, 0.9 little.\n\n**GLM-Image Size** takes the picture's aspect. To "
            "change a picture by words, use *image_edit*.",
        ),
        "lora": build(
            "lora",
            "## With a LoRA\nChoose a file in **Load GLM-Image LoRA** and switch the node on (Ctrl+B); until then it is "
            "bypassed. One file may change the DiT, the AR model, or both; the node says what it changed.",
            PROMPT,
            lora=True,
        ),
        "custom_sampler": custom_sampler(
            "custom_sampler",
            "## ComfyUI's custom sampler\n**GLM-Image Scheduler** gives GLM-Image's own sigmas to **SamplerCustomAdvanced**: "
            "with euler this paints what GLM-Image Sampler paints.",
        ),
        "stock_sampler": stock_sampler(
            "stock_sampler",
            "## ComfyUI's own sampler\n**KSampler** paints the plan, so any sampler, scheduler and model patch of ComfyUI can be "
            "used.\n\n**GLM-Image Size** sets the size of the plan, of the schedule and of the latent together; here one that "
            "z.ai recommends.",
        ),
        "enhance_prompt_api": build(
            "enhance_prompt_api",
            "## Rewrite the prompt\nA chat model turns a few words into the long caption that GLM-Image works best with. Say "
            "where it is: **base_url** and **model**; the default is Ollama on this machine.\n\nTexts in quotation marks stay as "
            "they are. A key goes into an environment variable, and **key_variable** says which.",
            SHORT_PROMPT,
            rewriter="GLMImageEnhancePromptAPI",
        ),
        "enhance_prompt": build(
            "enhance_prompt",
            "## Rewrite the prompt\nA vision-language model turns a few words into the long caption that GLM-Image works best "
            "with. It lies below *models/LLM*: Glmga, GLM-4.1V, GLM-4.6V or another.\n\nTexts in quotation marks stay as they "
            "are. **style** says what kind of picture it is.",
            SHORT_PROMPT,
            rewriter="GLMImageEnhancePrompt",
        ),
        "describe": build(
            "describe",
            "## Paint what is in a picture\nA vision-language model describes a picture, and GLM-Image paints from the "
            "description. The text at the top says what to describe; empty asks for a plain caption.\n\nFor the frames of a "
            "clip, give **frame_rate**.",
            INSTRUCTION,
            rewriter="GLMImageDescribe",
        ),
        "cogview3_plus": cogview3_plus(
            "cogview3_plus",
            "## CogView3-Plus\nGLM-Image's predecessor of 3B paints from the prompt without a plan: 512 to 2048 pixels, long "
            "English captions.\n\n**GLM-Image Enhance Prompt** writes such a caption from a few words: switch it and its "
            "loader on (Ctrl+B).",
        ),
        "cogview3_base": cogview3_base(
            "cogview3_base",
            "## CogView3-Base and its relay\nThe first CogView3 paints 512 x 512 pixels, and the relay paints that anew at "
            "twice the sides. `python . convert` makes the two folders from the published checkpoints.\n\nDistilled ones: base "
            "4 **steps**; relay 5 **steps**, 1 of **relay_steps**.",
        ),
        "remote": remote(
            "remote",
            "## On another machine\n**base_url** is the address of an SGLang or a vLLM-Omni that serves GLM-Image. For an edit, "
            "connect the pictures to **images**.\n\nA request that may have arrived is never sent twice.",
        ),
        "nano": build(
            "nano",
            "## The built-in model\nA very small GLM-Image that comes with the pack and paints in seconds, on a CPU too: "
            "circles, squares, triangles, stars and crosses in eight colours, up to four of them, and a word of capitals and "
            'digits in "quotation marks".\n\nIt reads English and Chinese, and pictures of 192 to 384 pixels a side.',
            NANO_PROMPT,
            **OF_NANO,
        ),
        "nano_edit": build(
            "nano_edit",
            "## An edit by the built-in model\nWhat it understands: another colour for a shape or for the ground, move, add and "
            "remove a shape, another word, a shape from one picture into another.\n\nThe picture has the size of its reference.",
            NANO_EDIT,
            pictures=(SHAPES,),
            **OF_NANO,
        ),
    }


def write(folder: Path) -> None:
    """Write every workflow in both formats below a folder."""
    (folder / "api").mkdir(parents=True, exist_ok=True)
    for name, ui in all_workflows().items():
        prompt = unfold(ui, ALL_NODES)
        (folder / f"{name}.json").write_text(json.dumps(ui, indent=1) + "\n", "utf-8")
        (folder / "api" / f"{name}.json").write_text(json.dumps(prompt, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    write(ROOT / "workflows")
