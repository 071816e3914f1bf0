"""How well a checkpoint follows the prompts of nano's world.

questions   the held-out prompts and edits, from seeds that training does not use
answer      paints one of them, by the function that it is given
judge       reads the picture back and compares it with the prompt
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..glmimage_core.vae import Vae, decode, encode
from .captions import EDITS, LANGUAGES, Claim, Edit, Request, WordClaim, describe, random_edit
from .drawing import draw
from .reading import read
from .world import CELL_PX, COLOURS, KINDS, SPANS, Scene, Shape, other_colour, random_scene, with_thing

SIZES = ((8, 8), (8, 8), (8, 8), (6, 6), (6, 10), (10, 6), (8, 12), (12, 8), (12, 12))  # rows and columns, in turn
LARGER_SIZES = ((16, 16), (8, 16), (16, 8))  # of the questions that ask for larger pictures
SUBJECTS = {"one shape": 150, "number and place": 100, "word": 100, "edit": 150}
"""The subjects, and how many questions a whole score has of each."""


SERIES = "held out"  # the questions of the card; work on nano may look at them, and then others tell whether it has got better


@dataclass(frozen=True)
class Question:
    subject: str
    number: int
    asked: Request | Edit


@dataclass(frozen=True)
class Verdict:
    """right: whether the picture shows what the prompt asks. kept: the PSNR in dB of the pixels that an edit must not change."""

    question: Question
    seen: Scene
    right: bool
    kept: float | None = None


Paint = Callable[..., torch.Tensor]
"""(prompt, references, width, height, *, seed[, glyph_texts]) -> picture. Pictures are [H, W, 3] in 0..1, sides in pixels."""


def questions(share: float = 1.0, series: str = SERIES, sizes: Sequence[tuple[int, int]] = SIZES) -> Iterator[Question]:
    """All held-out questions of a series, or an equal share of each subject's, chosen by lot.

    series: any name, each with its own questions. sizes: rows and columns of the pictures, in turn.
    """
    for subject, count in SUBJECTS.items():
        drawn = random.Random(f"share/{subject}").sample(range(count), count)  # a larger share has what a smaller one has
        for number in sorted(drawn[: max(1, round(count * share))]):
            size = sizes[_turn(subject, number) % len(sizes)]
            yield Question(subject, number, _MAKERS[subject](random.Random(f"{series}/{subject}/{number}"), number, size))


def _turn(subject: str, number: int) -> int:
    """Which of the sizes a question has. Eight edits in a row have one: four kinds of them, in both languages."""
    return number // len(EDITS) if subject == "edit" else number


def answer(paint: Paint, question: Question, *, says_word: bool = False) -> torch.Tensor:
    """Paint a question: [H, W, 3] in 0..1. says_word: give the word that an edit's result shows as glyph text, as a user may."""
    asked = question.asked
    references = [draw(scene) for scene in asked.references] if isinstance(asked, Edit) else []
    width, height = asked.scene.columns * CELL_PX, asked.scene.rows * CELL_PX
    given = {}
    if says_word and isinstance(asked, Edit):
        given["glyph_texts"] = [asked.scene.word.text] if asked.scene.word else []
    return paint(asked.prompt, references, width, height, seed=question.number, **given)


def through_vae(vae: Vae, question: Question) -> torch.Tensor:
    """What a question asks for, drawn by code, encoded and decoded: [H, W, 3] in 0..1. No painter wins back what this loses."""
    return decode(vae, encode(vae, draw(question.asked.scene)[None]))[0]


def judge(question: Question, picture: torch.Tensor) -> Verdict:
    """Compare a picture [H, W, 3] in 0..1 with its question."""
    seen, asked = read(picture), question.asked
    if isinstance(asked, Request):
        return Verdict(question, seen, does_what_is_asked(seen, asked))
    return Verdict(question, seen, is_edited(seen, asked), kept_psnr(picture, asked, seen))


