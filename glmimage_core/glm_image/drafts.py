"""Guesses of prior tokens that are not known yet.

A draft says what the token at a place could be, from what stands before it and from pictures that are known. Which drafts to
believe is learned from the plans of a model: how often each was right in places whose neighbours look alike. Any guess is safe:
a wrong one costs a row of a pass and changes no token.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile

import torch

from ..diffusion import Grid
from .experience import NONE, UNKNOWN, Experience, Situation

MOST_HALVINGS = 16
SURE = -1  # the halvings of no doubt at all
ENOUGH = 0.5  # of what the pass makes known for its cost
NOBODY = (NONE, 0)


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
    """What mostly stood between the same neighbours."""
    return writing.experience.followed.get((left(writing, place), above(writing, place)), NOBODY)[0]


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

    Each draft has a record of how often it was right in a preview and in a large grid, for every way in which it was right,
    wrong or silent at the four neighbours that are written. Drafts that offer the same token support each other, as if their
    errors were independent.

    forced: the token that a place gets whatever is drawn there, NONE where the draw counts; of all places, or empty. Such a
    token is a guess that is always right. Nothing is learned from it, since the model did not choose it.
    """

    def __init__(
        self, grids: Sequence[Grid], sources: Mapping[str, Source], experience: Experience, *, forced: Sequence[int] = ()
    ):
        self.writing = Writing(grids, experience)
        self.total = len(self.writing.beside)
        self.forced = list(forced) or [NONE] * self.total
        self.undecided = max((place + 1 for place, token in enumerate(self.forced) if token == NONE), default=0)
        self.sources = list(sources.values())
        drafts: dict[str, Draft] = {"left": left, "above": above, "last pass": last_pass, "seen before": seen_before}
        for number, (name, source) in enumerate(sources.items()):
            drafts |= {name: source, f"{name}, changed": changed(source, number)}
        self.drafts = list(drafts.values())
        self.guesses = experience.guesses
        self.records = []  # of each draft at each place
        for kind, grid in zip(("preview", "large")[-len(grids) :], grids, strict=True):
            self.records += [[experience.records[f"{name}, {kind}"] for name in drafts]] * grid.tokens
        self.known = 0  # tokens
        self.halvings: list[int] = []  # of the doubt in each guess after them, SURE for a forced one
        self.silent, self.unknown = [NONE] * len(drafts), [UNKNOWN] * len(drafts)
        self.offers = [self.silent] * self.total  # of each draft at each place
        self.outcomes = [self.unknown] * (self.total + 1)  # the last one stands for NONE

    def guess(self, most: int, row: float = 0.0) -> list[float]:
        """Guess up to `most` tokens after the known ones, as long as they are worth their rows.

        row: what a row costs, in passes of one token. Another row pays as long as it promises more tokens for its cost than the
        rows before it do for theirs; ENOUGH of that is asked, since sizes are few. Returns for each guess the chance that it and
        all before it are right, as the records have it.
        """
        reach, known, chances, self.halvings = 1.0, 1.0, [], []
        for place in range(self.known, min(self.known + most, self.total)):
            doubts: dict[int, float] = {}
            self._offer(place)
            if self.forced[place] != NONE:
                self._write(place, self.forced[place])
                self.halvings.append(SURE)
                chances.append(reach)
                known += reach
                continue
            for token, situation, record in zip(self.offers[place], self._situations(place), self.records[place], strict=True):
                if token != NONE:
                    doubts[token] = doubts.get(token, 1.0) * (1 - record.share(situation))
            token = min(doubts, key=doubts.get, default=NONE)
            halvings = round(-math.log2(max(doubts.get(token, 1.0), 2.0**-MOST_HALVINGS)))
            reach *= self.guesses.share(halvings)
            self._write(place, token)
            self.halvings.append(halvings)
            chances.append(reach)
            known += reach
            if reach * (1 + row * len(chances)) < ENOUGH * row * known:
                break
        return chances

    def window(self, rows: int) -> list[int]:
        """The last known token and `rows` - 1 guesses after it; token 0 where there is none."""
        guessed = self.writing.tokens[self.known : self.known + min(rows - 1, len(self.halvings))]
        window = [self.writing.tokens[self.known - 1], *(max(token, 0) for token in guessed)]
        return window + [0] * (rows - len(window))

    def take(self, drawn: int) -> None:
        """Take a draw that is known to be right, and learn nothing from it."""
        self.writing.tokens[self.known] = self._decided([drawn])[0]
        self.offers[self.known], self.outcomes[self.known] = self.silent, self.unknown
        self.known, self.halvings = self.known + 1, []
        self._end()

    def accept(self, drawn: Sequence[int]) -> int:
        """Take what a pass drew after the last known token and after each guess, W tokens; returns how many became known.

        The draws are those of the one-at-a-time loop as long as the guesses before them were right.
        """
        known, guessed = self.known, len(self.halvings)
        guesses, decided = self.writing.tokens[known : known + guessed], self._decided(drawn)
        right = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(guesses, decided, strict=False))))
        run = min(right + 1, len(decided))
        for halvings, guess, token in zip(self.halvings, guesses, decided[:run], strict=False):
            if halvings != SURE:
                self.guesses.enter(halvings, guess == token)
        for number, token in enumerate(decided[:run]):
            if number >= guessed:
                self._offer(known + number)
            self._write(known + number, token)
            if self.forced[known + number] == NONE:
                self._learn(known + number)
        self.known, self.halvings = known + run, []
        self.writing.drawn = dict(enumerate(drawn[run:], self.known))
        self._end()
        return self.known - known

    @property
    def is_forced(self) -> bool:
        """Whether the next place has a forced token."""
        return self.known < self.total and self.forced[self.known] != NONE

    def until_forced(self, most: int) -> int:
        """How many tokens, 1 to `most`, can be drawn and fed back one after another: at a forced place the draw is not what
        is fed."""
        ahead = self.forced[self.known : self.known + most]
        return max(1, next((count for count, token in enumerate(ahead) if token != NONE), most))

    def _decided(self, drawn: Sequence[int]) -> list[int]:
        """The tokens of the next places, whose draws these are."""
        places = self.forced[self.known : self.known + len(drawn)]
        return [token if forced == NONE else forced for token, forced in zip(drawn, places, strict=False)]

    def _end(self) -> None:
        """If no place is left whose draw counts, the forced tokens after it are known without a pass."""
        if self.known >= self.undecided:
            self.writing.tokens[self.known : self.total] = self.forced[self.known :]
            self.known = self.total

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
        for outcome, situation, record in zip(self.outcomes[place], self._situations(place), self.records[place], strict=True):
            if outcome != UNKNOWN:
                record.enter(situation, outcome)
        for number, source in enumerate(self.sources):
            if (there := source(writing, place)) != NONE:
                writing.became[number, there] = token
        writing.experience.follow((left(writing, place), above(writing, place)), token)
