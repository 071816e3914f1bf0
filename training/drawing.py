"""A scene as a picture: shapes with antialiased edges, letters of 5 x 7 dots."""

import itertools
import math
from collections.abc import Callable
from functools import cache

import torch
from PIL import Image, ImageDraw

from .world import CELL_PX, COLOURS, KINDS, SPANS, Scene, cells, letter_slot, part_of_shape

DOT_PX = 4  # along a side of one dot of a letter
_SUPERSAMPLING = 8  # a shape is drawn so many times larger and scaled down

# Each row of a letter has five dots, the leftmost in the highest bit.
_LETTERS = {
    "A": "0E11111F111111", "B": "1E11111E11111E", "C": "0E11101010110E", "D": "1E11111111111E", "E": "1F10101E10101F",
    "F": "1F10101E101010", "G": "0E11101713110F", "H": "1111111F111111", "I": "0E04040404040E", "J": "0702020202120C",
    "K": "11121418141211", "L": "1010101010101F", "M": "111B1515111111", "N": "11111915131111", "O": "0E11111111110E",
    "P": "1E11111E101010", "Q": "0E11111115120D", "R": "1E11111E141211", "S": "0F10100E01011E", "T": "1F040404040404",
    "U": "1111111111110E", "V": "11111111110A04", "W": "1111111515150A", "X": "11110A040A1111", "Y": "1111110A040404",
    "Z": "1F01020408101F", "0": "0E11131519110E", "1": "040C141404041F", "2": "0E11010204081F", "3": "1F02040201110E",
    "4": "02060A121F0202", "5": "1F101E0101110E", "6": "0608101E11110E", "7": "1F010204080808", "8": "0E11110E11110E",
    "9": "0E11110F01020C",
}  # fmt: skip


@cache
def shape_mask(kind: str, size: str) -> torch.Tensor:
    """How much of each pixel a shape covers: [side, side] float32 in 0..1, side as many pixels as its cells have."""
    side = SPANS[size] * CELL_PX
    image = Image.new("L", (side * _SUPERSAMPLING, side * _SUPERSAMPLING))
    centre, radius = side * _SUPERSAMPLING / 2, (side / 2 - 4) * _SUPERSAMPLING
    _DRAWERS[kind](ImageDraw.Draw(image), centre, radius)
    return _coverage(image.resize((side, side), Image.Resampling.BOX))


def _circle(draw: ImageDraw.ImageDraw, centre: float, radius: float) -> None:
    draw.ellipse((centre - radius, centre - radius, centre + radius, centre + radius), fill=255)


def _square(draw: ImageDraw.ImageDraw, centre: float, radius: float) -> None:
    side = radius * 0.94
    draw.rectangle((centre - side, centre - side, centre + side, centre + side), fill=255)


def _triangle(draw: ImageDraw.ImageDraw, centre: float, radius: float) -> None:
    draw.polygon([(centre, centre - radius), (centre - radius, centre + radius), (centre + radius, centre + radius)], fill=255)


def _star(draw: ImageDraw.ImageDraw, centre: float, radius: float) -> None:
    reach = [radius * (1.06 if point % 2 == 0 else 0.44) for point in range(10)]
    angles = [math.pi * (point / 5 - 0.5) for point in range(10)]
    draw.polygon(
        [(centre + r * math.cos(a), centre + radius * 0.06 + r * math.sin(a)) for r, a in zip(reach, angles, strict=True)],
        fill=255,
    )


def _cross(draw: ImageDraw.ImageDraw, centre: float, radius: float) -> None:
    arm = radius * 0.32
    draw.rectangle((centre - arm, centre - radius, centre + arm, centre + radius), fill=255)
    draw.rectangle((centre - radius, centre - arm, centre + radius, centre + arm), fill=255)


_DRAWERS: dict[str, Callable[[ImageDraw.ImageDraw, float, float], None]] = dict(
    zip(KINDS, (_circle, _square, _triangle, _star, _cross), strict=True)
)


