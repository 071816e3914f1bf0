"""How well a checkpoint paints plans that are mixed by a mask: held-out pairs of drawings of one ground, one half from each."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..glmimage_core.glm_image.pipeline import GlmImage
from ..glmimage_core.glm_image.plans.mixed import mixed
from ..glmimage_core.images import to_pictures
from .drawing import draw
from .reading import read
from .scoring import SIZES, is_scene
from .world import Scene, Shape, Word, random_scene

STEPS = 20


@dataclass(frozen=True)
class Mixture:
    """one, other: what is drawn. upright: whether the halves are left and right, or else above and below. The first half of `one`
    and the second half of `other` make `both`."""

    one: Scene
    other: Scene
    upright: bool
    both: Scene

    @property
    def mask(self) -> torch.Tensor:
        """The second half: [1, rows, columns] float32."""
        mask = torch.zeros(1, self.one.rows, self.one.columns)
        if self.upright:
            mask[:, :, self.one.columns // 2 :] = 1
        else:
            mask[:, self.one.rows // 2 :] = 1
        return mask


def mixtures(count: int) -> Iterator[Mixture]:
    """Pairs at all sizes, the halves side by side and above one another in turn. Each half shows something, and at most one of
    them a word."""
    for number in range(count):
        rng, upright = random.Random(f"held out/mix/{number}"), number % 2 == 0
        rows, columns = SIZES[number // 2 % len(SIZES)]
        while True:
            one = random_scene(rng, rows, columns, with_word=0.35)
            other = replace(random_scene(rng, rows, columns, with_word=0), ground=one.ground)
            one, other = (_whole(scene, upright) for scene in (one, other))
            first, second = (
                [thing for thing in scene.things if _half(thing, scene, upright) == half]
                for half, scene in enumerate((one, other))
            )
            if first and second and all(shape.colour != one.ground for shape in other.shapes):
                break
        shapes = tuple(thing for thing in (*first, *second) if isinstance(thing, Shape))
        word = next((thing for thing in first if isinstance(thing, Word)), None)
        yield Mixture(one, other, upright, replace(one, shapes=shapes, word=word))


def _half(thing: Shape | Word, scene: Scene, upright: bool) -> int | None:
    """0 or 1, the half that a thing lies in, or None for one that lies in both."""
    start, length, middle = (
        (thing.column, thing.width, scene.columns // 2) if upright else (thing.row, thing.height, scene.rows // 2)
    )
    return 0 if start + length <= middle else 1 if start >= middle else None


def _whole(scene: Scene, upright: bool) -> Scene:
    """The scene without what lies in both halves."""
    shapes = tuple(shape for shape in scene.shapes if _half(shape, scene, upright) is not None)
    keeps_word = scene.word is not None and _half(scene.word, scene, upright) is not None
    return replace(scene, shapes=shapes, word=scene.word if keeps_word else None)


def is_right(glm: GlmImage, mixture: Mixture, seed: int) -> tuple[bool, Scene]:
    """Read both drawings' plans, mix and paint them: whether everything is read back where it was, and what is."""
    one, other = (glm.plan_of(to_pictures(draw(scene)[None])[0]) for scene in (mixture.one, mixture.other))
    texts = [] if mixture.both.word is None else [mixture.both.word.text]
    plan = mixed(one, other, mixture.mask)
    seen = read(glm.paint_tensor(plan, seed=seed, steps=STEPS, glyph_texts=texts)[0])
    return is_scene(seen, mixture.both), seen
