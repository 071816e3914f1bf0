"""Writes workflows/*.json (UI format) and workflows/api/*.json (API format) from the descriptions below.

    python scripts/make_workflows.py

UI format is laid out by graph_layout.py and converted to API format by the pack's own converter, so the two cannot drift apart.
Run it after a change to a node's inputs; a test compares the files with what it writes. What the notes say is in
workflow_notes.py, and workflows/__init__.py says what the files are called.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from _pack import ROOT
from glm_image_pack.cli.graph.unfold import unfold
from glm_image_pack.glmimage_core.glm_image.files.components import NANO
from glm_image_pack.workflows import TEMPLATES

from graph_layout import ALL_NODES, ERROR, PREVIEW, Column, Graph
from workflow_notes import (
    ABOUT,
    COGVIEW3_BASE_MODEL,
    COGVIEW3_PLUS_MODEL,
    EDIT_MODEL,
    MODEL,
    NANO_MODEL,
    PARTS_MODEL,
    RESTYLE_MODEL,
    REWRITTEN_MODEL,
    TWO_PICTURES_MODEL,
    VLM_MODEL,
)

PROMPT = (
    "A small bookshop on a rainy evening, seen from across the street. Warm light falls through the window onto wet "
    'cobblestones. Above the door hangs a hand-painted wooden sign that says "THE LAST PAGE". A cat sleeps among the books '
    "in the window."
)
EDIT = 'It is winter now: snow lies on the roof and in the garden. Above the door hangs a sign that says "CLOSED".'
RESTYLE = "An oil painting of a small house on a lawn in the evening, thick brush strokes, warm light in both windows."
COMBINE = "The mug from the second picture stands on the lawn in front of the house from the first picture, as tall as the door."
SHORT_PROMPT = 'a cosy bookshop with a sign "THE LAST PAGE" and a sleeping cat'
COGVIEW3_PROMPT = (
    "A lighthouse on a rocky coast at dusk, its warm light falling on wet stones and low waves, a few gulls above, in the "
    "distance a dark blue sea under a sky of orange and violet clouds; a photograph taken from a low angle."
)
INSTRUCTION = "Describe this picture as the caption of a watercolour of the same scene, in one paragraph."
NANO_PROMPT = "A large red star in the centre and two small yellow circles on a blue background."
NANO_EDIT = "Change the red circle to blue."
SCENE, MUG, SHAPES = "glm-image-scene.png", "glm-image-mug.png", "glm-image-shapes.png"

VLM = "Glmga"
REWRITING = {"typed": "prompt", "group": "Rewrite", "answer": "Rewritten prompt"}
REWRITERS = {  # with the input that is typed, what its group and its answer are called, and values of other inputs
    "GLMImageEnhancePromptAPI": REWRITING | {"model": "qwen3"},
    "GLMImageEnhancePrompt": REWRITING,
    "GLMImageDescribe": {"typed": "instruction", "group": "Describe", "answer": "Description"},
}
SEEING = ("GLMImageEnhancePrompt", "GLMImageDescribe")
CHECKPOINT = {"checkpoint": "GLM-Image", "dtype": "auto"}
BUILT_IN = {"checkpoint": NANO, "dtype": "float32"}  # a CPU is at its best in float32, and it is small
OF_NANO = {"checkpoint": BUILT_IN, "note": NANO_MODEL, "size": {"aspect": "1:1", "megapixels": 0.06}, "steps": 20}
SIZE = {"aspect": "1280 x 1280", "megapixels": 1.55}
NONE: Mapping[str, str] = {}

# Left edge and width of the columns that graphs are described in, in the order in which they are read. `Graph.settle` keeps which
# nodes of a group stand below each other, where there is room, and gives all columns one width.
ABOUT_COLUMN, WORDS, PLAN, PAINT, RESULT = (0, 370), (420, 340), (810, 330), (1190, 330), (1570, 350)
LOWER_ROW = 1040  # top of groups that may stand below the others
BLUE, PURPLE, YELLOW, GREEN, BROWN = "#6fa8d6", "#c58be0", "#d9b45b", "#93c793", "#dd945f"


class Loaded(NamedTuple):
    """What every graph begins with. Parts are links: (node, output)."""

    model: tuple
    ar: tuple
    glyph_encoder: tuple
    vae: tuple


class Words(NamedTuple):
    """The prompt and its conditionings as links."""

    text: tuple
    positive: tuple
    negative: tuple


def about(graph: Graph, column: Column) -> None:
    """What the graph is about."""
    heading = TEMPLATES[graph.name].split(maxsplit=2)[2]
    graph.note(column, "About this workflow", f"## {heading[0].upper()}{heading[1:]}\n{ABOUT[graph.name]}")


def load(graph: Graph, checkpoint: dict = CHECKPOINT, model_note: str = MODEL, lora: bool = False) -> Loaded:
    """What the graph is about, the loader, and where its files come from."""
    column = graph.column(*ABOUT_COLUMN)
    about(graph, column)
    loader = column.add("GLMImageLoad", preview=ERROR, **checkpoint)
    model, ar, glyph_encoder, vae = ((loader, output) for output in range(4))
    nodes = [loader]
    if lora:
        changed = column.add("GLMImageLoadLoRA", bypassed=True, model=model, ar=ar, lora_name="lora.safetensors")
        model, ar = (changed, 0), (changed, 1)
        nodes.append(changed)
    nodes.append(graph.note(column, "Model files", model_note))
    graph.group("Model", BLUE, *nodes)
    return Loaded(model, ar, glyph_encoder, vae)


def encode(graph: Graph, loaded: Loaded, prompt: str, rewriter: str = "") -> Words:
    """The prompt typed once, and encoded. rewriter: the node that rewrites it, if any."""
    column = graph.column(*WORDS)
    typed = column.add("GLMImagePrompt", title="Prompt", taller=160, prompt=prompt)
    text = (typed, 0)
    if rewriter:
        text = (rewritten(graph, rewriter, text), 0)
    encoded = column.add("GLMImageEncodePrompt", glyph_encoder=loaded.glyph_encoder, prompt=text)
    graph.group("Prompt", PURPLE, typed, encoded)
    return Words(text, (encoded, 0), (encoded, 1))


def rewritten(graph: Graph, rewriter: str, text: tuple) -> dict:
    """The node that writes the prompt, from the text that is typed, with what it needs and what shows its answer."""
    inputs, column = dict(REWRITERS[rewriter]), graph.column(*WORDS, top=LOWER_ROW)
    typed, group, answer = (inputs.pop(name) for name in ("typed", "group", "answer"))
    nodes = []
    if rewriter in SEEING:
        vlm = column.add("GLMImageLoadVLM", preview=ERROR, checkpoint=VLM)
        inputs["vlm"] = (vlm, 0)
        nodes.append(vlm)
        if rewriter == "GLMImageDescribe":
            nodes.append(column.add("LoadImage", title="Picture", taller=40, image=SCENE))
            inputs["images"] = (nodes[-1], 0)
        else:
            nodes.append(graph.note(column, "Model files of the writer", VLM_MODEL))
        column = graph.column(*PLAN, top=LOWER_ROW)
    writer = column.add(rewriter, taller=60, **{typed: text}, **inputs)
    beside = PAINT if column.left == PLAN[0] else PLAN
    shown = graph.column(*beside, top=LOWER_ROW).add("PreviewAny", title=answer, taller=160, source=(writer, 0))
    graph.group(group, BROWN, *nodes, writer, shown)
    return writer


def plan(
    graph: Graph,
    loaded: Loaded,
    words: Words,
    *,
    size: Mapping = SIZE,
    references: Mapping = NONE,
    may_vary: bool = False,
    **settings,
) -> dict:
    """The plan, with room for its preview. size: inputs of the node that sets it, or none. may_vary: with a variation seed that
    is switched off. Returns the node of the plan."""
    column = graph.column(*PLAN)
    nodes = []
    if may_vary:
        nodes.append(column.add("GLMImageVariation", bypassed=True))
        settings |= {"variation": (nodes[0], 0)}
    if size:
        nodes.append(column.add("GLMImageSize", ar=loaded.ar, fit=True, **size))
        settings |= sides_of(nodes[-1])
    inputs = {"ar": loaded.ar, "prompt": words.text, **settings, **references}
    nodes.append(column.add("GLMImageGeneratePrior", preview=PREVIEW, **inputs))
    graph.group("Plan", YELLOW, *nodes)
    return nodes[-1]


def sides_of(size: dict) -> dict[str, tuple]:
    """Width and height as links."""
    return {"width": (size, 0), "height": (size, 1)}


def sides_in(graph: Graph) -> dict[str, tuple]:
    """Those that the graph's node GLM-Image Size sets."""
    return sides_of(next(node for node in graph.nodes if node["type"] == "GLMImageSize"))


