"""The phase allowed: nano's language half goes on and learns which tokens a prompt allows, not which of them a lesson has.

A lesson shows one of many pictures that its prompt allows. When the other phases had taught what they could, this chance was all
that their gradient of pictures had left: in the mean of 16 batches its norm was 0.25 of the norm for each, as noise has it. This
phase's loss is minus the logarithm of the probability that a plan never leaves the pictures that its prompt allows. Its gradient
had 0.42 of the norm left.
"""

import random
from typing import NamedTuple

import torch

from ..glmimage_core.diffusion import Grid
from ..glmimage_core.glm_image.ar_model import ArModel
from .ar import Sequence, grids_of_picture, learned_logits, mean_cross_entropy, random_request, resampled, sequence_of_picture
from .larger import random_size
from .loop import Recipe
from .plans import lessons_of, mean_loss, random_edits_of_size, weighted_edit
from .possible import allowed_plans, allowed_tokens

RECIPE = Recipe(steps=1350, learning_rate=4e-4, warmup=40)
PICTURE_BATCHES, EDIT_BATCHES = 2, 1  # batches of each in a step
ALLOWED_WEIGHT = 1 / 32  # of the loss of a whole plan beside that of a token


class Lesson(NamedTuple):
    """allowed: pairs of a learned token's position and a token that may stand there, as `allowed_tokens` returns them."""

    sequence: Sequence
    allowed: tuple[torch.Tensor, torch.Tensor]


def pictures_of_size(ar: ArModel, rng: random.Random, rows: int, columns: int) -> list[Lesson]:
    """A batch of scenes of one size."""
    return [_picture(ar, rng, rows, columns) for _ in range(lessons_of(rows, columns))]


def _picture(ar: ArModel, rng: random.Random, rows: int, columns: int) -> Lesson:
    while (plans := allowed_plans(request := random_request(rng, rows, columns))) is None:
        pass  # it allows too much
    return _lesson(sequence_of_picture(ar, request), plans, grids_of_picture(request.scene))


def edits_of_size(ar: ArModel, rng: random.Random, rows: int, columns: int) -> list[Lesson]:
    """A batch of edits of one size and one number of references."""
    edits = random_edits_of_size(rng, rows, columns)
    return [_lesson(weighted_edit(ar, edit), allowed_plans(edit), [Grid(rows, columns)]) for edit in edits]


def _lesson(sequence: Sequence, plans: torch.Tensor, grids: list[Grid]) -> Lesson:
    """plans: all that are allowed, [plans, rows, columns]. grids: of the tokens to be learned."""
    plans_on_grids = torch.cat([resampled(plans, grid).flatten(1) for grid in grids], dim=1)
    return Lesson(sequence, allowed_tokens(plans_on_grids, sequence.ids[-sequence.learned :]))


def allowed_loss(ar: ArModel, lessons: list[Lesson]) -> torch.Tensor:
    """What `leaving` says, and the weighted mean cross entropy of the tokens, which keeps the choice among allowed pictures."""
    logits, targets, weights = learned_logits(ar, [lesson.sequence for lesson in lessons])
    logarithms = logits.log_softmax(dim=1)
    return ALLOWED_WEIGHT * leaving(logarithms, lessons) + mean_cross_entropy(logarithms, targets, weights)


def leaving(logarithms: torch.Tensor, lessons: list[Lesson]) -> torch.Tensor:
    """Minus the logarithm of the probability that a plan never leaves the allowed ones, in the mean of the lessons.

    logarithms: of the probability of every token, [T, vocabulary], at all places to be learned of the lessons, one after another.
    """
    before, places, tokens = 0, [], []
    for lesson in lessons:
        place, token = lesson.allowed
        places.append(place + before)
        tokens.append(token)
        before += lesson.sequence.learned
    place, token = torch.cat(places).to(logarithms.device), torch.cat(tokens).to(logarithms.device)
    probability = logarithms.new_zeros(before).index_add(0, place, logarithms[place, token].exp())
    return -probability.log().sum() / len(lessons)


def loss_of(ar: ArModel, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    """The mean loss of a step's batches."""
    kinds = [pictures_of_size] * PICTURE_BATCHES + [edits_of_size] * EDIT_BATCHES
    return mean_loss(allowed_loss, kinds, ar, rng, size_of=random_size)
