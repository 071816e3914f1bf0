"""What a score keeps of each answered question, in groups, and whether two checkpoints differ on the same questions."""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

KEPT_DB = 28.0
"""What an edit is not to change must come back within this PSNR."""


@dataclass(frozen=True)
class Answer:
    """One answered question.

    kind: of the edit, or None. width, height: pixels. right: whether the picture shows what is asked. kept: the PSNR in dB of
    what an edit must not change. tokens_a_pass, plan_seconds: how the plan was made.
    """

    subject: str
    number: int
    kind: str | None
    width: int
    height: int
    right: bool
    kept: float | None
    tokens_a_pass: float
    plan_seconds: float

    @property
    def question(self) -> tuple[str, int]:
        """Which question it answers."""
        return self.subject, self.number

    def line(self) -> str:
        """A line of JSON, as `answer_of` reads it."""
        return json.dumps(asdict(self))

    @property
    def keeps(self) -> bool:
        """Whether an edit left the rest alone."""
        return self.kept is not None and self.kept >= KEPT_DB


def answer_of(line: str) -> Answer:
    """The answer in a line of JSON. Raises ValueError where there is none."""
    try:
        return Answer(**json.loads(line))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"no answer of `score --part`: {line.strip()[:80]}") from error


def answers_in(file: Path) -> Iterator[Answer]:
    """The answers in a file that `score --part` printed."""
    for line in file.read_text("utf-8").splitlines():
        try:
            yield answer_of(line)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def groups(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Answers by subject, then by kind of edit, by size, and all. In the order in which they come."""
    found: dict[str, list[Answer]] = {}
    names: Sequence[Callable[[Answer], str | None]] = (
        lambda answer: answer.subject,
        lambda answer: answer.kind and f"edit: {answer.kind}",
        lambda answer: f"{answer.width} x {answer.height}",
        lambda answer: "all",
    )
    for name_of in names:
        for answer in answers:
            if name := name_of(answer):
                found.setdefault(name, []).append(answer)
    return found


def score_row(name: str, answers: Sequence[Answer]) -> dict:
    """The row of a group in the table of one checkpoint."""
    kept = [answer.kept for answer in answers if answer.kept is not None]
    return {
        "what": name,
        "asked": len(answers),
        "right %": percent([answer.right for answer in answers]),
        "rest, median dB": round(statistics.median(kept), 1) if kept else None,
        f"rest within {KEPT_DB:.0f} dB %": percent([db >= KEPT_DB for db in kept]) if kept else None,
        "tokens a pass": round(statistics.fmean(answer.tokens_a_pass for answer in answers), 1),
        "plan, median s": round(statistics.median(answer.plan_seconds for answer in answers), 3),
    }


def comparison_rows(name: str, ours: Sequence[Answer], theirs: Sequence[Answer]) -> list[dict]:
    """The rows of a group in the table of two checkpoints: of what is right, and for edits of what is left alone.

    ours, theirs: the answers to the same questions, in one order.
    """
    rows = [_comparison(name, [answer.right for answer in ours], [answer.right for answer in theirs])]
    edits = [(one.keeps, other.keeps) for one, other in zip(ours, theirs, strict=True) if one.kept is not None]
    if edits:
        rows.append(_comparison(f"{name}, rest within {KEPT_DB:.0f} dB", *zip(*edits, strict=True)))
    return rows


def _comparison(name: str, ours: Sequence[bool], theirs: Sequence[bool]) -> dict:
    only_ours = sum(one and not other for one, other in zip(ours, theirs, strict=True))
    only_theirs = sum(other and not one for one, other in zip(ours, theirs, strict=True))
    return {
        "what": name,
        "asked": len(ours),
        "first %": percent(ours),
        "second %": percent(theirs),
        "only first": only_ours,
        "only second": only_theirs,
        "p": round(mcnemar(only_ours, only_theirs), 4),
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p of McNemar's test: of questions that one of two answered, how often chance divides them so unevenly.

    It is a sign test, with binomial weights C(n, k) / 2^n.
    """
    differing = only_first + only_second
    tail = sum(math.comb(differing, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**differing)


def percent(flags: Sequence[bool]) -> float:
    return round(100 * statistics.fmean(flags), 1)
