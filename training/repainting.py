"""How well a checkpoint paints pictures again from their own plans: held-out scenes, drawn, planned by their vision tokens."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..glmimage_core.glm_image.pipeline import GlmImage
from ..glmimage_core.images import to_pictures
from .drawing import draw
from .reading import read
from .scoring import SIZES, is_scene, psnr
from .world import Scene, random_scene

STEPS = 20


class Repainted(NamedTuple):
    """right: whether each shape, the word and the ground are read back where they were. psnr: to the drawing, in dB."""

    scene: Scene
    seen: Scene
    right: bool
    psnr: float


def held_out_scenes(count: int, sizes: Sequence[tuple[int, int]] = SIZES) -> Iterator[Scene]:
    """Scenes from seeds that training does not use. sizes: rows and columns, in turn."""
    for number in range(count):
        yield random_scene(random.Random(f"held out/plan/{number}"), *sizes[number % len(sizes)])


def repaint(glm: GlmImage, scene: Scene, seed: int) -> Repainted:
    """Draw a scene, read its plan, and paint that from noise. The glyph text is the scene's word."""
    drawing = draw(scene)
    plan = glm.plan_of(to_pictures(drawing[None])[0])
    texts = [] if scene.word is None else [scene.word.text]
    painted = glm.paint_tensor(plan, seed=seed, steps=STEPS, glyph_texts=texts)[0]
    seen = read(painted)
    return Repainted(scene, seen, is_scene(seen, scene), psnr=psnr(painted, drawing))
