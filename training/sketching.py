"""How much it helps to choose among sketches by how sure the planner is: questions of `scoring`, from seeds of their own."""

import random
from collections.abc import Iterator
from typing import NamedTuple

from ..glmimage_core.glm_image.pipeline import GlmImage
from ..glmimage_core.glm_image.plans.choose import best, chosen
from ..glmimage_core.glm_image.plans.entropy import token_information
from ..glmimage_core.glm_image.sketch import expand_sketches, sketch_priors
from .captions import LANGUAGES, Request, describe
from .drawing import draw_plan
from .reading import read
from .scoring import SIZES, does_what_is_asked
from .world import CELL_PX, random_scene

SKETCHES = 4
STEPS = 20


class Chosen(NamedTuple):
    """first, best: whether the picture of the first sketch, and that of the one of which the planner is surest, is right.

    some: whether that of any sketch is; None where not all were looked at.
    """

    request: Request
    first: bool
    best: bool
    some: bool | None = None


def requests(count: int) -> Iterator[Request]:
    """Held-out prompts for several things, at all sizes, in both languages."""
    for number in range(count):
        rng = random.Random(f"held out/sketch/{number}")
        scene = random_scene(rng, *SIZES[number % len(SIZES)])
        yield describe(rng, scene, LANGUAGES[number % len(LANGUAGES)])


def choose(glm: GlmImage, request: Request, seed: int, *, plans_alone: bool = False) -> Chosen:
    """Sketch a prompt, and paint the first sketch and the chosen one. plans_alone: code draws all of them instead."""
    width, height = request.scene.columns * CELL_PX, request.scene.rows * CELL_PX
    sketches = sketch_priors(glm.ar, request.prompt, width, height, seed=seed, batch=SKETCHES)
    bits = token_information(glm.ar, sketches).mean((1, 2))
    (number,) = best((-bits).tolist(), 1)

    def is_right(sketch: int) -> bool:
        plan = expand_sketches(glm.ar, chosen(sketches, [sketch]), seed=seed + sketch)
        if plans_alone:
            picture = draw_plan(plan.tokens[0], request.word.text if request.word else "")
        else:
            picture = glm.paint_tensor(plan, seed=seed, steps=STEPS)[0]
        return does_what_is_asked(read(picture), request)

    right = {sketch: is_right(sketch) for sketch in (range(SKETCHES) if plans_alone else {0, number})}
    return Chosen(request, right[0], right[number], any(right.values()) if plans_alone else None)