def does_what_is_asked(seen: Scene, request: Request) -> bool:
    """Whether a scene shows everything that a prompt asks for, and no other shape or word."""
    if request.ground not in (None, seen.ground) or len(seen.shapes) != sum(claim.count for claim in request.claims):
        return False
    return all(_holds(seen, claim) for claim in request.claims) and _word_holds(seen, request.word)


def _holds(seen: Scene, claim: Claim) -> bool:
    shapes = [shape for shape in seen.shapes if (shape.kind, shape.colour) == (claim.kind, claim.colour)]
    return (
        len(shapes) == claim.count
        and all(claim.size in (None, shape.size) for shape in shapes)
        and all(claim.place in (None, seen.place_of(shape)) for shape in shapes)
    )


def _word_holds(seen: Scene, claim: WordClaim | None) -> bool:
    word = seen.word
    if claim is None or word is None:
        return claim is word
    return word.text == claim.text and claim.colour in (None, word.colour) and claim.level in (None, seen.level_of(word))


def is_edited(seen: Scene, edit: Edit) -> bool:
    """Whether a scene is the result of an edit, with every shape and the word in place."""
    target, free = edit.scene, edit.free
    fixed = Counter(shape for shape in target.shapes if shape is not free)
    found = Counter(seen.shapes)
    if seen.ground != target.ground or seen.word != target.word or fixed - found:
        return False
    others = list((found - fixed).elements())
    if free is None:
        return not others
    return (
        len(others) == 1
        and replace(others[0], row=free.row, column=free.column) == free
        and edit.place in (None, seen.place_of(others[0]))
    )


def is_scene(seen: Scene, scene: Scene) -> bool:
    """Whether a scene is another one, in ground, word and every shape at its place, in whatever order."""
    return seen.ground == scene.ground and Counter(seen.shapes) == Counter(scene.shapes) and seen.word == scene.word


def psnr(picture: torch.Tensor, other: torch.Tensor) -> float:
    """In dB, of pictures in 0..1."""
    return -10 * (picture - other).square().mean().log10().item()


def kept_psnr(picture: torch.Tensor, edit: Edit, seen: Scene) -> float:
    """The PSNR in dB between picture and reference over the pixels that the edit, wherever it was made, does not change."""
    fixed = tuple(shape for shape in edit.scene.shapes if shape is not edit.free)
    free = () if edit.free is None else tuple(shape for shape in seen.shapes if shape not in fixed)
    before, after = draw(edit.into), draw(replace(edit.scene, shapes=fixed + free))
    same = ((before - after).abs() < 1 / 512).all(dim=-1)
    return psnr(picture[same], before[same])


def _one_shape(rng: random.Random, number: int, size: tuple[int, int]) -> Request:
    scene = Scene(*size, rng.choice(list(COLOURS)))
    shape = Shape(rng.choice(KINDS), other_colour(rng, scene.ground), rng.choice(list(SPANS)))
    return describe(rng, with_thing(rng, scene, shape), LANGUAGES[number % 2])


def _number_and_place(rng: random.Random, number: int, size: tuple[int, int]) -> Request:
    """A prompt with at least one place, or one number above one."""
    while True:
        request = describe(rng, random_scene(rng, *size, with_word=0), LANGUAGES[number % 2])
        if any(claim.count > 1 or claim.place for claim in request.claims):
            return request


def _word(rng: random.Random, number: int, size: tuple[int, int]) -> Request:
    """A prompt with a word of up to six letters, alone or beside shapes."""
    while True:
        scene = random_scene(rng, *size, most_groups=2, with_word=1)
        if scene.word and len(scene.word.text) <= 6:
            return describe(rng, scene, LANGUAGES[number % 2])


def _edit(rng: random.Random, number: int, size: tuple[int, int]) -> Edit:
    return random_edit(rng, *size, LANGUAGES[number % 2], kind=EDITS[number // 2 % len(EDITS)])


_MAKERS: dict[str, Callable[[random.Random, int, tuple[int, int]], Request | Edit]] = {
    "one shape": _one_shape,
    "number and place": _number_and_place,
    "word": _word,
    "edit": _edit,
}
