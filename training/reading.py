"""A picture read back as a scene: colours by nearest of the palette, shapes by their moments, letters by comparison.

It does not know how the picture was made. Any other picture is read too, as a scene that fits no prompt.
"""

from functools import cache

import numpy as np
import torch
from scipy import ndimage

from .drawing import letter_mask, rgb, shape_mask
from .world import ALPHABET, CELL_PX, COLOURS, KINDS, SPANS, Scene, Shape, Word

SMALLEST_SHAPE = 40  # pixels along the longer side; letters are up to 28
LEAST_LETTER = 0.05  # share of a cell's pixels; the thinnest letter has 0.11
LEAST_LIKENESS = 0.5  # intersection over union with a letter


def read(picture: torch.Tensor) -> Scene:
    """The scene that a picture [H, W, 3] in 0..1 shows; its sides are multiples of 32 pixels."""
    colours = colour_map(picture)
    height, width = colours.shape
    ground = int(np.bincount(colours.ravel(), minlength=len(COLOURS)).argmax())
    shapes, rest = _shapes(picture, colours, ground)
    names = list(COLOURS)
    contrast = (picture - rgb(names[ground])).norm(dim=-1).numpy()
    word = _word(rest, colours, contrast)
    return Scene(height // CELL_PX, width // CELL_PX, names[ground], shapes=tuple(shapes), word=word)


def colour_map(picture: torch.Tensor) -> np.ndarray:
    """The index of the palette's nearest colour at each pixel: [H, W]."""
    palette = torch.tensor(list(COLOURS.values())) / 255
    return torch.cdist(picture.flatten(0, 1).float(), palette).argmin(1).reshape(picture.shape[:2]).numpy()


def _shapes(picture: torch.Tensor, colours: np.ndarray, ground: int) -> tuple[list[Shape], np.ndarray]:
    """The connected areas that are as large as a shape, and a mask of everything else that is not ground."""
    rest = colours != ground
    found = []
    labels, _ = ndimage.label(rest)
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        if max(rows.stop - rows.start, columns.stop - columns.start) < SMALLEST_SHAPE:
            continue
        mask = labels[rows, columns] == number
        if mask.sum() < 0.15 * mask.size:
            continue
        size = min(SPANS, key=lambda name: abs(SPANS[name] * CELL_PX - 8 - max(mask.shape)))
        middle = (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2
        row, column = (  # moved inside the picture: a badly painted shape may lie partly outside
            min(max(round(place / CELL_PX - SPANS[size] / 2), 0), pixels // CELL_PX - SPANS[size])
            for place, pixels in zip(middle, rest.shape, strict=True)
        )
        colour = int(np.bincount(colours[rows, columns][mask]).argmax())
        ink = mask & _nearer(picture[rows, columns], colour, ground)
        found.append(Shape(kind_of(ink, size), list(COLOURS)[colour], size, row=row, column=column))
        rest[rows, columns][mask] = False
    return found, rest


def _nearer(picture: torch.Tensor, colour: int, ground: int) -> np.ndarray:
    """Which pixels of a picture [H, W, 3] are nearer to a colour than to the ground; an edge has pixels between them."""
    palette = torch.tensor(list(COLOURS.values())) / 255
    ink, other = ((picture - palette[index]).norm(dim=-1) for index in (colour, ground))
    return (ink < other).numpy()


def kind_of(mask: np.ndarray, size: str) -> str:
    """The kind with the nearest moments at that size, also if it is painted thinner or bolder than drawn."""
    own = moments(mask)
    return min(KINDS, key=lambda kind: np.linalg.norm(_moments_of(kind, size) - own, axis=1).min())


def moments(mask: np.ndarray) -> np.ndarray:
    """Numbers that do not depend on size and place: normalised central moments of order 2 to 4, and the filled share of the box.

    eta_pq = sum x^p y^q / area^(1 + (p + q) / 2), with x and y from the centre of mass. [6]
    """
    y, x = np.nonzero(mask)
    area, box = len(x), (np.ptp(x) + 1) * (np.ptp(y) + 1)
    x, y = x - x.mean(), y - y.mean()

    def eta(p: int, q: int) -> float:
        return float((x**p * y**q).sum() / area ** (1 + (p + q) / 2))

    return np.array([eta(2, 0) + eta(0, 2), eta(0, 3) * 4, eta(4, 0) * 4, eta(0, 4) * 4, eta(2, 2) * 8, area / box])


@cache
def _moments_of(kind: str, size: str) -> np.ndarray:
    """The moments of a kind eroded by a pixel, as drawn, and dilated by one and by two pixels: [4, 6]."""
    drawn = np.pad(shape_mask(kind, size).numpy() > 0.5, 3)
    around = np.ones((3, 3), bool)
    bolder = [ndimage.binary_dilation(drawn, around, times) for times in (1, 2)]
    return np.stack([moments(mask) for mask in (ndimage.binary_erosion(drawn, around), drawn, *bolder)])


def _word(rest: np.ndarray, colours: np.ndarray, contrast: np.ndarray) -> Word | None:
    """The longest run of letters in one row of cells. Its colour is that of its pixels with the most contrast to the ground."""
    letters = {}
    for row in range(rest.shape[0] // CELL_PX):
        for column in range(rest.shape[1] // CELL_PX):
            cell = rest[row * CELL_PX : (row + 1) * CELL_PX, column * CELL_PX : (column + 1) * CELL_PX]
            if cell.mean() >= LEAST_LETTER and (letter := letter_of(cell)):
                letters[row, column] = letter
    runs = []
    for row, column in sorted(letters):
        if (row, column - 1) in letters:
            runs[-1].append((row, column))
        else:
            runs.append([(row, column)])
    if not runs:
        return None
    longest = max(runs, key=len)
    row, column = longest[0]
    area = np.s_[row * CELL_PX : (row + 1) * CELL_PX, column * CELL_PX : (column + len(longest)) * CELL_PX]
    purest = rest[area] & (contrast[area] >= np.quantile(contrast[area][rest[area]], 0.7))
    inks = np.bincount(colours[area][purest], minlength=len(COLOURS))
    return Word("".join(letters[place] for place in longest), list(COLOURS)[int(inks.argmax())], row, column)


def letter_of(cell: np.ndarray) -> str | None:
    """The letter that is most similar to the ink of a cell, [32, 32] bool, or None."""
    templates = _letters()
    union = (templates | cell).sum((1, 2))
    likeness = (templates & cell).sum((1, 2)) / union
    best = int(likeness.argmax())
    return ALPHABET[best] if likeness[best] >= LEAST_LIKENESS else None


@cache
def _letters() -> np.ndarray:
    return np.stack([letter_mask(letter).numpy() > 0.5 for letter in ALPHABET])
