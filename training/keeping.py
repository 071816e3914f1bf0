"""The phase keeping: nano's DiT goes on from the weights that the checkpoint has, and keeps the letters of a reference.

An edit that leaves a word alone need not quote it. Then no glyph text says what the letters are, and only the keys and values of
the reference do. The phases dit and letters show few such edits, so the DiT asks the glyph text alone and paints letters that
look right and are not. Here most lessons are such edits; the others keep what was learned.

Letters are hardest where the background changes, since there the DiT cannot copy their latents. So most edits change it, and many
lessons are words alone: such a batch has 24 words in the place of 5. In some of these the glyph text says another word than the
reference shows, and the picture shows that: the DiT must not learn to copy whatever it finds.
"""

import random
from dataclasses import replace

import torch

from . import letters
from .captions import EDITS, random_edit
from .dit import DitModels, Lesson, lesson_loss
from .loop import Recipe
from .plans import random_size
from .world import LONGEST_WORD, Scene, other_ground, random_word

RECIPE = Recipe(steps=5150, learning_rate=8e-4, warmup=50)
LESSONS = 5  # in a batch: fewer than in the phase dit, because each has references beside it
ANYWHERE = 0.5  # share of batches in whose scenes things stand at any cell
KINDS = (*(kind for kind in EDITS if kind != "word"), *["ground"] * 10)
LETTER_WEIGHT = 8.0  # in the loss: twice that of the phase dit


def random_kept_words(rng: random.Random) -> Lesson:
    """A batch of edits of one kind in which a word stays as it is and no glyph text says it."""
    rows, columns = random_size(rng)
    kind = rng.choice(KINDS)
    anywhere = rng.random() < ANYWHERE
    edits = []
    while len(edits) < LESSONS:
        edit = random_edit(rng, rows, columns, "en", kind=kind, anywhere=anywhere, with_word=1.0)
        if edit.scene.word:
            edits.append(edit)
    return Lesson.of_edits(edits, says_word=False)


def random_changed_strips(rng: random.Random) -> Lesson:
    """A batch of words alone that the glyph texts say. Each reference has another word, which begins in the same cell."""
    lesson = letters.random_strips(rng)
    return lesson._replace(references=[(_with_another_word(rng, scene),) for scene in lesson.scenes])


def _with_another_word(rng: random.Random, scene: Scene) -> Scene:
    text = random_word(rng, min(LONGEST_WORD, scene.columns - scene.word.column))
    return replace(scene, word=replace(scene.word, text=text))


def random_kept_strips(rng: random.Random) -> Lesson:
    """A batch of words alone whose background changes. No glyph text says them."""
    scenes = letters.random_strips(rng).scenes
    references = [(replace(scene, ground=other_ground(rng, scene)),) for scene in scenes]
    return Lesson(scenes, [""] * len(scenes), references)


SHARES = {random_changed_strips: 0.3, random_kept_strips: 0.25, random_kept_words: 0.2, letters.random_lesson: 0.25}
"""How often a lesson is drawn by which function."""


def loss_of(models: DitModels, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    (random_lesson,) = rng.choices(list(SHARES), list(SHARES.values()))
    return lesson_loss(models, random_lesson(rng), generator, letter_weight=LETTER_WEIGHT)
