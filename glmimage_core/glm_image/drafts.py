"""Guesses of prior tokens that are not known yet.

A draft says what the token at a place could be, from what stands before it and from pictures that are known. Which drafts to
believe is learned from the plans of a model: how often each was right in places whose neighbours look alike. Any guess is safe:
a wrong one costs a row of a pass and changes no token.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch

from ..diffusion import Grid

NONE = -1
"""A draft that has nothing to say, or a neighbour outside the grid."""

UNKNOWN = 2
"""The outcome of a draft that said nothing; that of the others is whether they were right."""

Situation = tuple[int, ...]
"""The outcomes of a draft at the four neighbours of a place."""


class Record(dict):
    """How often something came true: [hits, trials] by what was seen before. What is new begins with one trial, which counts
    `first` of what was seen."""

    def __init__(self, first: Callable[[Any], float]):
        super().__init__()
        self.first = first

    def __missing__(self, seen: Any) -> list[float]:
        self[seen] = [self.first(seen), 1]
        return self[seen]

    def share(self, seen: Any) -> float:
        hits, trials = self[seen]
        return hits / trials

    def enter(self, seen: Any, hit: int) -> None:
        counts = self[seen]
        counts[0] += hit
        counts[1] += 1
        if counts[1] > MOST_TRIALS:
            counts[:] = [count / 2 for count in counts]


def as_the_neighbours(situation: Situation) -> float:
    """The trust in a draft without a record: from 0.06 where it was wrong at all four neighbours to 0.86 where it was right."""
    return (0.3 + situation.count(True)) / (1 + len(situation) - situation.count(UNKNOWN))


MOST_TRIALS = 256  # the older half of the evidence loses its weight beyond
MOST_HALVINGS = 16
MOST_PAIRS = 2**15


@dataclass(eq=False)
class Experience:
    """What the plans of a model have shown so far; all sequences share it.

    records: of each draft, by its name. guesses: how often a guess was right whose doubt was about 2 to the power of minus this;
    drafts err together, so that their common doubt is too small. followed: the token that came last where the neighbours left
    and above had these tokens.
    """

    records: dict[str, Record] = field(default_factory=lambda: defaultdict(lambda: Record(as_the_neighbours)))
    guesses: Record = field(default_factory=lambda: Record(lambda halvings: 1 - 2.0**-halvings))
    followed: dict[tuple[int, int], int] = field(default_factory=dict)

    def follow(self, neighbours: tuple[int, int], token: int) -> None:
        self.followed[neighbours] = token
        if len(self.followed) > MOST_PAIRS:
            del self.followed[next(iter(self.followed))]


class Writing:
    """A sequence of grids, written in row order, one grid after another.

    beside: the places left, above, above right and above left of each place. tokens: of each place, known or guessed; NONE where
    nothing is written. NONE is also the place of a neighbour outside the grid: as an index it finds the end of `tokens`, where
    nothing is ever written. drawn: what the last pass drew after the tokens that it made known, by place. became: the token that
    came last where a source had a token, by the source's number and that token.
    """

    def __init__(self, grids: Sequence[Grid], experience: Experience):
        self.grids, self.experience = grids, experience
        self.beside = _neighbours(grids)
        self.tokens = [NONE] * (len(self.beside) + 1)
        self.drawn: dict[int, int] = {}
        self.became: dict[tuple[int, int], int] = {}


def _neighbours(grids: Sequence[Grid]) -> list[tuple[int, int, int, int]]:
    """The places left, above, above right and above left of each place of grids that follow one another."""
    beside: list[tuple[int, int, int, int]] = []
    for height, width in grids:
        start = len(beside)
        for row in range(height):
            for column in range(width):
                here, first, last = start + row * width + column, column == 0, column == width - 1
                beside.append(
                    (
                        NONE if first else here - 1,
                        NONE if row == 0 else here - width,
                        NONE if row == 0 or last else here - width + 1,
                        NONE if row == 0 or first else here - width - 1,
                    )
                )
    return beside


Draft = Callable[[Writing, int], int]
"""(what is written, the next place) -> a token, or NONE."""


def left(writing: Writing, place: int) -> int:
    return writing.tokens[writing.beside[place][0]]


def above(writing: Writing, place: int) -> int:
    return writing.tokens[writing.beside[place][1]]


def last_pass(writing: Writing, place: int) -> int:
    """What the last pass drew here, after guesses of which one was wrong: with the same noise it is often the same token."""
    return writing.drawn.get(place, NONE)


def seen_before(writing: Writing, place: int) -> int:
    """What stood last between the same neighbours."""
    return writing.experience.followed.get((left(writing, place), above(writing, place)), NONE)


Source = Callable[[Writing, int], int]
"""A picture of tokens that the plan may resemble: its token at a place of the plan, or NONE."""


def at_same_place(tokens: torch.Tensor, grids: Sequence[Grid]) -> Source:
    """A picture that is known beforehand, [h, w] int64, scaled to the last grid: a reference, or an earlier plan."""
    before, large = sum(grid.tokens for grid in grids[:-1]), grids[-1]
    scaled = [NONE] * before + [int(tokens[row, column]) for row, column in _scaled(Grid(*tokens.shape), large)]
    return lambda writing, place: scaled[place]


def in_preview(grids: Sequence[Grid]) -> Source:
    """The preview, which is written before the last grid, scaled to it."""
    preview, large = grids
    places = [NONE] * preview.tokens + [row * preview.width + column for row, column in _scaled(preview, large)]
    return lambda writing, place: writing.tokens[places[place]]


def _scaled(source: Grid, target: Grid) -> list[tuple[int, int]]:
    """The row and column of the source at the middle of each token of the target, in row order."""
    rows = [(2 * row + 1) * source.height // (2 * target.height) for row in range(target.height)]
    columns = [(2 * column + 1) * source.width // (2 * target.width) for column in range(target.width)]
    return [(row, column) for row in rows for column in columns]


def changed(source: Source, number: int) -> Draft:
    """What the source's token became where it stood last: one colour for another."""
    return lambda writing, place: writing.became.get((number, source(writing, place)), NONE)  # NONE became nothing


