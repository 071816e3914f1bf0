"""The phase keeping: nano's DiT goes on from the weights that the checkpoint has, and keeps the letters of a reference.

An edit that leaves a word alone need not quote it. Then no glyph text says what the letters are, and only the keys and values of
the reference do. The phases dit and letters show few such edits, so the DiT asks the glyph text alone and paints letters that
look right and are not. Here most lessons are such edits; the others keep what was learned.
"""

import random

import torch

from .captions import EDITS, random_edit
from .dit import DitModels, Lesson, lesson_loss
from .letters import loss_of as letters_loss
from .loop import Recipe
from .plans import random_size

RECIPE = Recipe(steps=3000, learning_rate=1e-3, warmup=50)
KEPT = 0.6  # share of lessons that are edits whose word no glyph text says; the others are those of the phase letters
LESSONS = 5  # in a batch: fewer than in the phase dit, because each has references beside it
ANYWHERE = 0.5  # share of batches in whose scenes things stand at any cell
KINDS = (*(kind for kind in EDITS if kind != "word"), "ground", "ground")  # the letters that change their ground are the hardest


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
    return Lesson([edit.scene for edit in edits], [""] * LESSONS, [edit.references for edit in edits])


def loss_of(models: DitModels, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    if rng.random() < KEPT:
        return lesson_loss(models, random_kept_words(rng), generator)
    return letters_loss(models, rng, generator)
