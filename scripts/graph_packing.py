"""Finds places for the groups of a graph, so that the whole graph opens large enough to be read.

The front end opens a template so that its nodes fill three quarters of the window. This module packs the groups into a few
columns of one width that fit there. Of the arrangements that fit it takes one with short links, which run to the right and not
behind nodes.
"""

import heapq
from collections.abc import Iterator, Sequence
from itertools import combinations, count, pairwise
from operator import mul
from typing import NamedTuple

FITTED = (1200, 675)  # pixels: three quarters of a window of 1600 x 900, which the front end fits the nodes of a template into
EDGE = 10  # which it leaves around them, in the graph's units
TITLE, BADGE = 30, 20  # above a node
GAP = TITLE + BADGE + 12  # between two nodes of a column
BETWEEN = 52  # two columns
GROUP_TITLE, GROUP_MARGIN, GROUP_BOTTOM, APART = 38, 20, 26, 10  # of a frame; the last is the space below it
ABOVE = GROUP_TITLE + TITLE + BADGE  # a group's nodes
WIDEST = 370
SHOWN_BELOW = 190  # units of the window below the fitted ones, for pictures that form there
BEST, POINTS = 50, 16  # arrangements whose links are followed, and at how many points
BEHIND, BACK, STACKED = 160, 2000, 60  # what a link costs that runs behind a node, to the left, to a node below; a unit costs 1
OTHER, LOW = 900, 900  # what a group costs that stands in other columns than described, or not in the uppermost row
ORDER = 1500  # what it costs if it begins left of a group that is read before
MOST_COLUMNS_OF_A_GROUP, SPLITS = 4, 3


class Item(NamedTuple):
    """A node to place: which one of its block it is, its height, and how much it grows by below while it runs."""

    number: int
    id: int
    height: int
    tail: int = 0


class Block(NamedTuple):
    """Nodes that stand together: a group, or a note without a frame. low: it may as well stand below others."""

    described: tuple[tuple[Item, ...], ...]  # as columns side by side
    framed: bool = True
    low: bool = False

    @property
    def items(self) -> list[Item]:
        """The nodes by their numbers."""
        return sorted(item for column in self.described for item in column)


class Link(NamedTuple):
    """From a node's output to another one's input, and how far below the nodes' tops they are."""

    source: int
    below_source: float
    target: int
    below_target: float


class Sheet(NamedTuple):
    """Columns to fill."""

    columns: int
    width: int
    height: int  # from the first node's top to the last one's bottom

    def left(self, column: int) -> int:
        return column * (self.width + BETWEEN)


class Placed(NamedTuple):
    """Where a node stands."""

    left: int
    top: int
    height: int


Places = dict[int, Placed]


