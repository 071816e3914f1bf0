"""Rewriting prompts with a language model: what it is told, and what becomes of its answer.

GLM-Image was trained on long, precise captions. Any chat model can turn a short prompt into one; what it answers is not trusted:
every text to be drawn comes out as the user wrote it, whatever the model made of it.
"""

import difflib
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..quoted import QUOTED, find_quoted_texts, quoted_text

log = logging.getLogger(__name__)

KINDS = ("general", "portrait", "text-heavy")
LANGUAGES = ("auto", "en", "zh")
LONGEST = 4000  # characters of a rewritten prompt
ALIKE = 0.6  # of difflib's ratio: a text that is that like a missing one was meant to be it

_IDEOGRAPH = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
_LATIN_WORD = re.compile("[A-Za-z]+")
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)|\A.*?</think>", re.DOTALL)
_TAG = re.compile(r"<\|?/?[A-Za-z_][^<>\n]{0,40}>")
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_LINE_MARK = re.compile(r"^\s*(?:#{1,6}\s+|[-*+\u2022]\s+|\d{1,2}[.)\u3001]\s+|>\s+)", re.MULTILINE)
_LABEL = re.compile(
    r"\A\s*(?:(?:here is|here's|sure)\b[^\n:]{0,60}:|(?:rewritten |final |image )?(?:prompt|caption|description)\s*:|"
    "(?:\u6539\u5199\u540e\u7684)?(?:\u63d0\u793a\u8bcd|\u63cf\u8ff0|\u753b\u9762\u63cf\u8ff0)\\s*[:\uff1a])\\s*",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"\*{1,3}|(?<!\w)_{1,3}|_{1,3}(?!\w)|`+")
_MARKS = re.compile("[\"\u201c\u201d\u201e\u300c\u300d\u300e\u300f\u00ab\u00bb\u2018]|(?<!\\w)['\u2019]|['\u2019](?!\\w)")
_SENTENCE_END = re.compile("[.!?](?=\\s|\\Z)|[\u3002\uff01\uff1f]")


@cache
def _texts() -> dict:
    return json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))


def language_of(prompt: str) -> str:
    """zh where a prompt, its quoted texts aside, has more ideographs than words of Latin letters; else en."""
    plain = QUOTED.sub(" ", prompt)
    return "zh" if len(_IDEOGRAPH.findall(plain)) > len(_LATIN_WORD.findall(plain)) else "en"


def instruction(prompt: str, kind: str = "general", language: str = "auto", references: int = 0) -> str:
    """What a chat model is told before it is given the prompt. Raises ValueError for an unknown kind or language."""
    if kind not in KINDS or language not in LANGUAGES:
        raise ValueError(f"kind is {kind!r} and language {language!r}; there are {', '.join(KINDS)} and {', '.join(LANGUAGES)}")
    said = _texts()[language_of(prompt) if language == "auto" else language]
    parts = [said["task"], said["kinds"][kind], *([said["references"]] if references else []), *said["rules"]]
    return "\n".join(parts)


def description_request(wanted: str = "", language: str = "auto", pictures: int = 1, clip: bool = False) -> str:
    """What a model that sees is asked about pictures or a clip: what the user wants of it, or else a caption.

    language auto is that of `wanted`, and English without any. Raises ValueError for an unknown one.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language is {language!r}; there are {', '.join(LANGUAGES)}")
    said = _texts()[language_of(wanted) if language == "auto" else language]["describe"]
    if not wanted.strip():
        return said["clip" if clip else "picture" if pictures == 1 else "pictures"]
    return wanted if language == "auto" else f"{wanted}\n{said['answer']}"


def checked(answer: str, prompt: str, kind: str = "general") -> str:
    """A model's answer as a prompt: one paragraph without markup, every quoted text of `prompt` in it verbatim.

    A text in quotation marks that is like a missing one becomes it; what is still missing is said in a sentence at the end. Other
    texts keep their marks only where the prompt has them without marks, or where the kind is text-heavy: what is in quotation
    marks is drawn. An answer with nothing in it leaves the prompt as it is.
    """
    plain = without_markup(answer)
    if not plain:
        log.warning("the language model answered nothing; the prompt stays as it is")
        return prompt
    wanted = _marked_texts(prompt)
    missing = Counter(text for text, _ in wanted)
    pieces: list[str] = []
    end = 0
    for match in QUOTED.finditer(plain):
        pieces += [_MARKS.sub("", plain[end : match.start()]), _kept(match, prompt, wanted, missing, kind)]
        end = match.end()
    pieces.append(_MARKS.sub("", plain[end:]))
    written = _shortened(pieces)
    asked, marks = Counter(text for text, _ in wanted), dict(wanted)
    left = asked - Counter(find_quoted_texts(written))
    written += _put_back([marks[text] for text in left.elements()], language_of(written))
    if asked - Counter(find_quoted_texts(written)):
        log.warning("the texts to be drawn could not be kept in what the language model wrote; the prompt stays as it is")
        return prompt
    return written


def without_markup(answer: str) -> str:
    """A model's answer without its thoughts, tags, fences, headings, lists, emphasis and labels, as one paragraph."""
    text = _THOUGHTS.sub(" ", answer)
    for pattern in (_TAG, _FENCE, _LINE_MARK):
        text = pattern.sub(" ", text)
    text = _LABEL.sub("", _EMPHASIS.sub("", text).strip())
    text = " ".join(text.split())
    whole = QUOTED.fullmatch(text)
    return quoted_text(whole).strip() if whole else text


def _marked_texts(prompt: str) -> list[tuple[str, str]]:
    """The texts to be drawn of a prompt, in order, each with marks around it too: straight ones where it holds none itself."""
    return [
        (text, match[0] if '"' in text else f'"{text}"')
        for match in QUOTED.finditer(prompt)
        if (text := quoted_text(match)).strip()
    ]


def _kept(match: re.Match, prompt: str, wanted: Sequence[tuple[str, str]], missing: Counter, kind: str) -> str:
    """What stands where a model put something in quotation marks. Takes from `missing` what is there."""
    text = quoted_text(match)
    marks = dict(wanted)
    if missing[text] > 0:
        missing[text] -= 1
        return marks[text]
    candidates = [other for other, count in missing.items() if count > 0]
    meant = difflib.get_close_matches(text.casefold(), [other.casefold() for other in candidates], 1, ALIKE)
    if meant:
        original = next(other for other in candidates if other.casefold() == meant[0])
        missing[original] -= 1
        return marks[original]
    if text in marks or (text.strip() and (kind == "text-heavy" or text in prompt)):
        return f'"{_MARKS.sub("", text)}"'
    return _MARKS.sub("", text)


def _shortened(pieces: Sequence[str]) -> str:
    """At most LONGEST characters, to the end of a sentence where there is one, never within a quoted text."""
    written = "".join(pieces)
    if len(written) <= LONGEST:
        return written
    cut = written[:LONGEST]
    for match in QUOTED.finditer(written):
        if match.start() < LONGEST < match.end():
            cut = written[: match.start()]
    ends = [end for match in _SENTENCE_END.finditer(cut) if (end := match.end()) > len(cut) // 2]
    return (cut[: ends[-1]] if ends else cut).rstrip()


def _put_back(marked: Sequence[str], language: str) -> str:
    if not marked:
        return ""
    said = _texts()[language]
    return " " + said["put back"].format(texts=said["between"].join(marked))