class Foresight:
    """Guesses the next tokens of one sequence.

    Each draft has a record of how often it was right, for every way in which it was right, wrong or silent at the four
    neighbours that are written. Drafts that offer the same token support each other, as if their errors were independent.
    """

    def __init__(self, grids: Sequence[Grid], sources: Sequence[Source], experience: Experience):
        self.writing = Writing(grids, experience)
        self.total = len(self.writing.beside)
        self.sources = sources
        drafts: dict[str, Draft] = {"left": left, "above": above, "last pass": last_pass, "seen before": seen_before}
        for number, source in enumerate(sources):
            drafts |= {f"source {number}": source, f"source {number}, changed": changed(source, number)}
        self.drafts = list(drafts.values())
        self.records, self.guesses = [experience.records[name] for name in drafts], experience.guesses
        self.known = 0  # tokens
        self.halvings: list[int] = []  # of the doubt in each guess after them
        self.silent, self.unknown = [NONE] * len(drafts), [UNKNOWN] * len(drafts)
        self.offers = [self.silent] * self.total  # of each draft at each place
        self.outcomes = [self.unknown] * (self.total + 1)  # the last one stands for NONE

    def guess(self, most: int, least: float = 0.0) -> list[float]:
        """Guess up to `most` tokens after the known ones, as long as all of them are right with a chance above `least`.

        Returns for each guess the chance that it and all before it are right, as the records have it.
        """
        reach, chances, self.halvings = 1.0, [], []
        for place in range(self.known, min(self.known + most, self.total)):
            doubts: dict[int, float] = {}
            self._offer(place)
            for token, situation, record in zip(self.offers[place], self._situations(place), self.records, strict=True):
                if token != NONE:
                    doubts[token] = doubts.get(token, 1.0) * (1 - record.share(situation))
            token = min(doubts, key=doubts.get, default=NONE)
            halvings = round(-math.log2(max(doubts.get(token, 1.0), 2.0**-MOST_HALVINGS)))
            reach *= self.guesses.share(halvings)
            self._write(place, token)
            self.halvings.append(halvings)
            chances.append(reach)
            if reach < least:
                break
        return chances

    def window(self, rows: int) -> list[int]:
        """The last known token and `rows` - 1 guesses after it; token 0 where there is none."""
        guessed = self.writing.tokens[self.known : self.known + min(rows - 1, len(self.halvings))]
        window = [self.writing.tokens[self.known - 1], *(max(token, 0) for token in guessed)]
        return window + [0] * (rows - len(window))

    def take(self, token: int) -> None:
        """Take a token that is known to be right, and learn nothing from it."""
        self.writing.tokens[self.known] = token
        self.offers[self.known], self.outcomes[self.known] = self.silent, self.unknown
        self.known, self.halvings = self.known + 1, []

    def accept(self, drawn: Sequence[int]) -> int:
        """Take what a pass drew after the last known token and after each guess, W tokens; returns how many became known.

        The draws are those of the one-at-a-time loop as long as the guesses before them were right.
        """
        known, guessed = self.known, len(self.halvings)
        guesses = self.writing.tokens[known : known + guessed]
        right = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(guesses, drawn, strict=False))))
        run = min(right + 1, len(drawn), self.total - known)
        for halvings, guess, token in zip(self.halvings, guesses, drawn[:run], strict=False):
            self.guesses.enter(halvings, guess == token)
        for number, token in enumerate(drawn[:run]):
            if number >= guessed:
                self._offer(known + number)
            self._write(known + number, token)
            self._learn(known + number)
        self.known, self.halvings = known + run, []
        self.writing.drawn = dict(enumerate(drawn[run:], self.known))
        return run

    def _offer(self, place: int) -> None:
        writing = self.writing
        self.offers[place] = [draft(writing, place) for draft in self.drafts]

    def _situations(self, place: int) -> Iterable[Situation]:
        """How each draft did at the four neighbours of a place."""
        outcomes = self.outcomes
        left, above, above_right, above_left = self.writing.beside[place]
        return zip(outcomes[left], outcomes[above], outcomes[above_right], outcomes[above_left], strict=True)

    def _write(self, place: int, token: int) -> None:
        """Write a token, known or guessed, and note which drafts offer it."""
        self.writing.tokens[place] = token
        self.outcomes[place] = [UNKNOWN if offer == NONE else offer == token for offer in self.offers[place]]

    def _learn(self, place: int) -> None:
        """Enter into the records how each draft did at a place that has become known, and what stands there."""
        writing, token = self.writing, self.writing.tokens[place]
        for outcome, situation, record in zip(self.outcomes[place], self._situations(place), self.records, strict=True):
            if outcome != UNKNOWN:
                record.enter(situation, outcome)
        for number, source in enumerate(self.sources):
            if (there := source(writing, place)) != NONE:
                writing.became[number, there] = token
        writing.experience.follow((left(writing, place), above(writing, place)), token)
