"""Which characters of a text may be quotation marks, and what the characters beside each say about it.

Keyboards, languages and files disagree about quotation marks, and the same characters are apostrophes, feet and inches. A mark
is judged by its place, as a reader does: after a space it opens, before a space or a full stop it closes, after a number it
measures.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

# Marks of one kind pair with each other whatever their shape: people mix straight and curly ones, and languages use them in
# different directions. Each kind: marks that open, marks that close, marks that do either.
DOUBLE, SINGLE, ANGLE, SINGLE_ANGLE = "double", "single", "angle", "single angle"
KINDS = {
    DOUBLE: ("\u201c\u201e\u201f\u301d\u275d", "\u201d\u301e\u301f\u275e", '"\uff02\u2033\u2036\u02ba\u05f4'),
    SINGLE: ("\u2018\u201a\u201b\u275b", "\u2019\u275c\u02bc", "'\uff07\u2032\u2035\u00b4`"),
    ANGLE: ("\u00ab", "\u00bb", ""),
    SINGLE_ANGLE: ("\u2039", "\u203a", ""),
    "corner": ("\u300c\uff62\ufe41", "\u300d\uff63\ufe42", ""),
    "white corner": ("\u300e\ufe43", "\u300f\ufe44", ""),
}
ALL_MARKS = "".join("".join(sides) for sides in KINDS.values())
_KIND_OF = {mark: kind for kind, sides in KINDS.items() for mark in "".join(sides)}
_SIDE_OF = {
    mark: side for sides in KINDS.values() for marks, side in zip(sides, ("open", "close", ""), strict=True) for mark in marks
}

# Text that was copied out of JSON or a program has a backslash before a mark, out of a web page a name such as &quot;. Two
# commas are a low mark on a keyboard without one. A mark that is typed several times, as in a CSV file, is one mark.
_MARK = re.compile(
    r"(?P<escape>(?<!\\)\\*)(?:"
    r"(?P<entity>&(?:quot|apos|[lr][ds]quo|[sb][bd]quo|[lr]s?aquo|#3[49]|#x2[27]);)|"
    r"(?P<commas>,,(?=\w))|"
    rf"(?P<mark>[{re.escape(ALL_MARKS)}])(?:(?P=escape)(?P=mark))*)"
)
_APOSTROPHE = "['\u2018\u2019`\u00b4\uff07]"
# Words that begin with an apostrophe, and years and decades without their century; not where a mark follows at once.
_SHORTENED = re.compile(
    rf"{_APOSTROPHE}(?:\d\ds?|n|tis|twas|em|till?|cause|cuz|coz|bout|round|nuff|neath|ere)(?!\w|/\d)(?!{_APOSTROPHE})",
    re.IGNORECASE,
)
_CLOSING_APOSTROPHE = re.compile(rf"(?<=\S){_APOSTROPHE}(?!\w)")
_AND = re.compile(rf"(?<=\w)\s?{_APOSTROPHE}n{_APOSTROPHE}\s?(?=\w)", re.IGNORECASE)  # rock 'n' roll

_NUMBER = "0-9\u00bc-\u00be\u2150-\u215e\uff10-\uff19"
_AFTER_NUMBER = re.compile(rf"[{_NUMBER}]$")
_CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f"  # scripts without spaces and apostrophes between words
_IN_WORD = re.compile(rf"[^\W{_CJK}]")
_HEBREW = re.compile("[\u05d0-\u05ea]")  # between two letters, a double mark is part of an abbreviation
# What stands before a mark that opens, and behind one that closes.
_OPENING_PLACE = re.compile(r"[\s(\[{<\uff08\u3010=]")
_CLOSING_PLACE = re.compile(r"[\s)\]}>\uff09\u3011.,;:!?\u2026\u3001\u3002\uff0c\uff01\uff1a\uff1b\uff1f]")


@dataclass(frozen=True)
class Mark:
    """A mark, or the same one typed several times, at text[start:end].

    side: open, close, or "" where neither its place nor its shape tells. measures: it stands after a number, so it may be inches
    or feet. plain: nothing but the mark was typed, once and without a backslash.
    """

    start: int
    end: int
    kind: str
    side: str
    measures: bool = False
    plain: bool = True


def find_marks(text: str) -> Iterator[Mark]:
    """The marks of a text in order, without apostrophes."""
    closings = [match.start() for match in _CLOSING_APOSTROPHE.finditer(text)]
    last = closings[-1] if closings else 0
    # With a capital letter it may be a title: 'Til Death Do Us Part'.
    shortened = [match for match in _SHORTENED.finditer(text) if not (match[0][1].isupper() and last > match.end())]
    apostrophes = {match.start() for match in shortened}
    for match in _AND.finditer(text):
        apostrophes.update(range(match.start(), match.end()))
    for match in _MARK.finditer(text):
        if match.start() in apostrophes:
            continue
        symbol = match["mark"] or ("\u201e" if match["commas"] else html.unescape(match["entity"]))
        yield from _judged(text, match, symbol)


def _judged(text: str, match: re.Match, symbol: str) -> Iterator[Mark]:
    """What a match of _MARK is by its place: a mark, two marks, or none."""
    start, end = match.span()
    length = match[0].count(symbol) if match["mark"] else 1
    before, behind = text[start - 1 : start], text[end : end + 1]
    kind, shape = _KIND_OF[symbol], _SIDE_OF[symbol]
    if kind == SINGLE and length == 1:
        opens, closes = _sides_of_single(before, behind)
        if not (opens or closes) and (before.strip() or behind.strip()) and _IN_WORD.match(before):
            return  # an apostrophe
    else:
        opens = (not before or bool(_OPENING_PLACE.match(before))) and bool(behind.strip())
        closes = bool(before.strip()) and not _OPENING_PLACE.match(before) and (not behind or bool(_CLOSING_PLACE.match(behind)))
    if kind == SINGLE and length > 1:  # two single marks are a double one
        if not (opens or closes):
            return  # and nothing between two single ones
        kind = DOUBLE
    if kind == DOUBLE and _HEBREW.match(before) and _HEBREW.match(behind):
        return
    if kind == DOUBLE and length == 2 and not opens and not closes:
        # The end of one text and the beginning of the next, or nothing between two marks.
        sides = ("close", "open") if before.strip() and behind.strip() else ("open", "close")
        middle = (start + end) // 2
        yield Mark(start, middle, kind, sides[0])
        yield Mark(middle, end, kind, sides[1])
        return
    side = "open" if opens else "close" if closes else shape
    measures = kind in (DOUBLE, SINGLE) and (shape != "open" or closes) and _is_after_number(text, start, behind)
    yield Mark(start, end, kind, side, measures=measures, plain=length == 1 and not match["escape"] and not match["entity"])


def _sides_of_single(before: str, behind: str) -> tuple[bool, bool]:
    """Whether a single mark opens, and whether it closes: neither within a word, where it is an apostrophe.

    Neither, too, where its place does not tell: between two characters of a script without spaces.
    """
    closes = bool(before.strip()) and not _IN_WORD.match(behind)
    opens = bool(behind.strip()) and not _IN_WORD.match(before)
    return opens and not closes, closes and not opens


def _is_after_number(text: str, place: int, behind: str) -> bool:
    """Whether a number stands right before a place; one with spaces around it counts, too, as in 12 " long."""
    if _AFTER_NUMBER.search(text[place - 1 : place]):
        return True
    return not behind.strip() and bool(re.search(rf"[{_NUMBER}] $", text[max(0, place - 2) : place]))
