"""What the front end resolves in texts when it queues a graph: choices and comments in prompts, names in file names."""

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import WorkflowError

MOST_NESTED = 100  # choices within choices
_COMMENT = re.compile(r"/\*[\s\S]*?\*/|//[^\n\r\u2028\u2029]*")
_DATE_PARTS = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
_NO_FILE_NAME = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')


def dynamic_prompt(text: str, seed: str) -> str:
    """A prompt with one of each {a|b} chosen, without // and /* */ comments; a backslash before {, } or | keeps it.

    The front end chooses anew at every run. Here equal seeds choose the same. Raises WorkflowError for choices nested too deep.
    """
    return _choose(text, random.Random(seed), depth=0)


def _choose(text: str, generator: random.Random, depth: int) -> str:
    if depth > MOST_NESTED:
        raise WorkflowError(f"choices {{a|b}} are nested more than {MOST_NESTED} deep")
    text, chosen, at = _COMMENT.sub("", text), [], 0
    while at < len(text):
        if text[at] == "{":
            options, at = _options(text, at + 1)
            chosen.append(_choose(generator.choice(options), generator, depth + 1))
        else:
            step = 2 if text[at] == "\\" else 1
            chosen.append(text[at : at + step])
            at += step
    return re.sub(r"\\([{}|])", r"\1", "".join(chosen))


def _options(text: str, begin: int) -> tuple[list[str], int]:
    """The choices of a block that begins behind its brace, and the place behind its end, which may be missing."""
    options, depth, at, option = [], 0, begin, begin
    while at < len(text) and (text[at] != "}" or depth):
        if text[at] == "|" and not depth:
            options.append(text[option:at])
            option = at + 1
        depth += (text[at] == "{") - (text[at] == "}")
        at += 2 if text[at] == "\\" else 1
    return [*options, text[option:at]], at + 1


class NamedWidgets:
    """The widgets of a whole file, subgraphs included, as %NODE.input% names them in the name of a file.

    nodes: for each node in order: its name for search and replace, its title, and what gives its widgets.
    """

    def __init__(self, nodes: Sequence[tuple[str, str | None, Callable[[], Mapping[str, Any]]]]):
        self._nodes = nodes

    def replaced(self, text: str, now: time.struct_time) -> str:
        """A file name prefix with %date:yyyy-MM-dd% and %NODE.input% replaced. What names nothing stays as it is."""
        return re.sub("%([^%]+)%", lambda match: self._replacement(match, now), text)

    def _replacement(self, match: re.Match, now: time.struct_time) -> str:
        name, *rest = match[1].split(".")
        if len(rest) != 1:
            return _date(name.removeprefix("date:"), now) if name.startswith("date:") else match[0]
        named = [widgets for search, _, widgets in self._nodes if search == name]
        titled = [widgets for _, title, widgets in self._nodes if title == name]
        widgets = next((widgets() for widgets in named + titled), {})
        return _NO_FILE_NAME.sub("_", _shown(widgets[rest[0]])) if rest[0] in widgets else match[0]


def _date(pattern: str, now: time.struct_time) -> str:
    values = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def part(match: re.Match) -> str:
        letters = match[0]
        if letters[0] == "y":
            return {"yyyy": f"{now.tm_year}", "yy": f"{now.tm_year}"[2:]}.get(letters, letters)
        return f"{values[letters[0]]:0{len(letters)}}"

    return _DATE_PARTS.sub(part, pattern)


def _shown(value: Any) -> str:
    """A value as JavaScript writes it in a text."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
    return str(value)