def right_half(column: Column) -> list[dict]:
    """The nodes of a mask over the right half of a picture of any size; the last one gives it."""
    whole = column.add("SolidMask", title="Left: stays", value=0.0, width=2, height=1)
    half = column.add("SolidMask", title="Right: changes", value=1.0, width=1, height=1)
    put = {"destination": (whole, 0), "source": (half, 0), "x": 1, "y": 0, "operation": "add"}
    return [whole, half, column.add("MaskComposite", title="Both halves", **put)]


def applied(column: Column, words: Words, prior: dict, references: Mapping = NONE) -> tuple[dict, dict[str, tuple]]:
    """Apply Prior, and its conditionings as inputs of a sampler."""
    sides = {"positive": words.positive, "negative": words.negative}
    node = column.add("GLMImageApplyPrior", **sides, prior=(prior, 0), **references)
    return node, {"positive": (node, 0), "negative": (node, 1)}


def save(
    graph: Graph, vae: tuple, samples: tuple, *, top: int = 0, decoder: str = "GLMImageVAEDecode", taller: int = 140
) -> list[dict]:
    """The picture decoded and saved."""
    column = graph.column(*RESULT, top=top)
    decoded = column.add(decoder, vae=vae, samples=samples)
    return [decoded, column.add("SaveImage", taller=140, images=(decoded, 0), filename_prefix=f"glm-image/{graph.name}")]


