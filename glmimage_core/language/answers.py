"""What language models answer, and the one caption in it: without thoughts, markup, JSON around it and further suggestions."""

import json
import re
from typing import Any, NamedTuple

from ..quotation_marks import SINGLE, find_marks
from ..quoted import find_quotations, without_quotations
from ..stated import visible


class Answer(NamedTuple):
    """What a language model wrote.

    cut_off: it reached max_tokens before it had finished. thought: it wrote thoughts apart from the text. withheld: a filter
    of the service ended the answer. refusal: what the model said in place of an answer. left_out: fields of the request that the
    service refused, without which it was asked.
    """

    text: str
    cut_off: bool = False
    thought: bool = False
    withheld: bool = False
    refusal: str = ""
    left_out: tuple[str, ...] = ()


class Caption(NamedTuple):
    """The caption in an answer, "" if there is none. suggestions: how many the model made, of which this is the first."""

    text: str
    suggestions: int = 1


# The lengths of a tag (40) and of an introduction (60) keep a "<" or a "sure" of a caption from taking half of it along.
_THOUGHT = "think|thinking|thought|thoughts|reasoning|reflection|analysis"
_THOUGHTS = re.compile(
    rf"<({_THOUGHT})>.*?(?:</\1>|\Z)|\A.*?</(?:{_THOUGHT})>|\[THINK\].*?(?:\[/THINK\]|\Z)|\u25c1think\u25b7.*?(?:\u25c1/think\u25b7|\Z)",
    re.DOTALL | re.IGNORECASE,
)
# gpt-oss writes into channels. Servers leave the marks of a channel, or take them out and leave the channels' names.
_CHANNELS = re.compile(
    r"\A\s*(?:<\|start\|>\s*assistant\s*)?"
    r"(?:<\|channel\|>\s*(?:analysis|commentary|final)\b|(?:analysis|commentary)(?=\s|[A-Z]|<\|)|assistantfinal)"
)
_FINAL = re.compile(
    r"(?:<\|channel\|>\s*|assistant\s*(?:<\|channel\|>)?\s*)final\s*(?:<\|message\|>|(?=\s|[A-Z\"'{\u201c\u4e00-\u9fff]))"
)
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
# "Option 1:", "**Prompt 2**" and their Chinese counterpart at the beginning of a line; or a number of a list.
_OPTION = re.compile(
    r"^[\s#*_>-]*(?:option|version|variant|variation|suggestion|prompt|caption|\u65b9\u6848|\u9009\u9879|\u7248\u672c)"
    r"\s*#?(?:\d{1,2}|[A-Ca-c\u4e00\u4e8c\u4e09])[\s*_]*(?:[:.)\uff1a\u3001-][\s*_]*|$)",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBER = re.compile(r"^[\s*_]*(\d{1,2})[.)\u3001]\s*", re.MULTILINE)
# How models say no. Only at the beginning of a short answer: a caption does not begin so.
_REFUSAL = re.compile(
    r"(?:i['\u2019]?m|i am)\s+(?:really |very |so )?(?:sorry|afraid|unable|not able)|(?:i )?(?:sorry|apologi[sz]e)\b|"
    r"my apologies|i\s+(?:can['\u2019]?t|cannot|can not|won['\u2019]?t|will not|must decline|decline)|"
    r"as an ai\b|unfortunately, i\b|(?:\u5f88|\u975e\u5e38)?\u62b1\u6b49|\u5bf9\u4e0d\u8d77|\u6211(?:\u65e0\u6cd5|\u4e0d\u80fd)",
    re.IGNORECASE,
)
REFUSAL_CHARACTERS = 600
SHOWN_CHARACTERS = 160  # of an answer in a remark about it
OPTION_CHARACTERS = 40  # from which an item of a numbered list is a caption of its own, and not a part of one
_CAPTION_NAMES = re.compile(
    r"(?:.*[\W_])?(?:prompt|caption|description|text|answer|output|content|result|response|\u63d0\u793a\u8bcd|\u63cf\u8ff0)",
    re.IGNORECASE,
)
_NOT_WANTED = re.compile(r"negative|original|user|system|input", re.IGNORECASE)
_TORN_JSON = re.compile(r'\A[\[{\s]*"([^"]*)"\s*:\s*"((?:[^"\\]|\\.)*)', re.DOTALL)
JSON_LEVELS = 4  # of objects within one another in which a caption is looked for
_SENTENCE_END = re.compile("[.!?](?=\\s|\\Z)|[\u3002\uff01\uff1f]")


def caption_of(answer: Answer) -> Caption:
    """The caption in an answer, as one paragraph. Of an answer that was cut off, it ends with the last whole sentence, if any."""
    text = _FENCE.sub(" ", _THOUGHTS.sub(" ", _final_channel(answer.text)))
    text = _inside_json(_LABEL.sub("", _TAG.sub(" ", text).strip()))
    text, suggestions = _first_suggestion(text)
    text = _plain(text)
    return Caption((whole_sentences(text) or text) if answer.cut_off else text, suggestions)


def is_refusal(caption: str) -> bool:
    """Whether a model says in place of a caption that it writes none."""
    return len(caption) < REFUSAL_CHARACTERS and _REFUSAL.match(caption) is not None


def remarks(answer: Answer, max_tokens: int) -> list[str]:
    """What a user should know of an answer: why it holds no caption, or only a part of one, and what to change."""
    caption, suggestions = caption_of(answer)
    said = []
    if answer.left_out:
        said.append(f"the service refuses the field {' and '.join(answer.left_out)}, so it was asked without it")
    if reason := _trouble(answer, caption, max_tokens):
        said.append(reason)
    if suggestions > 1:
        said.append(f"the model made {suggestions} suggestions, of which the first is taken")
    return said


def _trouble(answer: Answer, caption: str, max_tokens: int) -> str:
    shown = visible(answer.refusal or answer.text)[:SHOWN_CHARACTERS]
    if answer.refusal or is_refusal(caption):
        return f"the model refused: {shown!r}; change the prompt or take another model"
    if answer.withheld:
        return "a content filter of the service ended the answer; change the prompt or take another model"
    if not caption and _THOUGHTS.sub("", _final_channel(answer.text)).strip() and not answer.thought:
        return f"the answer holds no caption: {shown!r}; ask again with another seed, or take another model"
    if not caption:
        return f"the model said nothing within {max_tokens} tokens, or only thought; raise max_tokens, or switch its thinking off"
    if answer.cut_off:
        return (
            f"the model was cut off after {max_tokens} tokens; its answer ends with the last whole sentence, if there is one; "
            "raise max_tokens for all of it"
        )
    return ""


def cleaned(answer: Answer) -> str:
    """The text of `caption_of`."""
    return caption_of(answer).text


def without_markup(answer: str) -> str:
    """The caption in the text of a whole answer."""
    return cleaned(Answer(answer))


def _final_channel(text: str) -> str:
    if not _CHANNELS.match(text):
        return text
    finals = list(_FINAL.finditer(text))
    return text[finals[-1].end() :] if finals else ""


def _inside_json(text: str) -> str:
    """The caption in an answer that is JSON, "" if it holds none; another answer as it is."""
    if not text.startswith(("{", "[")):
        return text
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text)
    except (ValueError, RecursionError):
        torn = _TORN_JSON.match(text)
        if torn and _CAPTION_NAMES.fullmatch(torn[1]) and not _NOT_WANTED.search(torn[1]):
            return re.sub(r'\\(["\\/])', r"\1", torn[2]).replace("\\n", " ")
        return text
    return _caption_in(value, JSON_LEVELS)