@cache
def letter_mask(letter: str) -> torch.Tensor:
    """How much of each pixel of its cell a letter covers: [32, 32] float32, 0 or 1."""
    rows = bytes.fromhex(_LETTERS[letter])
    dots = torch.tensor([[row >> bit & 1 for bit in (4, 3, 2, 1, 0)] for row in rows], dtype=torch.float32)  # [7, 5]
    mask = torch.zeros(CELL_PX, CELL_PX)
    top, left = (CELL_PX - 7 * DOT_PX) // 2, (CELL_PX - 5 * DOT_PX) // 2
    mask[top : top + 7 * DOT_PX, left : left + 5 * DOT_PX] = dots.repeat_interleave(DOT_PX, 0).repeat_interleave(DOT_PX, 1)
    return mask


def draw(scene: Scene) -> torch.Tensor:
    """A scene as a picture, [rows * 32, columns * 32, 3] float32 in 0..1."""
    picture = rgb(scene.ground).expand(scene.rows * CELL_PX, scene.columns * CELL_PX, 3).clone()
    for shape in scene.shapes:
        _paint(picture, (shape.row, shape.column), shape_mask(shape.kind, shape.size), shape.colour)
    if scene.word is not None:
        for index, letter in enumerate(scene.word.text):
            _paint(picture, (scene.word.row, scene.word.column + index), letter_mask(letter), scene.word.colour)
    return picture


def draw_plan(tokens: torch.Tensor, text: str = "") -> torch.Tensor:
    """A plan as a picture, [rows * 32, columns * 32, 3] float32 in 0..1: what a perfect painter makes of it.

    tokens: [rows, columns] int64; each draws its own cell, so a plan of misplaced parts is drawn as it is. text: the word of the
    prompt. A cell for a letter that it does not have stays bare; so does a token outside the codebook of the world.
    """
    rows, columns = tokens.shape
    picture = torch.zeros(rows * CELL_PX, columns * CELL_PX, 3)
    drawn = list(cells())
    for row, column in itertools.product(range(rows), range(columns)):
        if (token := int(tokens[row, column])) >= len(drawn):
            continue
        cell = drawn[token]
        picture[row * CELL_PX : (row + 1) * CELL_PX, column * CELL_PX : (column + 1) * CELL_PX] = rgb(cell.ground)
        mask = None if cell.pattern is None else pattern_mask(cell.pattern, text)
        if mask is not None:
            _paint(picture, (row, column), mask, cell.colour)
    return picture


def pattern_mask(pattern: int, text: str) -> torch.Tensor | None:
    """How much of each pixel of its cell a pattern covers, [32, 32] float32 in 0..1; None for a letter that `text` has not."""
    after = pattern - letter_slot(0)
    if after >= 0:
        return letter_mask(text[-1 - after]) if after < len(text) else None
    kind, size, row, column = _parts()[pattern]
    return shape_mask(kind, size)[row * CELL_PX : (row + 1) * CELL_PX, column * CELL_PX : (column + 1) * CELL_PX]


@cache
def _parts() -> dict[int, tuple[str, str, int, int]]:
    """Kind, size, row and column of the part of a shape that each pattern below the letters shows."""
    return {
        part_of_shape(kind, size, row, column): (kind, size, row, column)
        for kind in KINDS
        for size, span in SPANS.items()
        for row, column in itertools.product(range(span), repeat=2)
    }


def rgb(colour: str) -> torch.Tensor:
    """[3] float32 in 0..1."""
    return torch.tensor(COLOURS[colour], dtype=torch.float32) / 255


def _paint(picture: torch.Tensor, cell: tuple[int, int], mask: torch.Tensor, colour: str) -> None:
    """Blend a colour into the picture in place. cell: row and column of the mask's top left corner."""
    height, width = mask.shape
    top, left = (index * CELL_PX for index in cell)
    area = picture[top : top + height, left : left + width]
    area.lerp_(rgb(colour).expand_as(area), mask[..., None])


def _coverage(image: Image.Image) -> torch.Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.size[::-1]).float() / 255