def paint(
    graph: Graph, loaded: Loaded, words: Words, prior: dict, *, references: Mapping = NONE, painting_seeds=(0,), **inputs
) -> None:
    """Apply Prior, and for each seed our sampler and its picture."""
    column = graph.column(*PAINT)
    applying, conditioning = applied(column, words, prior, references)
    nodes, several = [applying], len(painting_seeds) > 1
    for number, seed in enumerate(painting_seeds):
        top = column.top if number else 0
        title = f"Sampler {number + 1}" if several else None
        samples = {"model": loaded.model, "seed": seed, **conditioning, **inputs}
        nodes.append(column.add("GLMImageSampler", preview=PREVIEW, title=title, **samples))
        nodes += save(graph, loaded.vae, (nodes[-1], 0), top=top)
    graph.group("Paint", GREEN, *nodes)


def refer(graph: Graph, loaded: Loaded, pictures: tuple[str, ...]) -> dict[str, tuple]:
    """Pictures to edit, side by side, and what encodes them one after the other. Returns them as inputs."""
    *places, last = (WORDS, PLAN, PAINT)[: len(pictures) + 1]
    encoders, references, nodes = graph.column(*last, top=LOWER_ROW), {}, []
    for number, (picture, place) in enumerate(zip(pictures, places, strict=True)):
        column = graph.column(*place, top=LOWER_ROW)
        image = column.add("LoadImage", title=f"Reference {number + 1}", taller=40, image=picture)
        inputs = {"ar": loaded.ar, "vae": loaded.vae, "image": (image, 0), **references}
        nodes += [image, encoders.add("GLMImageEncodeReference", **inputs)]
        references = {"references": (nodes[-1], 0)}
    graph.group("References", BROWN, *nodes)
    return references