def _caption_in(value: Any, levels: int) -> str:
    if isinstance(value, str) or levels == 0:
        return value if isinstance(value, str) else ""
    if isinstance(value, list):
        return _caption_in(value[0], levels - 1) if value else ""
    if not isinstance(value, dict):
        return ""
    wanted = [item for name, item in value.items() if _CAPTION_NAMES.fullmatch(name) and not _NOT_WANTED.search(name)]
    wanted = wanted or (list(value.values()) if len(value) == 1 else [])
    return next(filter(None, (_caption_in(item, levels - 1) for item in wanted)), "")


def _first_suggestion(text: str) -> tuple[str, int]:
    """The first of several captions that a model suggests, and how many these are."""
    named = list(_OPTION.finditer(text))
    numbered = list(_NUMBER.finditer(text))
    if len(named) > 1 or (len(named) == 1 and not text[: named[0].start()].strip()):
        return text[named[0].end() : named[1].start() if len(named) > 1 else None], len(named)
    ends = [*(match.start() for match in numbered), len(text)][1:]
    items = [text[match.end() : end].strip() for match, end in zip(numbered, ends, strict=True)]
    in_order = [match[1] for match in numbered] == [str(number) for number in range(1, len(numbered) + 1)]
    if len(items) > 1 and in_order and all(len(item) >= OPTION_CHARACTERS and _is_sentence(item) for item in items):
        return items[0], len(items)
    return text, 1


def _is_sentence(item: str) -> bool:
    """Whether an item of a list is a caption of its own: it has no name such as "Subject:" in front."""
    return not re.match(r"[\s*_]*[^\s:\uff1a]+(?: [^\s:\uff1a]+)?[\s*_]*[:\uff1a]", item)


def _plain(text: str) -> str:
    text = _LABEL.sub("", _EMPHASIS.sub("", _LINE_MARK.sub(" ", text)).strip())
    text = " ".join(text.split())
    whole = [quotation.text.strip() for quotation in find_quotations(text) if quotation[:2] == (0, len(text))]
    return whole[0] if whole else text


def whole_sentences(text: str) -> str:
    """The text up to the end of its last sentence, "" without one. No sentence ends within a quoted text."""
    plain = without_quotations(text, lambda quotation: "_" * (quotation.end - quotation.start))
    torn = (mark.start for mark in find_marks(plain) if mark.kind != SINGLE and not mark.measures)
    plain = plain[: next(torn, None)]  # before a quoted text that was cut off
    ends = [match.end() for match in _SENTENCE_END.finditer(plain)]
    return text[: ends[-1]] if ends else ""
