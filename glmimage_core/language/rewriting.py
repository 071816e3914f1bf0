"""Rewriting prompts with a language model: the model's instruction, and what its answer becomes.

GLM-Image was trained on long, precise captions, and any chat model can turn a short prompt into one. Its answer is not trusted:
every quoted text of the prompt comes out as the user wrote it, whatever the model made of it.
"""

import difflib
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..quotation_marks import SINGLE, find_marks
from ..quoted import find_quotations, find_quoted_texts, is_json, without_marks, without_quotations

log = logging.getLogger(__name__)

STYLES = ("general", "portrait", "text-heavy")
LANGUAGES = ("auto", "en", "zh")
MAX_CHARACTERS = 4000  # of a rewritten prompt: three times the 200 words of 6 letters that the instruction asks for at most
SIMILARITY = 0.6  # from which a text counts as an altered copy of another: the cutoff that difflib itself takes


class Answer(NamedTuple):
    """What a language model wrote. cut_off: it reached max_tokens before it had finished."""

    text: str
    cut_off: bool = False


_IDEOGRAPH = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
_LATIN_WORD = re.compile("[A-Za-z]+")

# Taken out of an answer by `without_markup`. The lengths of a tag (40) and of an introduction (60) keep a "<" or a "sure" of a
# caption from taking half of it along.
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)|\A.*?</think>", re.DOTALL)
_TAG = re.compile(r"<\|?/?[A-Za-z_][^<>\n]{0,40}>")  # <|begin_of_box|>, </answer>
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_LINE_MARK = re.compile(  # headings, bullets, numbers of a list and quotes
    r"^\s*(?:#{1,6}\s+|[-*+\u2022]\s+|\d{1,2}[.)\u3001]\s+|>\s+)", re.MULTILINE
)
_EMPHASIS = re.compile(r"\*{1,3}|(?<!\w)_{1,3}|_{1,3}(?!\w)|`+")
_LABEL = re.compile(  # "Here is the prompt:", "Caption:" and their Chinese counterparts
    r"\A\s*(?:(?:here is|here's|sure)\b[^\n:]{0,60}:|(?:rewritten |final |image )?(?:prompt|caption|description)\s*:|"
    "(?:\u6539\u5199\u540e\u7684)?(?:\u63d0\u793a\u8bcd|\u63cf\u8ff0|\u753b\u9762\u63cf\u8ff0)\\s*[:\uff1a])\\s*",
    re.IGNORECASE,
)

_SENTENCE_END = re.compile("[.!?](?=\\s|\\Z)|[\u3002\uff01\uff1f]")


@cache
def _texts() -> dict:
    return json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))


def language_of(prompt: str) -> str:
    """zh if a prompt without its quoted texts has more ideographs than Latin words, else en."""
    plain = without_quotations(prompt)
    return "zh" if len(_IDEOGRAPH.findall(plain)) > len(_LATIN_WORD.findall(plain)) else "en"


def instruction(prompt: str, style: str = "general", language: str = "auto", *, references: int = 0) -> str:
    """The instruction for a model that will be given the prompt. references: how many pictures go along.

    Raises ValueError for an unknown style or language.
    """
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; use one of {', '.join(STYLES)}")
    _check_language(language)
    texts = _texts()[language_of(prompt) if language == "auto" else language]
    parts = [texts["task"], texts["styles"][style], *([texts["references"]] if references else []), *texts["rules"]]
    return "\n".join(parts)


def description_request(question: str = "", language: str = "auto", *, pictures: int = 1, clip: bool = False) -> str:
    """The request to describe pictures or a clip: the user's own question, or else for a caption.

    language auto is that of the question, and English without one. Raises ValueError for an unknown language.
    """
    _check_language(language)
    texts = _texts()[language_of(question) if language == "auto" else language]["describe"]
    if not question.strip():
        return texts["clip" if clip else "picture" if pictures == 1 else "pictures"]
    return question if language == "auto" else f"{question}\n{texts['answer']}"


def _check_language(language: str) -> None:
    if language not in LANGUAGES:
        raise ValueError(f"language is {language!r}; use one of {', '.join(LANGUAGES)}")


