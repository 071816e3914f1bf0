"""The texts between quotation marks in a prompt."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from .quotation_marks import ALL_MARKS, DOUBLE, SINGLE, Mark, find_marks

_ESCAPE = re.compile(rf"\\+(?=[{re.escape(ALL_MARKS)}])")
_ANY_MARK = re.compile(rf"[{re.escape(ALL_MARKS)}]")
# A prompt in JSON, or in what people take for it: an opening brace, a name in quotation marks, a colon.
_JSON = re.compile(r"""\{\s*(["'\u201c\u201d]|\\")[^"'\u201c\u201d]*(["'\u201c\u201d]|\\")\s*:""")
_DRAWN = re.compile(
    r"(?:.*[\W_])?(?:text|texts|lettering|wording|inscription|slogan|headline)|text_to_\w+|text_?content", re.IGNORECASE
)
_DRAWN_IN_CAMEL_CASE = re.compile(r"\w*[a-z0-9]Texts?")
_PARTS_OF_DRAWN = ("content", "value", "string", "text")  # names within such a value that is itself an object
EXCERPT = 24  # characters of a prompt that show where a mark is


class Quotation(NamedTuple):
    """A quoted text. text: without its marks. start, end: where it stands in the prompt, with them."""

    start: int
    end: int
    text: str


class _Pairs(NamedTuple):
    quotations: list[Quotation]
    unread: list[Mark]  # marks that found no other one
    measures: list[Mark]  # inches and feet


def find_quotations(prompt: str) -> list[Quotation]:
    """The outermost texts between quotation marks, in order; those that hold nothing too."""
    return _paired(prompt).quotations


def find_quoted_texts(prompt: str) -> list[str]:
    """The texts to be drawn: between quotation marks, in order, marks removed, apostrophes and inches left alone, none empty.

    In a prompt in JSON, names and values stand in quotation marks that mean something else. Of it only values of names such as
    "text" are taken, and what is quoted within other values.
    """
    if is_json(prompt):
        return _texts_of_json(prompt)
    return [quotation.text for quotation in find_quotations(prompt) if quotation.text.strip()]


def is_json(prompt: str) -> bool:
    """Whether quotation marks of a prompt are JSON's."""
    return _JSON.search(prompt) is not None


def marks_without_text(prompt: str) -> list[str]:
    """Where a prompt has quotation marks that enclose nothing that is found, as short excerpts.

    Inches and feet are among them only if the prompt has no quoted text at all.
    """
    pairs = _paired(prompt)
    found = any(quotation.text.strip() for quotation in pairs.quotations)
    places = [mark.start for mark in pairs.unread]
    if not found:
        places += [mark.start for mark in pairs.measures if mark.kind == DOUBLE]
        places += [quotation.start for quotation in pairs.quotations]
    return [" ".join(prompt[max(0, place - EXCERPT // 2) : place + EXCERPT // 2].split()) for place in sorted(places)]


def _paired(prompt: str) -> _Pairs:
    """The pairs that a prompt's marks make. Where a reading by place leaves marks over, a simpler one may leave fewer."""
    marks = _unwrapped(prompt, list(find_marks(prompt)))
    nested = _pair(prompt, marks, nested=True)
    if not nested.unread:
        return nested
    return min(nested, _pair(prompt, marks, nested=False), key=lambda pairs: len(pairs.unread))


def _unwrapped(prompt: str, marks: list[Mark]) -> list[Mark]:
    """Without the marks around a prompt that is a field of a CSV file or a string of a program: all others were typed twice or
    have a backslash."""
    whole = prompt.strip()
    double = [mark for mark in marks if mark.kind == DOUBLE]
    if (
        len(double) < 4
        or prompt[double[0].start : double[0].end] != whole[:1]
        or prompt[double[-1].start :].strip() != whole[-1:]
    ):
        return marks
    if any(mark.plain for mark in double[1:-1]):
        return marks
    return [mark for mark in marks if mark not in (double[0], double[-1])]


def _pair(prompt: str, marks: Sequence[Mark], *, nested: bool) -> _Pairs:
    """nested: a mark in the place of one that opens does so within an open pair of its kind, too. Else marks take turns."""
    open_marks: list[Mark] = []
    depth: Counter[str] = Counter()  # of open_marks, by kind
    pairs: list[tuple[Mark, Mark]] = []
    unread: list[Mark] = []
    measures: list[Mark] = []
    following = _following(marks)
    for number, mark in enumerate(marks):
        within = depth[mark.kind] > 0
        later = following[number]
        alone = later is not None and later.side == "close" and not later.measures  # a mark that needs this one to open
        if mark.measures and (depth[mark.kind] == 1 and alone if within else not (alone and mark.side != "close")):
            measures.append(mark)
        elif within and (mark.side != "open" or not nested):
            if mark.kind == SINGLE and open_marks[-1].kind != SINGLE:
                continue  # an apostrophe
            while (left := open_marks.pop()).kind != mark.kind:
                depth[left.kind] -= 1
                unread.append(left)
            depth[mark.kind] -= 1
            if mark.measures and left.plain and not mark.plain:  # inches at the end of a text
                mark = replace(mark, start=(mark.start + mark.end) // 2)
            pairs.append((left, mark))
        elif mark.side != "close" or (mark.kind != SINGLE and prompt[mark.end : mark.end + 1].strip()):
            open_marks.append(mark)
            depth[mark.kind] += 1
        elif mark.kind != SINGLE:  # which would be an apostrophe
            unread.append(mark)
    return _Pairs(_outermost(prompt, pairs), [*unread, *open_marks], measures)


def _following(marks: Sequence[Mark]) -> list[Mark | None]:
    """The next mark of the same kind, for each mark."""
    following: list[Mark | None] = []
    last: dict[str, Mark] = {}
    for mark in reversed(marks):
        following.append(last.get(mark.kind))
        last[mark.kind] = mark
    return following[::-1]


def _outermost(prompt: str, pairs: Sequence[tuple[Mark, Mark]]) -> list[Quotation]:
    """The quotations of the pairs that stand in no other one."""
    found: list[Quotation] = []
    inner: tuple[int, int] = (0, 0)  # of the last one found, its text
    for opening, closing in sorted(pairs, key=lambda pair: pair[0].start):
        if found and opening.start < found[-1].end:
            if (opening.start, closing.end) == inner:  # two kinds of marks around one text
                inner = (opening.end, closing.start)
                found[-1] = found[-1]._replace(text=_ESCAPE.sub("", prompt[slice(*inner)]))
            continue
        inner = (opening.end, closing.start)
        found.append(Quotation(opening.start, closing.end, _ESCAPE.sub("", prompt[slice(*inner)])))
    return found


def _is_drawn(name: str) -> bool:
    return bool(_DRAWN.fullmatch(name) or _DRAWN_IN_CAMEL_CASE.fullmatch(name))


def _texts_of_json(prompt: str) -> list[str]:
    begin, finish = _JSON.search(prompt).start(), prompt.rfind("}") + 1
    if finish <= begin:  # it was cut off
        finish = len(prompt)
    around = [find_quoted_texts(prompt[:begin]), find_quoted_texts(prompt[finish:])]
    return [*around[0], *_texts_of_object(prompt[begin:finish]), *around[1]]


def _texts_of_object(prompt: str) -> list[str]:
    texts: list[str] = []
    name, drawn_depth = "", 0
    depth = end = 0
    for quotation in find_quotations(prompt):
        between = prompt[end : quotation.start]
        depth += between.count("{") - between.count("}")
        if "}" in between and depth < drawn_depth:
            drawn_depth = 0
        end = quotation.end
        if prompt[end : end + 20].lstrip().startswith(":"):
            name = quotation.text
            if _is_drawn(name):
                drawn_depth = depth + 1
            continue
        wanted = _is_drawn(name) or (drawn_depth and depth >= drawn_depth and name.lower() in _PARTS_OF_DRAWN)
        within = [found.text for found in find_quotations(quotation.text) if found.text.strip()]
        if within or (wanted and quotation.text.strip()):
            texts += within or [quotation.text]
    return texts


def without_quotations(text: str, replace=lambda quotation: " ") -> str:
    """A text with each quotation replaced by what `replace` makes of it."""
    pieces, end = [], 0
    for quotation in find_quotations(text):
        pieces += [text[end : quotation.start], replace(quotation)]
        end = quotation.end
    return "".join([*pieces, text[end:]])


def without_marks(text: str) -> str:
    """A text without its quotation marks; apostrophes, inches and feet stay."""
    pieces, end = [], 0
    for mark in find_marks(text):
        if not mark.measures:
            pieces.append(text[end : mark.start])
            end = mark.end
    return "".join([*pieces, text[end:]])
