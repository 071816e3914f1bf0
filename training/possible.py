"""Every picture that a prompt of nano's world allows, and so every token that may come next in a plan.

A lesson shows one picture of many that its prompt allows, so most of the cross entropy of its tokens is the toss of a coin: which
of three places a shape has. What makes a plan wrong is the probability of tokens that no allowed picture has there.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from .captions import Claim, Edit, Request, WordClaim
from .world import COLOURS, SPANS, Scene, Shape, Word, spots_of, spots_of_word, tokens_of

MOST_SCENES = 30000  # that are compared with a lesson; a prompt that allows more is left out


class _Things(NamedTuple):
    """Ways to put one thing or a group of equal ones into a scene: tokens [ways, cells], -1 where they leave the cell as it is.

    taken: the cells that they cover, empty corners too, and near: these and those around, each [ways, cells] float32 0 or 1.
    """

    tokens: torch.Tensor
    taken: torch.Tensor
    near: torch.Tensor


def allowed_plans(asked: Request | Edit, limit: int = MOST_SCENES) -> torch.Tensor | None:
    """The tokens of all scenes that a prompt allows, [scenes, rows, columns] int64.

    None for more than `limit`, on the way there too, where some things are not yet placed.

    The unasked follows the laws of the world: shapes of one claim have one size, and things stand where `with_thing` puts them.
    """
    bare = replace(asked.scene, shapes=(), word=None)
    if isinstance(asked, Edit):
        return _plans(bare, _parts_of_edit(bare, asked), limit)
    grounds = [asked.ground] if asked.ground else [ground for ground in COLOURS if _may_be(ground, asked)]
    bares = [replace(bare, ground=ground) for ground in grounds]
    plans = [_plans(one, _parts_of_request(one, asked), limit) for one in bares]
    return None if any(part is None for part in plans) or sum(map(len, plans)) > limit else torch.cat(plans)


def _may_be(ground: str, asked: Request) -> bool:
    return ground not in (*(claim.colour for claim in asked.claims), asked.word.colour if asked.word else None)


def _parts_of_request(bare: Scene, asked: Request) -> list[_Things]:
    words = [_group(bare, ([word] for word in _of_word(bare, asked.word)))] if asked.word else []
    return [_group(bare, _of_claim(bare, claim)) for claim in asked.claims] + words


def _parts_of_edit(bare: Scene, asked: Edit) -> list[_Things]:
    fixed = replace(asked.scene, shapes=tuple(shape for shape in asked.scene.shapes if shape is not asked.free))
    free = [_group(bare, ([shape] for shape in _free(fixed, asked)))] if asked.free else []
    return [_group(bare, [[thing]]) for thing in fixed.things] + free


def _plans(bare: Scene, parts: list[_Things], limit: int) -> torch.Tensor | None:
    """All ways to put one way of each part into a bare scene, so that none touches another."""
    tokens, taken = tokens_of(bare).flatten()[None], torch.zeros(1, bare.rows * bare.columns)
    for part in parts:
        before, way = (taken @ part.near.T == 0).nonzero(as_tuple=True)
        if len(before) > limit:
            return None
        tokens = torch.where(part.tokens[way] < 0, tokens[before], part.tokens[way])
        taken = taken[before] + part.taken[way]
    return tokens.unflatten(1, (bare.rows, bare.columns))


def allowed_tokens(sequences: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that may follow each beginning of `chosen`, [T], in any of the sequences, [N, T] int64.

    Returns pairs of a position and a token that it may have, [pairs] each, in the order of positions.
    """
    same = (sequences == chosen).int()
    begins_so = torch.ones_like(same)
    begins_so[:, 1:] = same[:, :-1].cumprod(dim=1)
    row, position = begins_so.nonzero(as_tuple=True)
    pairs = torch.unique(torch.stack([position, sequences[row, position]]), dim=1)
    return pairs[0], pairs[1]


def _group(bare: Scene, ways: Iterable[list[Shape | Word]]) -> _Things:
    tokens, taken, near = [], [], []
    ground = tokens_of(bare)
    for things in ways:
        shapes = tuple(thing for thing in things if isinstance(thing, Shape))
        word = next((thing for thing in things if isinstance(thing, Word)), None)
        shown = tokens_of(replace(bare, shapes=shapes, word=word))
        tokens.append(shown.where(shown != ground, -1))
        covered, around = torch.zeros(2, bare.rows, bare.columns)
        for thing in things:
            bottom, right = thing.row + thing.height, thing.column + thing.width
            covered[thing.row : bottom, thing.column : right] = 1
            around[max(0, thing.row - 1) : bottom + 1, max(0, thing.column - 1) : right + 1] = 1
        taken.append(covered)
        near.append(around)
    return _Things(*(torch.stack(parts).flatten(1) for parts in (tokens, taken, near)))


def _of_claim(bare: Scene, claim: Claim) -> Iterator[list[Shape]]:
    """The ways to fulfil a claim on bare ground. Shapes of a group have one size, as in every scene of the world."""
    for size in SPANS if claim.size is None else (claim.size,):
        shape = Shape(claim.kind, claim.colour, size)
        spots = [replace(shape, row=row, column=column) for row, column in spots_of(bare, shape).values()]
        spots = [spot for spot in dict.fromkeys(spots) if claim.place in (None, bare.place_of(spot))]
        for shapes in itertools.combinations(spots, claim.count):
            if all(bare.is_free(one, [other]) for one, other in itertools.combinations(shapes, 2)):
                yield list(shapes)


def _of_word(bare: Scene, claim: WordClaim) -> Iterator[Word]:
    colours = [colour for colour in COLOURS if colour != bare.ground] if claim.colour is None else [claim.colour]
    for colour in colours:
        for row, column in spots_of_word(bare, len(claim.text)):
            word = Word(claim.text, colour, row, column)
            if claim.level in (None, bare.level_of(word)):
                yield word


def _free(fixed: Scene, edit: Edit) -> Iterator[Shape]:
    """Where an edit may put the shape whose position its prompt leaves open."""
    for row, column in dict.fromkeys(spots_of(fixed, edit.free).values()):
        shape = replace(edit.free, row=row, column=column)
        if edit.place in (None, fixed.place_of(shape)) and fixed.is_free(shape, fixed.things):
            yield shape
