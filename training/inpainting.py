"""How well a checkpoint inpaints and outpaints: held-out scenes, changed by code, painted under a mask and read back.

inpaint    a shape is recoloured, replaced, removed or added; the mask is the box of cells in which that happens
outpaint   a picture grows by four cells on a side, and by a shape there

A picture is right if it reads as the scene that was asked for and no pixel outside the mask has changed. The seam of an
outpainted picture is whole if all things that were there are read back, and each cell beside it looks as what is read there looks
when drawn: a shape that is cut off there, or misshapen, does not.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import avg_pool2d

from ..glmimage_core.glm_image.pipeline import GlmImage
from ..glmimage_core.images import from_picture, to_pictures
from .captions import LANGUAGES, add_phrase, random_edit
from .drawing import draw
from .reading import read
from .scoring import SIZES
from .world import CELL_PX, KINDS, Scene, Shape, other_colour, random_scene, tokens_of

INPAINTINGS = ("recolour", "replace", "remove", "add")
SIDES = ("left", "top", "right", "bottom")
ROOM = 4  # cells by which an outpainted picture grows
STEPS = 20
SEAM_CELLS = 2  # on each side of it
SEAM_DB = 15.0  # of each cell; half a shape that is missing leaves 5 to 15


@dataclass(frozen=True)
class Task:
    """kind: one of INPAINTINGS or SIDES. before: what is given. masked: where it may change, (top, left, bottom, right) in cells
    of `after`. after: the scene that must come out. The kind, colour and size of `free` are asked for, and its place is not, but
    that it lies in the mask."""

    kind: str
    prompt: str
    before: Scene
    after: Scene
    masked: tuple[int, int, int, int]
    free: Shape | None = None


@dataclass(frozen=True)
class Verdict:
    """right: whether the scene is what was asked for. kept: whether all pixels outside the mask are those of before. seam: of an
    outpainting, whether it is whole."""

    task: Task
    seen: Scene
    right: bool
    kept: bool
    seam: bool | None = None


def inpaintings(count: int) -> Iterator[Task]:
    """Held-out inpaintings, each kind in turn, in both languages, at all sizes."""
    for number in range(count):
        rng, kind = random.Random(f"held out/inpaint/{number}"), INPAINTINGS[number % len(INPAINTINGS)]
        turn = number // len(INPAINTINGS)
        size, language = SIZES[turn % len(SIZES)], LANGUAGES[turn % len(LANGUAGES)]
        if kind == "replace":
            yield _replacement(rng, *size, language)
            continue
        edit = random_edit(rng, *size, language, kind=kind)
        prompt = edit.prompt
        if kind == "add":  # the planner does not know where the mask is, unless the prompt says so
            prompt = add_phrase(rng, language, edit.free, edit.scene.place_of(edit.free))
        yield Task(kind, prompt, edit.into, edit.scene, _box(edit.into, edit.scene), free=edit.free)


def _replacement(rng: random.Random, rows: int, columns: int, language: str) -> Task:
    """A shape of another kind and colour where one stands."""
    while True:
        scene = random_scene(rng, rows, columns, with_word=0.35)
        if not scene.shapes:
            continue
        old = rng.choice(scene.shapes)
        new = replace(old, kind=rng.choice([kind for kind in KINDS if kind != old.kind]), colour=other_colour(rng, scene.ground))
        if any((shape.kind, shape.colour) == (new.kind, new.colour) for shape in scene.shapes):
            continue
        after = replace(scene, shapes=tuple(new if shape is old else shape for shape in scene.shapes))
        box = (old.row, old.column, old.row + old.height, old.column + old.width)
        prompt = add_phrase(rng, language, new, scene.place_of(old))
        return Task("replace", prompt, scene, after, box)


def _box(before: Scene, after: Scene) -> tuple[int, int, int, int]:
    """The cells that differ, as a box."""
    rows, columns = (tokens_of(before) != tokens_of(after)).nonzero(as_tuple=True)
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def outpaintings(count: int) -> Iterator[Task]:
    """Held-out outpaintings, each side in turn: no shape is cut by the side, and a small one is asked for beyond it."""
    for number in range(count):
        rng, side = random.Random(f"held out/outpaint/{number}"), SIDES[number % len(SIDES)]
        language = LANGUAGES[number // len(SIDES) % len(LANGUAGES)]
        scene = random_scene(rng, 8, 8, most_shapes=2, with_word=0.35)
        down, across = ROOM * (side == "top"), ROOM * (side == "left")
        upright = side in ("top", "bottom")
        rows, columns = 8 + ROOM * upright, 8 + ROOM * (not upright)
        moved = [replace(thing, row=thing.row + down, column=thing.column + across) for thing in scene.things]
        shapes = tuple(moved[: len(scene.shapes)])
        after = Scene(rows, columns, scene.ground, shapes, moved[-1] if scene.word else None)
        new = Shape(rng.choice(KINDS), other_colour(rng, scene.ground), "small")
        if any((shape.kind, shape.colour) == (new.kind, new.colour) for shape in shapes):
            new = replace(new, kind=next(kind for kind in KINDS if kind not in {shape.kind for shape in shapes}))
        masked = {
            "left": (0, 0, rows, ROOM),
            "top": (0, 0, ROOM, columns),
            "right": (0, columns - ROOM, rows, columns),
            "bottom": (rows - ROOM, 0, rows, columns),
        }[side]
        new = replace(new, row=masked[0], column=masked[1])  # any place in the mask will do
        asked = replace(after, shapes=(*shapes, new))
        yield Task(side, add_phrase(rng, language, new, side), scene, asked, masked, free=new)


def paint(glm: GlmImage, task: Task, seed: int) -> torch.Tensor:
    """Do what a task asks: [H, W, 3] in 0..1."""
    picture = to_pictures(draw(task.before)[None])[0]
    if task.kind in SIDES:
        painted = glm.outpaint(picture, task.prompt, seed=seed, steps=STEPS, **{task.kind: ROOM * CELL_PX})
    else:
        erase = task.kind in ("replace", "add")
        painted = glm.inpaint(picture, mask_of(task), task.prompt, seed=seed, steps=STEPS, erase=erase)
    return from_picture(painted)[0]


def mask_of(task: Task) -> torch.Tensor:
    """[1, height, width] float32 over the picture that comes out, 1 where it may change."""
    mask = torch.zeros(1, task.after.rows * CELL_PX, task.after.columns * CELL_PX)
    top, left, bottom, right = (CELL_PX * side for side in task.masked)
    mask[:, top:bottom, left:right] = 1
    return mask


def judge(task: Task, picture: torch.Tensor) -> Verdict:
    """Compare a picture [H, W, 3] in 0..1 with its task."""
    seen = read(picture)
    outside = mask_of(task)[0] == 0
    before = from_picture(to_pictures(draw(task.before)[None])[0])[0].flatten(0, 1)
    kept = torch.equal(picture[outside], before if task.kind in SIDES else before[outside.flatten()])
    seam = _is_seam_whole(seen, task, picture) if task.kind in SIDES else None
    return Verdict(task, seen, right=_is_right(seen, task), kept=kept, seam=seam)


def _is_seam_whole(seen: Scene, task: Task, picture: torch.Tensor) -> bool:
    old = [shape for shape in task.after.shapes if shape != task.free]
    if seen.ground != task.after.ground or seen.word != task.after.word or not all(shape in seen.shapes for shape in old):
        return False
    seam = {"left": ROOM, "top": ROOM, "right": seen.columns - ROOM, "bottom": seen.rows - ROOM}[task.kind]
    beside = slice((seam - SEAM_CELLS) * CELL_PX, (seam + SEAM_CELLS) * CELL_PX)
    error = (picture - draw(seen)).square().mean(dim=-1)
    error = error[:, beside] if task.kind in ("left", "right") else error[beside]
    worst = avg_pool2d(error[None], CELL_PX).max()
    return -10 * worst.log10().item() >= SEAM_DB


def _is_right(seen: Scene, task: Task) -> bool:
    """Whether all things are where they should be; the free one may stand anywhere in the mask."""
    asked = list(task.after.shapes)
    found = list(seen.shapes)
    if (seen.ground, seen.word, len(found)) != (task.after.ground, task.after.word, len(asked)):
        return False
    for shape in asked:
        if shape != task.free:
            if shape not in found:
                return False
            found.remove(shape)
    return not found if task.free is None else _fits(found[0], task)


def _fits(shape: Shape, task: Task) -> bool:
    top, left, bottom, right = task.masked
    inside = top <= shape.row <= bottom - shape.height and left <= shape.column <= right - shape.width
    return inside and replace(shape, row=task.free.row, column=task.free.column) == task.free
