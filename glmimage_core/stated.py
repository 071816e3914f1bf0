"""What others' words become before a user reads them: the reason in an error, without secrets and without control codes."""

from itertools import groupby
from operator import itemgetter
from typing import Any
from unicodedata import category
from urllib.parse import quote

REASON_CHARACTERS = 1000  # of a reason; more of it says nothing more
MOST_REASONS = 5  # of a list, such as one for each field of a request
SECRET_PART = 8  # characters in a row that give a part of a key away
LEAST_OF_SECRET = 4  # characters of its beginning that do so at the end of a text
OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of characters that control what displays them
_NAMES = (
    "message",
    "msg",
    "error_message",
    "error_description",
    "error_msg",
    "reason",
    "detail",
    "details",
    "errors",
    "title",
    "error",
)


def stated_reason(answer: Any) -> str:
    """The reason that an error answer states, "" where it states none.

    OpenAI's protocol has it in error.message. Others have error, message or detail, as a text, an object or a list of objects, in
    which FastAPI also says the field: "body.seed: Extra inputs are not permitted".
    """
    return " ".join(_reason(answer, depth=4).split())[:REASON_CHARACTERS]


def _reason(answer: Any, *, depth: int) -> str:
    if isinstance(answer, str) or depth == 0:
        return answer if isinstance(answer, str) else ""
    if isinstance(answer, list):
        return "; ".join(filter(None, (_reason(item, depth=depth - 1) for item in answer[:MOST_REASONS])))
    if not isinstance(answer, dict):
        return ""
    if isinstance(answer.get("error"), dict | list) and (reason := _reason(answer["error"], depth=depth - 1)):
        return reason
    reason = next(filter(None, (_reason(answer[name], depth=depth - 1) for name in _NAMES if name in answer)), "")
    where = answer.get("loc")
    if reason and isinstance(where, list):
        return f"{'.'.join(str(part) for part in where[:6])}: {reason}"
    return reason


def without_secret(text: str, secret: str) -> str:
    """A text in which no part of a secret is left: as it is, percent-encoded, escaped, or cut off at the end of the text."""
    hidden = [False] * len(text)
    for form in {secret, quote(secret, safe=""), repr(secret)[1:-1], secret.replace("/", "\\/")} if secret else ():
        length = min(SECRET_PART, len(form))
        parts = {form[start : start + length] for start in range(len(form) - length + 1)}
        for place in range(len(text) - length + 1):
            if text[place : place + length] in parts:
                hidden[place : place + length] = [True] * length
        for length in range(LEAST_OF_SECRET, len(form)):
            if text.endswith(form[:length]):
                hidden[-length:] = [True] * length
    runs = groupby(zip(text, hidden, strict=True), key=itemgetter(1))
    return "".join("***" if is_hidden else "".join(character for character, _ in run) for is_hidden, run in runs)


def visible(text: str) -> str:
    """A text on one line, in which control characters are shown, not obeyed."""
    return escaped(" ".join(text.split()))


def escaped(text: str) -> str:
    """A text in which nothing obeys: a terminal takes escape sequences and direction marks as commands."""
    if text.isprintable():
        return text
    return "".join(char.encode("unicode_escape").decode() if category(char) in OBEYED else char for char in text)
