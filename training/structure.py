"""Initial values for tables with a row per token: tokens that share a property, such as a colour, start with similar rows."""

import random
from collections.abc import Callable, Iterator

import torch

from .world import (
    CODES,
    KINDS,
    LONGEST_WORD,
    PAIRS,
    SPANS,
    Scene,
    Shape,
    Word,
    cells,
    letter_slot,
    part_of_shape,
    random_letters,
    tokens_of,
)


def structured(width: int, seed: int = 0) -> torch.Tensor:
    """A random table [4096, width]: each row is the sum of one vector for each property of its cell, elements about 1."""
    generator = torch.Generator().manual_seed(seed)
    vectors: dict[tuple, torch.Tensor] = {}

    def vector(*name) -> torch.Tensor:
        if name not in vectors:
            vectors[name] = torch.randn(width, generator=generator)
        return vectors[name]

    by_pattern = _properties_of_patterns()
    rows = []
    for cell in cells():
        ink = ("bare",) if cell.pattern is None else ("colour", cell.colour)
        properties = [("ground", cell.ground), ink, *by_pattern.get(cell.pattern, ())]
        rows.append(torch.stack([vector(*name) for name in properties]).sum(0) / 5**0.5)
    return torch.stack(rows)


def scenes_of_all_codes() -> Iterator[Scene]:
    """One scene of 12 x 12 cells for each pair of colours; together they show every code that a scene can show."""
    spots = {"large": ((0, 0), (0, 4), (0, 8), (4, 0), (4, 4)), "small": ((4, 8), (8, 0), (8, 3), (8, 6), (8, 9))}
    for number, (colour, ground) in enumerate(PAIRS):
        shapes = tuple(
            Shape(kind, colour, size, row=row, column=column)
            for size in SPANS
            for kind, (row, column) in zip(KINDS, spots[size], strict=True)
        )
        word = Word(random_letters(random.Random(number), LONGEST_WORD), colour, 11, 2)
        yield Scene(12, 12, ground, shapes=shapes, word=word)


def table_of_looks(latents_of: Callable[[list[Scene]], torch.Tensor], width: int) -> torch.Tensor:
    """A table [4096, width] of what the cell of each code looks like, elements about 1; zero for a code that no scene shows.

    latents_of: scenes -> [scenes, 16, h, w]. A cell covers 4 x 4 latent cells, 256 numbers. They are averaged over all places
    that show the code, projected onto `width` principal components, and rotated at random so that no channel is favoured.
    """
    total, count = torch.zeros(CODES, 256), torch.zeros(CODES)
    for scene in scenes_of_all_codes():
        latents = latents_of([scene])[0].cpu()  # [16, 4 rows, 4 columns]
        pieces = latents.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)  # [cells, 256]
        codes = tokens_of(scene).flatten()
        total.index_add_(0, codes, pieces)
        count.index_add_(0, codes, torch.ones(len(codes)))
    mean = total / count.clamp(min=1)[:, None]
    components = torch.linalg.svd(mean, full_matrices=False).Vh[:width].T
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(3))).Q
    table = mean @ components @ rotation
    return table / table.square().mean().sqrt()


def _properties_of_patterns() -> dict[int, list[tuple]]:
    properties: dict[int, list[tuple]] = {}
    for kind in KINDS:
        for size, span in SPANS.items():
            for row in range(span):
                for column in range(span):
                    pattern = part_of_shape(kind, size, row, column)
                    properties[pattern] = [("kind", kind), ("size", size), ("row", size, row), ("column", size, column)]
    for right in range(LONGEST_WORD):
        properties[letter_slot(right)] = [("letter",), ("slot", right)]
    return properties
