"""The small world that nano draws: coloured shapes and a short word on coloured ground.

A scene is a grid of cells of 32 x 32 pixels; one prior token covers a cell. A cell shows one of 4096 things: bare ground, or a
part of a shape or a letter's place in a word, in one colour on another. Nano's codebook has one row for each. A token does not
say which letter a cell shows: the glyph embeddings do.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

CELL_PX = 32
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 138, 20),
    "yellow": (250, 218, 50),
    "green": (38, 158, 72),
    "blue": (36, 88, 214),
    "purple": (138, 58, 178),
    "black": (24, 24, 28),
    "white": (246, 246, 246),
}
KINDS = ("circle", "square", "triangle", "star", "cross")
SPANS = {"small": 2, "large": 3}  # cells along a side
LONGEST_WORD = 8
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
EMPTY_PARTS = {
    ("triangle", "large"): {(0, 0), (0, 2)},
    ("star", "large"): {(0, 0), (0, 2)},
    ("cross", "large"): {(0, 0), (0, 2), (2, 0), (2, 2)},
}
"""Cells of shapes, as (row, column), that show only ground."""
LEVELS = ("top", "centre", "bottom")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")

_PARTS = sum(span * span for span in SPANS.values())
PATTERNS = len(KINDS) * _PARTS + LONGEST_WORD
PAIRS = tuple((colour, ground) for colour in COLOURS for ground in COLOURS if colour != ground)
CODES = len(COLOURS) + len(PAIRS) * PATTERNS  # 4096


@dataclass(frozen=True)
class Shape:
    """row, column: the cell of its top left corner."""

    kind: str
    colour: str
    size: str
    row: int = 0
    column: int = 0

    @property
    def height(self) -> int:
        return SPANS[self.size]

    @property
    def width(self) -> int:
        return SPANS[self.size]


@dataclass(frozen=True)
class Word:
    """One letter a cell, from left to right."""

    text: str
    colour: str
    row: int
    column: int

    @property
    def height(self) -> int:
        return 1

    @property
    def width(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class Scene:
    """rows, columns: cells of the picture."""

    rows: int
    columns: int
    ground: str
    shapes: tuple[Shape, ...] = ()
    word: Word | None = None

    @property
    def things(self) -> tuple[Shape | Word, ...]:
        return self.shapes if self.word is None else (*self.shapes, self.word)

    def place_of(self, thing: Shape | Word) -> str:
        """The place, one of PLACES, that holds the centre of a thing: the picture is divided into 3 x 3."""
        vertical = LEVELS.index(self.level_of(thing))
        horizontal = _third(thing.column + thing.width / 2, self.columns)
        return PLACES[3 * vertical + horizontal]

    def level_of(self, thing: Shape | Word) -> str:
        """The level of a thing's centre: top, centre or bottom third of the picture."""
        return LEVELS[_third(thing.row + thing.height / 2, self.rows)]

    def is_free(self, thing: Shape | Word, beside: Sequence[Shape | Word]) -> bool:
        """Whether a thing lies within the picture, with a free cell between it and each of the others."""
        inside = 0 <= thing.row <= self.rows - thing.height and 0 <= thing.column <= self.columns - thing.width
        return inside and not any(_touch(thing, other) for other in beside)


def _third(middle: float, cells: int) -> int:
    return min(2, int(3 * middle / cells))


def _touch(one: Shape | Word, other: Shape | Word) -> bool:
    return (
        one.row <= other.row + other.height
        and other.row <= one.row + one.height
        and one.column <= other.column + other.width
        and other.column <= one.column + one.width
    )


class Cell(NamedTuple):
    """What one token shows. pattern None: bare ground."""

    ground: str
    colour: str | None = None
    pattern: int | None = None


def code_of(cell: Cell) -> int:
    """The row of the codebook for a cell."""
    if cell.pattern is None:
        return list(COLOURS).index(cell.ground)
    return len(COLOURS) + PAIRS.index((cell.colour, cell.ground)) * PATTERNS + cell.pattern


def cells() -> Iterator[Cell]:
    """The cell of every code, in order."""
    yield from (Cell(ground) for ground in COLOURS)
    yield from (Cell(ground, colour, pattern) for colour, ground in PAIRS for pattern in range(PATTERNS))


def part_of_shape(kind: str, size: str, row: int, column: int) -> int:
    """The pattern of one of a shape's cells."""
    before = sum(span * span for span in SPANS.values() if span < SPANS[size])
    return KINDS.index(kind) * _PARTS + before + row * SPANS[size] + column


def letter_slot(right: int) -> int:
    """The pattern of a letter that has so many letters to its right.

    Letters are counted from the end, because a byte of a glyph text can count its distance to the end mark: T5 has relative
    positions only.
    """
    return len(KINDS) * _PARTS + right


def tokens_of(scene: Scene) -> torch.Tensor:
    """The token of each cell: [rows, columns] int64."""
    tokens = torch.full((scene.rows, scene.columns), code_of(Cell(scene.ground)))
    for shape in scene.shapes:
        empty = EMPTY_PARTS.get((shape.kind, shape.size), ())
        for row, column in itertools.product(range(shape.height), range(shape.width)):
            if (row, column) not in empty:
                pattern = part_of_shape(shape.kind, shape.size, row, column)
                tokens[shape.row + row, shape.column + column] = code_of(Cell(scene.ground, shape.colour, pattern))
    if scene.word is not None:
        for index in range(scene.word.width):
            cell = Cell(scene.ground, scene.word.colour, letter_slot(scene.word.width - 1 - index))
            tokens[scene.word.row, scene.word.column + index] = code_of(cell)
    return tokens


