"""The shipped workflows around plans: kept, painted again, taken from a picture. They run on nano.

Laid out with the functions of make_workflows.py, which writes them with the others.
"""

from collections.abc import Callable

from graph_layout import PREVIEW, Graph
from make_pictures import PLANNED
from make_workflows import (
    BROWN,
    BUILT_IN,
    GREEN,
    LOWER_ROW,
    OF_NANO,
    PAINT,
    PLAN,
    RESULT,
    SHAPES,
    WORDS,
    YELLOW,
    Words,
    applied,
    encode,
    load,
    paint,
    plan,
    right_half,
    sides_in,
    sides_of,
)
from workflow_notes import NANO_MODEL

KEPT, SMALL_SHAPES = "glm-image-plan.png", "glm-image-small-shapes.png"
SKETCHED = "A large yellow star and two small green circles on a purple background."
MIXED = "A large red star and a small yellow circle on a blue background."
STEPS = OF_NANO["steps"]


def keep_plan(graph: Graph) -> None:
    """A plan that is looked at, painted and kept in its picture."""
    loaded = load(graph, BUILT_IN, NANO_MODEL)
    words = encode(graph, loaded, PLANNED)
    prior = plan(graph, loaded, words, size=OF_NANO["size"])
    column = graph.column(*PAINT)
    applying, conditioning = applied(column, words, prior)
    sampler = column.add("GLMImageSampler", preview=PREVIEW, model=loaded.model, steps=STEPS, **conditioning)
    result = graph.column(*RESULT)
    decoded = result.add("GLMImageVAEDecode", vae=loaded.vae, samples=(sampler, 0))
    kept = result.add("GLMImageSavePrior", preview=PREVIEW, prior=(prior, 0), images=(decoded, 0), filename_prefix="prior/nano")
    graph.group("Paint and keep", GREEN, applying, sampler, decoded, kept)
    draft = {"model": loaded.model, "vae": loaded.vae, **conditioning}
    looks = (
        (WORDS, "GLMImagePreviewPrior", {"prior": (prior, 0), "ar": loaded.ar, "image": (decoded, 0)}),
        (PLAN, "GLMImagePriorEntropy", {"prior": (prior, 0), "ar": loaded.ar}),
        (PAINT, "GLMImageDraft", draft | {"preview": PREVIEW}),  # it shows the picture forming
    )
    nodes = []
    for place, node_type, inputs in looks:
        column = graph.column(*place, top=LOWER_ROW)
        nodes.append(column.add(node_type, **inputs))
        nodes.append(column.add("PreviewImage", images=(nodes[-1], 0)))
    graph.group("Look", BROWN, *nodes)


def load_plan(graph: Graph) -> None:
    """A plan from a picture that carries it, painted again."""
    loaded = load(graph, BUILT_IN, NANO_MODEL)
    kept = graph.column(*WORDS).add("GLMImageLoadPrior", file=KEPT)
    encoded = graph.column(*PLAN).add("GLMImageEncodePrompt", glyph_encoder=loaded.glyph_encoder, prompt=(kept, 1))
    graph.group("Plan", YELLOW, kept, encoded)
    paint(graph, loaded, Words((kept, 1), (encoded, 0), (encoded, 1)), kept, steps=STEPS)


def picture_plan(graph: Graph) -> None:
    """A picture's own plan, painted from noise."""
    loaded = load(graph, BUILT_IN, NANO_MODEL)
    column = graph.column(*WORDS)
    picture = column.add("LoadImage", title="Picture", taller=40, image=SHAPES)
    typed = column.add("GLMImagePrompt", title="Text to be drawn", taller=80, prompt="")
    graph.group("Picture", BROWN, picture, typed)
    column = graph.column(*PLAN)
    own = column.add("GLMImagePriorFromImage", ar=loaded.ar, image=(picture, 0))
    encoded = column.add("GLMImageEncodePrompt", glyph_encoder=loaded.glyph_encoder, prompt=(typed, 0))
    graph.group("Plan", YELLOW, own, encoded)
    paint(graph, loaded, Words((typed, 0), (encoded, 0), (encoded, 1)), own, steps=STEPS)


