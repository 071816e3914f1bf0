"""First values for tables over the codebook: cells that have something in common get rows that have something in common."""

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
    """[4096, width] with rows of about unit size: the sum of one vector for each thing that can be said about a cell."""
    generator = torch.Generator().manual_seed(seed)
    vectors: dict[tuple, torch.Tensor] = {}

    def vector(*name) -> torch.Tensor:
        if name not in vectors:
            vectors[name] = torch.randn(width, generator=generator)
        return vectors[name]

    facts = _facts_of_patterns()
    rows = []
    for cell in cells():
        shown = ("bare",) if cell.pattern is None else ("colour", cell.colour)
        said = [("ground", cell.ground), shown, *facts.get(cell.pattern, ())]
        rows.append(torch.stack([vector(*fact) for fact in said]).sum(0) / 5**0.5)
    return torch.stack(rows)


def scenes_of_all() -> Iterator[Scene]:
    """Scenes in which every code is seen, for each pair of colours one of 12 x 12 cells."""
    spots = {"large": ((0, 0), (0, 4), (0, 8), (4, 0), (4, 4)), "small": ((4, 8), (8, 0), (8, 3), (8, 6), (8, 9))}
    for number, (colour, ground) in enumerate(PAIRS):
        shapes = [Shape(kind, colour, size, *spot) for size in SPANS for kind, spot in zip(KINDS, spots[size], strict=True)]
        text = random_letters(random.Random(number), LONGEST_WORD)
        yield Scene(12, 12, ground, tuple(shapes), Word(text, colour, 11, 2))


def looks(latents_of: Callable[[list[Scene]], torch.Tensor], width: int) -> torch.Tensor:
    """What the cell of each code looks like: [4096, width], of unit size, zero for what no scene shows.

    latents_of: scenes to [scenes, 16, h, w]. The 4 x 4 latent cells of each are averaged over where it is seen, brought to
    `width` by their principal components and turned at random, so that no channel is favoured.
    """
    total, seen = torch.zeros(CODES, 256), torch.zeros(CODES)
    for scene in scenes_of_all():
        latents = latents_of([scene])[0].cpu()  # [16, 4 rows, 4 columns]
        pieces = latents.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)  # [cells, 256]
        codes = tokens_of(scene).flatten()
        total.index_add_(0, codes, pieces)
        seen.index_add_(0, codes, torch.ones(len(codes)))
    mean = total / seen.clamp(min=1)[:, None]
    components = torch.linalg.svd(mean, full_matrices=False).Vh[:width].T
    turned = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(3))).Q
    table = mean @ components @ turned
    return table / table.square().mean().sqrt()


def _facts_of_patterns() -> dict[int, list[tuple]]:
    facts: dict[int, list[tuple]] = {}
    for kind in KINDS:
        for size, span in SPANS.items():
            for row in range(span):
                for column in range(span):
                    pattern = part_of_shape(kind, size, row, column)
                    facts[pattern] = [("kind", kind), ("size", size), ("row", size, row), ("column", size, column)]
    for right in range(LONGEST_WORD):
        facts[letter_slot(right)] = [("letter",), ("slot", right)]
    return facts