def letters_after(scene: Scene) -> torch.Tensor:
    """The number of letters after that of each cell, -1 in cells without a letter: [rows, columns] int64."""
    after = torch.full((scene.rows, scene.columns), -1)
    if (word := scene.word) is not None:
        after[word.row, word.column : word.column + word.width] = torch.arange(word.width).flip(0)
    return after


def letters_in(tokens: torch.Tensor) -> int:
    """The number of letters of a plan's word, by the token of its first: tokens of any shape, some may show nothing."""
    shown = tokens[(tokens >= len(COLOURS)) & (tokens < CODES)]
    letters = (shown - len(COLOURS)) % PATTERNS - letter_slot(0) + 1
    return max([0, *letters.tolist()])


def random_word(rng: random.Random, longest: int) -> str:
    return random_letters(rng, rng.randint(1, longest))


def random_letters(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(ALPHABET, k=count))


def random_scene(
    rng: random.Random,
    rows: int,
    columns: int,
    *,
    most_groups: int = 3,
    most_shapes: int = 4,
    with_word: float = 0.45,
    anywhere: bool = False,
) -> Scene:
    """A random scene: up to `most_groups` groups of equal shapes, and with probability `with_word` a word.

    anywhere: things may stand at any free cell, instead of only where `with_thing` puts them.
    """
    scene = Scene(rows, columns, rng.choice(list(COLOURS)))
    if rng.random() < with_word:
        text = random_word(rng, min(LONGEST_WORD, columns))
        scene = with_thing(rng, scene, Word(text, other_colour(rng, scene.ground), 0, 0), anywhere=anywhere) or scene
    groups = rng.randint(0 if scene.word and rng.random() < 0.4 else 1, most_groups)
    named: set[tuple[str, str]] = set()
    for _ in range(groups):
        kind, colour = rng.choice(KINDS), other_colour(rng, scene.ground)
        if (kind, colour) in named:
            continue
        named.add((kind, colour))
        several = rng.random() < 0.25
        size = rng.choice(("small", "small", "large")) if several else rng.choice(list(SPANS))
        place = rng.choice(PLACES) if not several and rng.random() < 0.6 else None
        for _ in range(rng.randint(2, most_shapes) if several else 1):
            if len(scene.shapes) < most_shapes:
                scene = with_thing(rng, scene, Shape(kind, colour, size), place, anywhere=anywhere) or scene
    if not scene.things:
        settings = {"most_groups": most_groups, "most_shapes": most_shapes, "with_word": with_word, "anywhere": anywhere}
        return random_scene(rng, rows, columns, **settings)
    return scene


def other_colour(rng: random.Random, *not_these: str) -> str:
    return rng.choice([colour for colour in COLOURS if colour not in not_these])


def other_ground(rng: random.Random, scene: Scene) -> str:
    """A colour for a scene's background that neither it nor any of its things has."""
    return other_colour(rng, scene.ground, *(thing.colour for thing in scene.things))


def with_thing(
    rng: random.Random, scene: Scene, thing: Shape | Word, place: str | None = None, *, anywhere: bool = False
) -> Scene | None:
    """The scene with one more thing, or None where there is no room for it.

    place: where a shape must stand; each place is one cell. Without it a shape stands at the centre level, or at another level if
    that is full, and a word at any of three heights. So few cells are open to a thing. That is needed because prior tokens are
    drawn with top-p 0.75: a thing that could start at many cells would have a small probability at each and never be drawn.
    """
    if anywhere:
        choices = [[(row, column) for row in range(scene.rows) for column in range(scene.columns)]]
    elif isinstance(thing, Word):
        choices = [spots_of_word(scene, thing.width)]
    else:
        at = spots_of(scene, thing)
        levels = (PLACES[3:6], PLACES[6:9], PLACES[0:3]) if place is None else ((place,),)
        choices = [[at[name] for name in level] for level in levels]
    for spots in choices:
        free = [m for row, column in spots if scene.is_free(m := replace(thing, row=row, column=column), scene.things)]
        if free:
            spot = rng.choice(free)
            return replace(scene, word=spot) if isinstance(spot, Word) else replace(scene, shapes=(*scene.shapes, spot))
    return None


def spots_of(scene: Scene, shape: Shape) -> dict[str, tuple[int, int]]:
    """The cell of a shape's corner, as (row, column), at each of PLACES."""
    spots = itertools.product(_spots(scene.rows, shape.height), _spots(scene.columns, shape.width))
    return dict(zip(PLACES, spots, strict=True))


def spots_of_word(scene: Scene, length: int) -> list[tuple[int, int]]:
    """The cells, as (row, column), at which a word may start: three heights."""
    return [(row, (scene.columns - length) // 2) for row in _spots(scene.rows, 1)]


def first_visible(thing: Shape | Word) -> int:
    """The column, within the first row of a thing, of the first cell that shows it: the corners of some shapes are empty."""
    return int(isinstance(thing, Shape) and (0, 0) in EMPTY_PARTS.get((thing.kind, thing.size), ()))


def beginnings(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """The cells, as (row, column), at which a thing may show first that `with_thing` puts into a scene."""
    for span in SPANS.values():
        yield from itertools.product(_spots(rows, span), _spots(columns, span))
    large = SPANS["large"]
    yield from itertools.product(_spots(rows, large), (column + 1 for column in _spots(columns, large)))  # empty corners
    lengths = range(1, min(LONGEST_WORD, columns) + 1)
    yield from itertools.product(_spots(rows, 1), {(columns - length) // 2 for length in lengths})


def _spots(cells: int, span: int) -> tuple[int, int, int]:
    """The first cells, along a side, of a thing that stands near the start, in the middle and near the end."""
    near = max(0, round(cells / 6 - span / 2))
    return near, (cells - span) // 2, cells - span - near