def text_to_image(
    graph: Graph,
    prompt: str = PROMPT,
    *,
    checkpoint: dict = CHECKPOINT,
    note: str = MODEL,
    pictures: tuple[str, ...] = (),
    lora: bool = False,
    rewriter: str = "",
    size: Mapping = SIZE,
    planning: Mapping = NONE,
    **painting,
) -> None:
    """Text to image or an edit: prompt, plan, picture. planning, painting: other inputs of Generate Prior and the samplers."""
    loaded = load(graph, checkpoint, note, lora)
    words = encode(graph, loaded, prompt, rewriter)
    references = refer(graph, loaded, pictures) if pictures else {}
    prior = plan(graph, loaded, words, size=size, references=references, **planning)
    paint(graph, loaded, words, prior, references=references, **painting)
    if rewriter == "GLMImageDescribe":  # last, so that the other nodes keep their numbers
        graph.note(graph.column(*ABOUT_COLUMN, top=LOWER_ROW), "Model files of the writer", VLM_MODEL)


def separate_loaders(graph: Graph) -> None:
    """Text to image with a loader for each part, and one node that chooses the checkpoint of all of them."""
    column = graph.column(*ABOUT_COLUMN)
    about(graph, column)
    loaders = [column.add(f"GLMImageLoad{part}", preview=ERROR, **CHECKPOINT) for part in ("DiT", "AR", "GlyphEncoder", "VAE")]
    graph.group("Model", BLUE, *loaders, graph.note(column, "Model files", PARTS_MODEL))
    loaded = Loaded(*((loader, 0) for loader in loaders))
    words = encode(graph, loaded, PROMPT)
    paint(graph, loaded, words, plan(graph, loaded, words))
    graph.choose(column, "Checkpoint of all four", loaders, "checkpoint", CHECKPOINT["checkpoint"])


def restyle(graph: Graph) -> None:
    """A picture painted over: its own latent, partly noised, under a new plan of its own size."""
    loaded = load(graph, model_note=RESTYLE_MODEL)
    words = encode(graph, loaded, RESTYLE)
    image = graph.column(*WORDS, top=LOWER_ROW).add("LoadImage", title="Picture", taller=40, image=SCENE)
    size = {"aspect": "like image", "megapixels": 1.5, "image": (image, 0)}
    prior = plan(graph, loaded, words, size=size)
    sides = sides_in(graph)
    column = graph.column(*PLAN, top=LOWER_ROW)
    fitted = column.add("ImageScale", image=(image, 0), upscale_method="lanczos", crop="center", **sides)
    latent = column.add("GLMImageVAEEncode", vae=loaded.vae, image=(fitted, 0))
    graph.group("Picture", BROWN, image, fitted, latent)
    paint(graph, loaded, words, prior, latent_image=(latent, 0), denoise=0.7)


def planned_by_size(graph: Graph, aspect: str) -> tuple[Loaded, dict[str, tuple], dict[str, tuple], Column, dict]:
    """Loaders, prompt and plan. Returns the size and both conditionings as inputs, too, and the column that goes on."""
    loaded = load(graph)
    words = encode(graph, loaded, PROMPT)
    prior = plan(graph, loaded, words, size={"aspect": aspect})
    sides = sides_in(graph)
    column = graph.column(*PAINT)
    applying, conditioning = applied(column, words, prior)
    return loaded, sides, conditioning, column, applying


def stock_sampler(graph: Graph) -> None:
    """The plan painted by ComfyUI's own nodes, all of one size."""
    loaded, sides, conditioning, column, applying = planned_by_size(graph, "1728 x 960")
    sized = column.add("GLMImageModelSampling", model=loaded.model, **sides)
    empty = column.add("EmptySD3LatentImage", **sides)
    inputs = {"model": (sized, 0), "latent_image": (empty, 0), **conditioning}
    sampler = column.add("KSampler", preview=PREVIEW, **inputs)
    saved = save(graph, loaded.vae, (sampler, 0), decoder="VAEDecode")
    graph.group("Paint", GREEN, applying, sized, empty, sampler, *saved)


