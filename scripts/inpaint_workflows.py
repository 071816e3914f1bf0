"""The shipped workflows that change a part and keep the rest: inpaint, outpaint, an edit with untouched pixels, regions.

Laid out with the functions of make_workflows.py, which writes them with the others. They run on nano.
"""

from collections.abc import Callable, Mapping

from graph_layout import PREVIEW, Column, Graph
from make_workflows import (
    BROWN,
    BUILT_IN,
    GREEN,
    LOWER_ROW,
    NANO_EDIT,
    OF_NANO,
    PAINT,
    PLAN,
    RESULT,
    SHAPES,
    WORDS,
    YELLOW,
    Loaded,
    Words,
    encode,
    load,
    plan,
    refer,
    right_half,
)
from workflow_notes import NANO_MODEL

MASKED = "glm-image-shapes-masked.png"
STEPS = OF_NANO["steps"]


def inpaint(graph: Graph) -> None:
    """What a mask covers is changed."""
    loaded, words = begin(graph, "Change the red circle to purple.")
    picture = graph.column(*WORDS, top=LOWER_ROW).add("LoadImage", title="Picture with a mask", taller=40, image=MASKED)
    graph.group("Picture", BROWN, picture)
    prepare_and_paint(graph, loaded, words, {"image": (picture, 0), "mask": (picture, 1)})


def outpaint(graph: Graph) -> None:
    """A picture gets room on one side, which is painted."""
    loaded, words = begin(graph, "Add a small yellow star at the right.")
    picture = graph.column(*WORDS, top=LOWER_ROW).add("LoadImage", title="Picture", taller=40, image=SHAPES)
    room = graph.column(*PLAN, top=LOWER_ROW).add("GLMImagePadForOutpaint", image=(picture, 0), right=128)
    graph.group("Picture", BROWN, picture, room)
    prepare_and_paint(graph, loaded, words, {"image": (room, 0), "mask": (room, 1)}, under_mask="replace it")


def edit_untouched(graph: Graph) -> None:
    """An edit whose picture is the old one, to the pixel, wherever the plan did not change."""
    loaded, words = begin(graph, NANO_EDIT)
    references = refer(graph, loaded, (SHAPES,))
    prior = plan(graph, loaded, words, size=OF_NANO["size"], references=references)
    column = graph.column(*PAINT)
    applied = column.add("GLMImageApplyPrior", prior=(prior, 0), **sides(words), **references)
    changed = column.add("GLMImageChangedMask", prior=(prior, 0), grow=1, **references)
    picture = next(node for node in graph.nodes if node["type"] == "LoadImage")
    sources = {"latent": (changed, 1), "mask": (changed, 0), "original": (picture, 0)}
    paint_and_put(graph, loaded, column, [applied, changed], sources)


def regions(graph: Graph) -> None:
    """A plan of which one half is planned anew by a prompt of its own."""
    loaded, words = begin(graph, "A large red star at the left on a blue background.")
    prior = plan(graph, loaded, words, size=OF_NANO["size"])
    column = graph.column(*WORDS, top=LOWER_ROW)
    halves = right_half(column)
    prompt = "A large red star at the left and a small yellow circle at the right on a blue background."
    asked = {"ar": loaded.ar, "prior": (prior, 0), "mask": (halves[-1], 0), "prompt": prompt}
    regrown = graph.column(*PLAN, top=LOWER_ROW).add("GLMImageRegrowPrior", preview=PREVIEW, **asked)
    graph.group("Another half", BROWN, *halves, regrown)
    column = graph.column(*PAINT)
    applied = column.add("GLMImageApplyPrior", prior=(regrown, 0), **sides(words))
    paint_and_put(graph, loaded, column, [applied], {})


def begin(graph: Graph, prompt: str) -> tuple[Loaded, Words]:
    """nano and the prompt."""
    loaded = load(graph, BUILT_IN, NANO_MODEL)
    return loaded, encode(graph, loaded, prompt)


def sides(words: Words) -> dict[str, tuple]:
    """Both conditionings as inputs."""
    return {"positive": words.positive, "negative": words.negative}


def prepare_and_paint(graph: Graph, loaded: Loaded, words: Words, picture: dict[str, tuple], **settings) -> None:
    """Inpaint and what follows. picture: the links of a picture and of its mask."""
    asked = {"ar": loaded.ar, "vae": loaded.vae, "prompt": words.text, **picture, **settings}
    prepared = graph.column(*PLAN).add("GLMImageInpaint", preview=PREVIEW, **asked)
    graph.group("Plan", YELLOW, prepared)
    column = graph.column(*PAINT)
    planned = {"prior": (prepared, 0), "references": (prepared, 1)}
    applied = column.add("GLMImageApplyPrior", **planned, **sides(words))
    sources = {"latent": (prepared, 2), "mask": (prepared, 3), "original": picture["image"]}
    paint_and_put(graph, loaded, column, [applied], sources)


def paint_and_put(graph: Graph, loaded: Loaded, column: Column, nodes: list[dict], sources: Mapping[str, tuple]) -> None:
    """The sampler below the nodes of Apply Prior, and the result put into the original, where there is one.

    sources: links of the latent to start from, the mask and the original.
    """
    conditioning = {"positive": (nodes[0], 0), "negative": (nodes[0], 1)}
    start = {"latent_image": sources["latent"]} if sources else {}
    sampler = column.add("GLMImageSampler", preview=PREVIEW, model=loaded.model, steps=STEPS, **conditioning, **start)
    result = graph.column(*RESULT)
    decoded = result.add("GLMImageVAEDecode", vae=loaded.vae, samples=(sampler, 0))
    nodes += [sampler, decoded]
    if sources:
        put = {"original": sources["original"], "painted": (decoded, 0), "mask": sources["mask"]}
        nodes.append(result.add("GLMImageCompositeMasked", **put))
    shown = {"images": (nodes[-1], 0), "filename_prefix": f"glm-image/{graph.name}"}
    graph.group("Paint", GREEN, *nodes, result.add("SaveImage", taller=140, **shown))


PARTS: dict[str, Callable[[Graph], None]] = {
    "inpaint": inpaint,
    "outpaint": outpaint,
    "edit_untouched": edit_untouched,
    "regions": regions,
}
