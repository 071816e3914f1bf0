"""How well a checkpoint enlarges pictures: held-out drawings of small shapes, painted one and a half times as large.

A small shape of nano's world is two cells wide and a large one three, so that the true drawing of an enlarged scene is known.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from ..glmimage_core.glm_image.pipeline import GlmImage
from ..glmimage_core.glm_image.tiles import Tiling
from ..glmimage_core.images import from_picture, to_pictures
from .drawing import draw
from .reading import read
from .scoring import is_scene, psnr
from .world import Scene, random_scene

STEPS = 20
TILING = Tiling(256, 128)
"""Tiles of the size that nano knows best: four of them in an enlarged picture."""


@dataclass(frozen=True)
class Enlarged:
    """right: whether each shape and the ground are read back where they were. psnr, stretched: of the painted picture and of a
    bicubic one to the true drawing, in dB."""

    scene: Scene
    seen: Scene
    right: bool
    psnr: float
    stretched: float


def small_scenes(count: int) -> Iterator[Scene]:
    """Scenes of 8 x 8 cells with small shapes alone, which begin where an enlarged cell begins too."""
    for number in range(count):
        rng = random.Random(f"held out/enlarge/{number}")
        while True:
            scene = random_scene(rng, 8, 8, with_word=0)
            if scene.shapes and all(shape.size == "small" and shape.row % 2 == shape.column % 2 == 0 for shape in scene.shapes):
                yield scene
                break


def enlarged(scene: Scene) -> Scene:
    """The scene one and a half times as large."""
    shapes = [replace(shape, size="large", row=shape.row * 3 // 2, column=shape.column * 3 // 2) for shape in scene.shapes]
    return replace(scene, rows=scene.rows * 3 // 2, columns=scene.columns * 3 // 2, shapes=tuple(shapes))


def enlarge(glm: GlmImage, scene: Scene, seed: int, *, denoise: float = 0.6, tiling: Tiling | None = None) -> Enlarged:
    """Draw a scene, enlarge the drawing and read it back."""
    (drawing,), target = to_pictures(draw(scene)[None]), enlarged(scene)
    truth = draw(target)
    size = (truth.shape[1], truth.shape[0])
    picture = glm.enlarge(drawing, *size, seed=seed, steps=STEPS, denoise=denoise, tiling=tiling)
    painted, seen = from_picture(picture)[0], read(from_picture(picture)[0])
    stretched = from_picture(drawing.resize(size, Image.Resampling.BICUBIC))[0]
    return Enlarged(target, seen, is_scene(seen, target), psnr=psnr(painted, truth), stretched=psnr(stretched, truth))