def mix_plans(graph: Graph) -> None:
    """Two plans in one, and what else can be done with a plan, switched off."""
    loaded = load(graph, BUILT_IN, NANO_MODEL)
    words = encode(graph, loaded, MIXED)
    one = plan(graph, loaded, words, size=OF_NANO["size"], seeds="fixed")
    sides = sides_in(graph)
    column = graph.column(*WORDS, top=LOWER_ROW)
    settings = {"ar": loaded.ar, "prompt": words.text, "seed": 1, "title": "Generate another Prior"}
    other = column.add("GLMImageGeneratePrior", preview=PREVIEW, **settings, **sides)
    column = graph.column(*PLAN, top=LOWER_ROW)
    halves = right_half(column)
    mask = halves[-1]
    column = graph.column(*PAINT, top=LOWER_ROW)
    mixed = column.add("GLMImageMixPriors", prior=(one, 0), other=(other, 0), mask=(mask, 0))
    piece = column.add("GLMImageCropPrior", prior=(other, 0), width=192, height=192)
    column = graph.column(*RESULT, top=LOWER_ROW)
    pasted = column.add("GLMImagePastePrior", bypassed=True, prior=(mixed, 0), piece=(piece, 0), x=64, y=64)
    moved = column.add("GLMImageShiftPrior", prior=(pasted, 0))
    dropped = column.add("GLMImageDropPrior", bypassed=True, prior=(moved, 0), mask=(mask, 0))
    graph.group("Mix, cut and move", BROWN, other, *halves, mixed, piece, pasted, moved, dropped)
    paint(graph, loaded, words, dropped, steps=STEPS)


def sketch_plans(graph: Graph) -> None:
    """Many previews, looked at on one sheet; the chosen ones expanded and painted."""
    loaded = load(graph, BUILT_IN, NANO_MODEL)
    words = encode(graph, loaded, SKETCHED)
    column = graph.column(*PLAN)
    size = column.add("GLMImageSize", ar=loaded.ar, fit=True, **OF_NANO["size"])
    asked = {"ar": loaded.ar, "prompt": words.text, **sides_of(size)}
    sketches = column.add("GLMImageSketchPriors", preview=PREVIEW, seeds="fixed", **asked)
    graph.group("Sketch", YELLOW, size, sketches)
    column = graph.column(*WORDS, top=LOWER_ROW)
    seen = column.add("GLMImagePreviewPrior", prior=(sketches, 0), ar=loaded.ar)
    sheet = column.add("GLMImageContactSheet", images=(seen, 0))
    shown = graph.column(*PLAN, top=LOWER_ROW).add("PreviewImage", taller=60, images=(sheet, 0))
    graph.group("Look", BROWN, seen, sheet, shown)
    column = graph.column(*PAINT, top=LOWER_ROW)
    surest = column.add("GLMImageChooseSurest", bypassed=True, ar=loaded.ar, prior=(sketches, 0))
    some = column.add("GLMImageChoosePriors", prior=(surest, 0))
    expanded = {"ar": loaded.ar, "sketches": (some, 0)}
    varied = graph.column(*RESULT, top=LOWER_ROW).add("GLMImageExpandPriors", preview=PREVIEW, **expanded)
    graph.group("Choose and expand", YELLOW, surest, some, varied)
    paint(graph, loaded, words, varied, steps=STEPS)


def enlarge(graph: Graph) -> None:
    """A picture painted larger in tiles, by the plan that it has at its new size."""
    loaded = load(graph, BUILT_IN, NANO_MODEL)
    column = graph.column(*WORDS)
    picture = column.add("LoadImage", title="Picture", taller=40, image=SMALL_SHAPES)
    typed = column.add("GLMImagePrompt", title="Text to be drawn", taller=80, prompt="")
    graph.group("Picture", BROWN, picture, typed)
    column = graph.column(*PLAN)
    larger = column.add("ImageScaleBy", image=(picture, 0), upscale_method="bicubic", scale_by=1.5)
    own = column.add("GLMImagePriorFromImage", ar=loaded.ar, image=(larger, 0))
    latent = column.add("GLMImageVAEEncode", vae=loaded.vae, image=(larger, 0))
    encoded = column.add("GLMImageEncodePrompt", glyph_encoder=loaded.glyph_encoder, prompt=(typed, 0))
    tiles = column.add("GLMImageTiles", model=loaded.model, tile=256, overlap=128)
    graph.group("Enlarge", YELLOW, larger, own, latent, encoded, tiles)
    words = Words((typed, 0), (encoded, 0), (encoded, 1))
    start = {"latent_image": (latent, 0), "denoise": 0.8}
    paint(graph, loaded._replace(model=(tiles, 0)), words, own, steps=STEPS, **start)


PLANS: dict[str, Callable[[Graph], None]] = {
    "keep_plan": keep_plan,
    "load_plan": load_plan,
    "picture_plan": picture_plan,
    "mix_plans": mix_plans,
    "sketch_plans": sketch_plans,
    "enlarge": enlarge,
}
