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

from ..quoted import find_quotations, find_quoted_texts, is_json, without_marks, without_quotations
from .answers import Answer, cleaned, is_refusal, whole_sentences

log = logging.getLogger(__name__)

STYLES = ("general", "portrait", "text-heavy")
LANGUAGES = ("auto", "en", "zh")
MAX_CHARACTERS = 4000  # of a rewritten prompt: three times the 200 words of 6 letters that the instruction asks for at most
SIMILARITY = 0.6  # from which a text counts as an altered copy of another: the cutoff that difflib itself takes


_IDEOGRAPH = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
_LATIN_WORD = re.compile("[A-Za-z]+")


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


def reading_request() -> str:
    """The request to write down the texts that a picture shows."""
    return _texts()["en"]["describe"]["read"]


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
    if not plain or is_refusal(plain):
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


def _shortened(text: str) -> str:
    """At most MAX_CHARACTERS of a text, cut at the end of a sentence in its second half or anywhere but in a quoted text."""
    if len(text) <= MAX_CHARACTERS:
        return text
    cut = text[:MAX_CHARACTERS]
    for quotation in find_quotations(text):
        if quotation.start < MAX_CHARACTERS < quotation.end:
            cut = text[: quotation.start]
    whole = whole_sentences(cut)
    return (whole if len(whole) > len(cut) // 2 else cut).rstrip()


def _sentence_with(marked: Sequence[str], language: str) -> str:
    if not marked:
        return ""
    texts = _texts()[language]
    return " " + texts["put back"].format(texts=texts["between"].join(marked))
