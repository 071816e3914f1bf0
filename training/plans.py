"""The phase plans: nano's language half goes on from the weights that the checkpoint has, with the sizes of `score`.

Off 256 x 256 pixels the plans of the phase ar are wrong mostly by one cell: a thing of a reference is copied beside its place. So
lessons are of all sizes that `score` asks for, several in each step, and the cells around a thing of a reference count more.
"""

import random
from collections.abc import Callable, Iterable

import torch

from ..glmimage_core.glm_image.ar_model import ArModel
from .ar import START_WEIGHT, Sequence, batch_loss, edit_lesson, edits_of, picture_lesson
from .captions import Edit
from .loop import Recipe
from .scoring import SIZES
from .world import Shape, Word, beginnings, first_visible

RECIPE = Recipe(steps=2000, learning_rate=4e-4, warmup=60)
OTHER_SIZES = 0.15  # share of batches whose sides are any of SIDES; the others are of the sizes that `score` asks for
SIDES = (6, 7, 8, 9, 10, 11, 12)  # cells
PICTURE_BATCHES, EDIT_BATCHES = 2, 3  # batches of each in a step
LESSONS, CELLS = 6, 6 * 144  # in a batch, and the cells of all its scenes: at most
TWO_REFERENCES = 0.35  # share of batches of edits
NEAR_WEIGHT = 4.0  # in the loss: of the cells beside and above the start of a thing of a reference


def random_size(rng: random.Random) -> tuple[int, int]:
    """Rows and columns of a batch."""
    return (rng.choice(SIDES), rng.choice(SIDES)) if rng.random() < OTHER_SIZES else rng.choice(SIZES)


def lessons_of(rows: int, columns: int) -> int:
    """How many lessons a batch of so many rows and columns has."""
    return min(LESSONS, CELLS // (rows * columns))


def pictures_of_size(ar: ArModel, rng: random.Random, rows: int, columns: int) -> list[Sequence]:
    """A batch of scenes of one size."""
    return [picture_lesson(ar, rng, rows, columns) for _ in range(lessons_of(rows, columns))]


def edits_of_size(ar: ArModel, rng: random.Random, rows: int, columns: int) -> list[Sequence]:
    """A batch of edits of one size and one number of references."""
    return [weighted_edit(ar, edit) for edit in random_edits_of_size(rng, rows, columns)]


def random_edits_of_size(rng: random.Random, rows: int, columns: int) -> list[Edit]:
    """As many edits as a batch of this size has, all with one number of references."""
    references = 2 if rng.random() < TWO_REFERENCES else 1
    return edits_of(rng, rows, columns, references, count=lessons_of(rows, columns))


def weighted_edit(ar: ArModel, edit: Edit) -> Sequence:
    """The lesson of an edit, with its `edit_weights`."""
    return edit_lesson(ar, edit)._replace(weights=edit_weights(edit).flatten())


def edit_weights(edit: Edit) -> torch.Tensor:
    """The weight of each token of an edited scene in the loss, [rows, columns].

    It depends on the references alone and not on the result, so that no place becomes likelier by its weight.
    """
    weights = torch.ones(edit.scene.rows, edit.scene.columns)
    starts = [start for scene in edit.references for thing in scene.things for start in _starts(thing)]
    for row, column in starts:
        around = weights[max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 2]
        around.clamp_(min=NEAR_WEIGHT)
    for row, column in [*starts, *beginnings(edit.scene.rows, edit.scene.columns)]:
        weights[row, column] = START_WEIGHT
    return weights


def _starts(thing: Shape | Word) -> set[tuple[int, int]]:
    """The corner of a thing and its first cell that shows it, as (row, column)."""
    return {(thing.row, thing.column), (thing.row, thing.column + first_visible(thing))}


def loss_of(
    ar: ArModel,
    rng: random.Random,
    generator: torch.Generator,
    *,
    size_of: Callable[[random.Random], tuple[int, int]] = random_size,
) -> torch.Tensor:
    """The mean loss of a step's batches. size_of: draws the size of each."""
    kinds = [pictures_of_size] * PICTURE_BATCHES + [edits_of_size] * EDIT_BATCHES
    return mean_loss(batch_loss, kinds, ar, rng, size_of=size_of)


def mean_loss(
    loss: Callable[[ArModel, list], torch.Tensor],
    kinds: Iterable[Callable[[ArModel, random.Random, int, int], list]],
    ar: ArModel,
    rng: random.Random,
    *,
    size_of: Callable[[random.Random], tuple[int, int]],
) -> torch.Tensor:
    """The mean of a loss over batches. kinds: draws each, at the size that `size_of` draws for it."""
    return torch.stack([loss(ar, batch(ar, rng, *size_of(rng))) for batch in kinds]).mean()
