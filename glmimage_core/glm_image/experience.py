"""What the plans of a model have shown: which guesses of tokens came true, and which token stands between which.

A run learns from the runs before it. A checkpoint may carry what its plans have shown beside the weights of its AR model, in the
file `experience.npz`, so that the first plan after loading is guessed as well as a later one. Any guess is safe, so a file that
fits the weights badly costs time and changes no token. `scripts/make_experience.py` writes it:

    followed         [N, 3], the tokens left and above of a place, and the one that mostly stood there; -1 is outside the grid
    guesses          [K, 2], a number of halvings, and the share of guesses with about this doubt that were right
    of DRAFT, GRID   [K, 5], the outcomes of a draft at the four neighbours of a place, and how often it was right there
"""

import logging
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from typing_extensions import Self

log = logging.getLogger(__name__)

FILE = "experience.npz"
NONE = -1
"""A draft that has nothing to say, or a neighbour outside the grid."""

UNKNOWN = 2
"""The outcome of a draft that said nothing; that of the others is whether they were right."""

Situation = tuple[int, ...]
"""The outcomes of a draft at the four neighbours of a place."""

MOST_TRIALS = 256  # the older half of the evidence loses its weight beyond
STORED_TRIALS = 2  # as which a share in a file counts: a run soon knows better
MOST_PAIRS = 2**15
MOST_VOTES = 8
OF_DRAFT = "of "
BROKEN = (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error)


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


@dataclass(eq=False)
class Experience:
    """What the plans of a model have shown so far; all sequences share it.

    records: of each draft in each kind of grid, by their names. guesses: how often a guess was right whose doubt was about 2 to
    the power of minus this; drafts err together, so that their common doubt is too small. followed: the token that mostly stood
    where the neighbours left and above had these tokens, and the votes by which it leads.
    """

    records: dict[str, Record] = field(default_factory=lambda: defaultdict(lambda: Record(as_the_neighbours)))
    guesses: Record = field(default_factory=lambda: Record(lambda halvings: 1 - 2.0**-halvings))
    followed: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def follow(self, neighbours: tuple[int, int], token: int) -> None:
        """Count what stands between two neighbours: a majority vote as of Boyer and Moore, with at most MOST_VOTES ahead."""
        leader, votes = self.followed.get(neighbours, (token, 0))
        if leader == token:
            self.followed[neighbours] = token, min(votes + 1, MOST_VOTES)
        else:
            self.followed[neighbours] = (leader, votes - 1) if votes > 1 else (token, 1)
        if len(self.followed) > MOST_PAIRS:
            del self.followed[next(iter(self.followed))]

    def save(self, folder: Path) -> None:
        """Write FILE into a folder."""
        tables = {OF_DRAFT + name: _table(record) for name, record in sorted(self.records.items())}
        pairs = sorted((*neighbours, token) for neighbours, (token, _) in self.followed.items())
        np.savez_compressed(folder / FILE, followed=np.array(pairs, np.int32), guesses=_table(self.guesses), **tables)

    @classmethod
    def stored_in(cls, folder: Path, codebook_size: int) -> Self:
        """What the file in a folder says: nothing where there is none, or where it is not as above, which the log says."""
        experience, file = cls(), folder / FILE
        try:
            with np.load(file) as tables:
                pairs = tables["followed"]
                if not ((pairs >= NONE) & (pairs < codebook_size)).all():
                    raise ValueError("it is of another codebook")
                for *neighbours, token in pairs.tolist():
                    experience.followed[tuple(neighbours)] = token, STORED_TRIALS
                experience.guesses.update((halvings, counts) for (halvings,), counts in _counts(tables["guesses"]))
                for name in tables.files:
                    if name.startswith(OF_DRAFT):
                        experience.records[name.removeprefix(OF_DRAFT)].update(_counts(tables[name]))
        except FileNotFoundError:
            return cls()
        except BROKEN as error:
            log.warning("%s cannot be used, and the first plans will be slower (%s); write or download it anew", file, error)
            return cls()
        return experience


def _table(record: Record) -> np.ndarray:
    """[K, seen + 1] float32: what was seen, and the share of hits."""
    rows = [[*(seen if isinstance(seen, tuple) else (seen,)), hits / trials] for seen, (hits, trials) in sorted(record.items())]
    return np.array(rows, np.float32)


def _counts(table: np.ndarray) -> list[tuple[tuple[int, ...], list[float]]]:
    return [(tuple(map(int, seen)), [share * STORED_TRIALS, STORED_TRIALS]) for *seen, share in table.tolist()]