def custom_sampler(graph: Graph) -> None:
    """The plan painted by ComfyUI's custom sampler along GLM-Image's own schedule."""
    loaded, sides, conditioning, column, applying = planned_by_size(graph, "1088 x 1472")
    parts = {
        "noise": column.add("RandomNoise"),
        "guider": column.add("CFGGuider", model=loaded.model, **conditioning),
        "sampler": column.add("KSamplerSelect"),
        "sigmas": column.add("GLMImageScheduler", model=loaded.model, **sides),
        "latent_image": column.add("EmptySD3LatentImage", **sides),
    }
    links = {part: (node, 0) for part, node in parts.items()}
    result = graph.column(*RESULT)
    sampler = result.add("SamplerCustomAdvanced", preview=PREVIEW, **links)
    saved = save(graph, loaded.vae, (sampler, 0), top=result.top, decoder="VAEDecode")
    graph.group("Paint", GREEN, applying, *parts.values(), sampler, *saved)


def cogview3_plus(graph: Graph) -> None:
    """Text to image without a plan, and a place for what writes the caption, bypassed."""
    column = graph.column(*ABOUT_COLUMN)
    about(graph, column)
    loaded = column.add("GLMImageLoadCogView3", preview=ERROR, checkpoint="CogView3-Plus-3B")
    vlm = column.add("GLMImageLoadVLM", preview=ERROR, checkpoint=VLM, bypassed=True)
    note = graph.note(column, "Model files", f"{COGVIEW3_PLUS_MODEL}\n\nThe writer is {VLM_MODEL}")
    graph.group("Models", BLUE, loaded, vlm, note)
    column = graph.column(*WORDS)
    typed = column.add("GLMImagePrompt", title="Prompt", taller=160, prompt=COGVIEW3_PROMPT)
    settings = {"vlm": (vlm, 0), "prompt": (typed, 0), "language": "en"}
    written = column.add("GLMImageEnhancePrompt", bypassed=True, **settings)
    encoded = graph.column(*PLAN).add("GLMImageCogView3Encode", text_encoder=(loaded, 1), prompt=(written, 0))
    graph.group("Prompt", PURPLE, typed, written, encoded)
    sides = {"positive": (encoded, 0), "negative": (encoded, 1)}
    sampler = graph.column(*PAINT).add("GLMImageCogView3Sampler", preview=PREVIEW, model=(loaded, 0), **sides)
    graph.group("Paint", GREEN, sampler, *save(graph, (loaded, 2), (sampler, 0)))


def cogview3_base(graph: Graph) -> None:
    """A picture by the base, and its relay to twice the sides."""
    column = graph.column(*ABOUT_COLUMN)
    about(graph, column)
    t5 = column.add("GLMImageLoadT5", preview=ERROR, checkpoint="CogView3-Plus-3B")
    base = column.add("GLMImageLoadCogView3Base", preview=ERROR, checkpoint="cogview3-base-3b")
    relay_model = {"title": "Load CogView3-Base (relay)", "checkpoint": "cogview3-relay-3b"}
    second = column.add("GLMImageLoadCogView3Base", preview=ERROR, **relay_model)
    note = graph.note(column, "Model files", COGVIEW3_BASE_MODEL)
    graph.group("Models", BLUE, t5, base, second, note)
    column = graph.column(*WORDS)
    typed = column.add("GLMImagePrompt", title="Prompt", taller=160, prompt=COGVIEW3_PROMPT)
    of_family = {"text_encoder": (t5, 0), "prompt": (typed, 0), "family": "CogView3-Base"}
    encoded = column.add("GLMImageCogView3Encode", **of_family)
    sides = {"positive": (encoded, 0), "negative": (encoded, 1)}
    graph.group("Prompt", PURPLE, typed, encoded)
    # Without a plan: base and relay stand where plan and painting stand in other graphs.
    column = graph.column(*PLAN)
    painted = column.add("GLMImageCogView3BaseSampler", preview=PREVIEW, model=(base, 0), **sides)
    small = column.add("GLMImageVAEDecode", vae=(base, 1), samples=(painted, 0))
    graph.group("Paint", GREEN, painted, small, column.add("PreviewImage", images=(small, 0)))
    relayed = {"model": (second, 0), "vae": (base, 1), "image": (small, 0), **sides}
    relay = graph.column(*PAINT).add("GLMImageCogView3Relay", preview=PREVIEW, **relayed)
    graph.group("Relay", BROWN, relay, *save(graph, (base, 1), (relay, 0)))