def sheet(columns: int, scale: float) -> Sheet:
    """The widest columns and the height that open at the scale."""
    across = FITTED[0] / scale - 2 * EDGE - (columns - 1) * BETWEEN
    return Sheet(columns, min(WIDEST, int(across / columns) // 5 * 5), int(FITTED[1] / scale) - 2 * EDGE - TITLE)


def pack(blocks: Sequence[Block], links: Sequence[Link], on: Sheet) -> tuple[float, Places] | None:
    """The best arrangement of the blocks in reading order with what it costs, or none if they do not fit.

    The first block begins at (0, 0).
    """
    best: list[tuple[float, int, Places]] = []
    numbers = count()
    for cost, places in _arrangements(blocks, links, on, best):
        entry = (-cost, -next(numbers), places)
        (heapq.heappush if len(best) < BEST else heapq.heappushpop)(best, entry)
    if not best:
        return None
    followed = ((BEHIND * behind(places, links, on.width) - cost, -number, places) for cost, number, places in best)
    cost, _, places = min(followed, key=lambda entry: entry[:2])
    return cost, places


def behind(places: Places, links: Sequence[Link], width: int) -> int:
    """How many nodes the links run behind. width: of the nodes."""
    found = 0
    for link in links:
        points = list(_course(link, places, width))
        others = (place for node, place in places.items() if node not in (link.source, link.target))
        found += sum(any(_covers(place, width, point) for point in points) for place in others)
    return found


def _course(link: Link, places: Places, width: int) -> Iterator[tuple[float, float]]:
    """Points on the curve that the front end draws a link as."""
    source, target = places[link.source], places[link.target]
    start, end = source.left + width, target.left
    reach = max(abs(end - start), 40) / 2
    xs = (start, start + reach, end - reach, end)
    top, bottom = source.top + link.below_source, target.top + link.below_target
    for step in range(1, POINTS):
        t = step / POINTS
        weights = (1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
        yield tuple(sum(map(mul, weights, line)) for line in (xs, (top, top, bottom, bottom)))


def _covers(place: Placed, width: int, point: tuple[float, float]) -> bool:
    x, y = point
    return place.left < x < place.left + width and place.top - TITLE < y < place.top + place.height


def _arrangements(blocks: Sequence[Block], links: Sequence[Link], on: Sheet, best: list) -> Iterator[tuple[float, Places]]:
    """Every arrangement that fits, with the cost of its groups and links, except those that cost more than the best ones so far.

    best: what the caller keeps of them, a heap of at most BEST whose first entry begins with the negative of the highest cost.
    """
    shapes = [list(_shapes(block, on.columns)) for block in blocks]
    owner = {item.id: number for number, block in enumerate(blocks) for item in block.items}
    closing: list[list[Link]] = [[] for _ in blocks]  # the links that have both ends when a block is placed
    for link in links:
        closing[max(owner[link.source], owner[link.target])].append(link)

    def options(number: int, skyline: tuple[int, ...], places: Places) -> Iterator[tuple[float, tuple[int, ...], Places]]:
        """Where a block can stand: what that costs, the skyline after it, and all places."""
        block = blocks[number]
        begun = [places[earlier.items[0].id].left for earlier in blocks[:number]]
        for shape in shapes[number]:
            for column in range(1 if number < 2 else on.columns - len(shape) + 1):  # the first two begin at the left
                if put := _put(block, shape, column, skyline, on):
                    after, own = put
                    cost = sum(_cost(link, places | own, on.width) for link in closing[number])
                    cost += OTHER * (shape != block.described) + ORDER * sum(left > on.left(column) for left in begun)
                    cost += LOW * (number > 1 and not block.low and min(at.top for at in own.values()) > 0)
                    yield cost, after, places | own

    def place(number: int, skyline: tuple[int, ...], places: Places, cost: float) -> Iterator[tuple[float, Places]]:
        if len(best) == BEST and cost >= -best[0][0]:
            return
        if number == len(blocks):
            yield cost, places
            return
        for more, after, everything in sorted(options(number, skyline, places), key=lambda option: option[0]):
            yield from place(number + 1, after, everything, cost + more)

    yield from place(0, (-ABOVE,) * on.columns, {}, 0.0)


def _shapes(block: Block, columns: int) -> Iterator[tuple[tuple[Item, ...], ...]]:
    """The block's nodes as columns side by side: as described, and the lowest ways for each number of columns."""
    yield block.described
    items = block.items
    amount = len(items)
    for wide in range(1, min(columns, amount, MOST_COLUMNS_OF_A_GROUP) + 1):
        splits = []
        for cuts in combinations(range(1, amount), wide - 1):
            parts = tuple(tuple(items[start:end]) for start, end in pairwise((0, *cuts, amount)))
            splits.append((max(_length(part) for part in parts), parts))
        splits.sort(key=lambda split: split[0])
        yield from (parts for _, parts in splits[:SPLITS] if parts != block.described)


def _length(items: Sequence[Item]) -> int:
    return sum(item.height + item.tail + GAP for item in items) - GAP


def _put(block: Block, shape: tuple[tuple[Item, ...], ...], column: int, skyline: tuple[int, ...], on: Sheet):
    """A block put below what is there: the skyline after it, and where its nodes stand; none if they reach too far down.

    skyline: where the next frame of each column begins.
    """
    start = max(skyline[column : column + len(shape)])
    first = start + (ABOVE if block.framed or start == -ABOVE else TITLE + BADGE)
    own, end = {}, first
    for number, items in enumerate(shape):
        top = first
        for item in items:
            own[item.id] = Placed(on.left(column + number), top, item.height)
            if top + item.height > on.height:
                return None
            end = max(end, top + item.height + item.tail)
            top += item.height + item.tail + GAP
    if end > on.height + SHOWN_BELOW:
        return None
    below = end + APART + (GROUP_BOTTOM if block.framed else 0)
    return skyline[:column] + (below,) * len(shape) + skyline[column + len(shape) :], own


def _cost(link: Link, places: Places, width: int) -> float:
    """What a link costs: its length, and more if it does not run to the right."""
    source, target = places[link.source], places[link.target]
    across = target.left - source.left - width
    down = abs(target.top + link.below_target - source.top - link.below_source)
    if across >= 0:
        return across + down
    return down + (STACKED if source.left == target.left else BACK - across)