def rewritten_prompt(answer: Answer, prompt: str, style: str = "general") -> str:
    """The prompt that a model's answer gives: one paragraph without markup that holds each quoted text of `prompt` verbatim.

    A quoted text that is similar to a missing one becomes it. Those that are still missing are put into a sentence at the end.
    GLM-Image draws what stands in quotation marks, so other texts lose theirs, unless the prompt has the text without marks or
    the style is text-heavy. Without a usable answer the prompt stays as it is.
    """
    plain = cleaned(answer)
    if not plain:
        log.warning("the language model answered nothing; the prompt stays as it is")
        return prompt
    marked = _marked_texts(prompt)
    wanted, missing = Counter(text for text, _ in marked), Counter(text for text, _ in marked)
    with_marks = dict(marked)
    pieces: list[str] = []
    end = 0
    for quotation in find_quotations(plain):
        text = quotation.text
        original = _original_of(text, list(+missing))
        if original is not None:
            missing[original] -= 1
            piece = with_marks[original]
        else:
            piece = without_marks(text)
            if text in wanted or (text.strip() and (style == "text-heavy" or text in prompt)):
                piece = f'"{piece}"'
        pieces += [without_marks(plain[end : quotation.start]), piece]
        end = quotation.end
    pieces.append(without_marks(plain[end:]))
    written = _shortened("".join(pieces))
    left = wanted - Counter(find_quoted_texts(written))
    written += _sentence_with([with_marks[text] for text in left.elements()], language_of(written))
    if wanted - Counter(find_quoted_texts(written)):
        log.warning("the answer of the language model could not be combined with the quoted texts; the prompt stays as it is")
        return prompt
    return written


def cleaned(answer: Answer) -> str:
    """A model's answer without markup. An answer that was cut off ends with its last whole sentence, if it has one."""
    text = without_markup(answer.text)
    return (_whole_sentences(text) or text) if answer.cut_off else text


def without_markup(answer: str) -> str:
    """A model's answer as one paragraph without thoughts, tags, fences, headings, lists, emphasis and labels."""
    text = _THOUGHTS.sub(" ", answer)
    for pattern in (_TAG, _FENCE, _LINE_MARK):
        text = pattern.sub(" ", text)
    text = _LABEL.sub("", _EMPHASIS.sub("", text).strip())
    text = " ".join(text.split())
    whole = [quotation.text.strip() for quotation in find_quotations(text) if quotation[:2] == (0, len(text))]
    return whole[0] if whole else text


def _marked_texts(prompt: str) -> list[tuple[str, str]]:
    """The quoted texts of a prompt in order, each without and with marks: straight ones, unless the text contains one."""
    if is_json(prompt):
        return [(text, f'"{text}"') for text in find_quoted_texts(prompt)]
    return [
        (text, prompt[start:end] if '"' in text else f'"{text}"') for start, end, text in find_quotations(prompt) if text.strip()
    ]


def _original_of(text: str, missing: Sequence[str]) -> str | None:
    """The missing text that a model has copied, exactly or altered."""
    if text in missing:
        return text
    similar = difflib.get_close_matches(text.casefold(), [other.casefold() for other in missing], n=1, cutoff=SIMILARITY)
    return next((other for other in missing if other.casefold() in similar), None)


def _whole_sentences(text: str) -> str:
    """The text up to the end of its last sentence, "" without one. No sentence ends within a quoted text."""
    plain = without_quotations(text, lambda quotation: "_" * (quotation.end - quotation.start))
    torn = (mark.start for mark in find_marks(plain) if mark.kind != SINGLE and not mark.measures)
    plain = plain[: next(torn, None)]  # before a quoted text that was cut off
    ends = [match.end() for match in _SENTENCE_END.finditer(plain)]
    return text[: ends[-1]] if ends else ""


def _shortened(text: str) -> str:
    """At most MAX_CHARACTERS of a text, cut at the end of a sentence in its second half or anywhere but in a quoted text."""
    if len(text) <= MAX_CHARACTERS:
        return text
    cut = text[:MAX_CHARACTERS]
    for quotation in find_quotations(text):
        if quotation.start < MAX_CHARACTERS < quotation.end:
            cut = text[: quotation.start]
    whole = _whole_sentences(cut)
    return (whole if len(whole) > len(cut) // 2 else cut).rstrip()


def _sentence_with(marked: Sequence[str], language: str) -> str:
    if not marked:
        return ""
    texts = _texts()[language]
    return " " + texts["put back"].format(texts=texts["between"].join(marked))