def remote(graph: Graph) -> None:
    """The whole of it elsewhere."""
    column = graph.column(*ABOUT_COLUMN)
    about(graph, column)
    text = column.add("GLMImagePrompt", title="Prompt", taller=160, prompt=PROMPT)
    graph.group("Prompt", PURPLE, text)
    painted = graph.column(*WORDS).add("GLMImageRemote", prompt=(text, 0))
    shown = {"images": (painted, 0), "filename_prefix": f"glm-image/{graph.name}"}
    graph.group("Paint", GREEN, painted, graph.column(PLAN[0], 420).add("SaveImage", taller=280, **shown))


DESCRIPTIONS: dict[str, Callable[[Graph], None]] = {
    "nano": partial(text_to_image, prompt=NANO_PROMPT, **OF_NANO),
    "nano_edit": partial(text_to_image, prompt=NANO_EDIT, pictures=(SHAPES,), **OF_NANO),
    "text_to_image": text_to_image,
    "variations": partial(text_to_image, planning={"batch_size": 4, "may_vary": True}),
    "same_prior_new_seed": partial(text_to_image, planning={"seeds": "fixed"}, painting_seeds=(0, 1)),
    "lora": partial(text_to_image, lora=True),
    "separate_loaders": separate_loaders,
    "image_edit": partial(text_to_image, prompt=EDIT, pictures=(SCENE,), note=EDIT_MODEL),
    "several_references": partial(text_to_image, prompt=COMBINE, pictures=(SCENE, MUG), note=TWO_PICTURES_MODEL),
    "restyle": restyle,
    "stock_sampler": stock_sampler,
    "custom_sampler": custom_sampler,
    "enhance_prompt": partial(text_to_image, prompt=SHORT_PROMPT, rewriter="GLMImageEnhancePrompt", note=REWRITTEN_MODEL),
    "enhance_prompt_api": partial(text_to_image, prompt=SHORT_PROMPT, rewriter="GLMImageEnhancePromptAPI", note=REWRITTEN_MODEL),
    "describe": partial(text_to_image, prompt=INSTRUCTION, rewriter="GLMImageDescribe", note=REWRITTEN_MODEL),
    "remote": remote,
    "cogview3_plus": cogview3_plus,
    "cogview3_base": cogview3_base,
}


def graph_of(name: str) -> Graph:
    """The graph of the shipped workflow with that short name."""
    from blueprint_workflows import BLUEPRINTS
    from inpaint_workflows import PARTS  # which are laid out with the functions above
    from plan_workflows import PLANS

    graph = Graph(name)
    (DESCRIPTIONS | BLUEPRINTS | PLANS | PARTS)[name](graph)
    graph.settle()
    return graph


def write(folder: Path) -> None:
    """Write every workflow in both formats below a folder."""
    (folder / "api").mkdir(parents=True, exist_ok=True)
    for name, title in TEMPLATES.items():
        ui = graph_of(name).ui()
        prompt = unfold(ui, ALL_NODES)
        (folder / f"{title}.json").write_text(json.dumps(ui, indent=1) + "\n", "utf-8")
        (folder / "api" / f"{name}.json").write_text(json.dumps(prompt, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    write(ROOT / "workflows")
