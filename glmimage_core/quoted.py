"""The texts between quotation marks in a prompt."""

import re

# A single quote opens only where no letter stands before it and closes only where none follows: in "dog's" and
# "the dogs' bowl" it is an apostrophe. The other marks are unambiguous. Alternatives are tried from left to right
# through the prompt, so texts come out in the order in which they stand.
QUOTED = re.compile(
    "|".join(
        (
            r'"([^"]*)"',
            r"\u201c([^\u201c\u201d]*)\u201d",  # curly double
            r"\u201e([^\u201c\u201d\u201e]*)[\u201c\u201d]",  # low-high double
            r"\u300c([^\u300c\u300d]*)\u300d",  # corner brackets
            r"\u300e([^\u300e\u300f]*)\u300f",  # white corner brackets
            r"\u00ab([^\u00ab\u00bb]*)\u00bb",  # angle quotes
            r"\u2018((?:[^\u2018\u2019]|\u2019(?=\w))*)\u2019(?!\w)",  # curly single; \u2019 in a word is an apostrophe
            r"(?<!\w)'(?!\s)((?:[^']|'(?=\w))*)(?<!\s)'(?!\w)",  # straight single
        )
    )
)


def find_quoted_texts(prompt: str) -> list[str]:
    """The texts between quotation marks, in order, marks removed, apostrophes left alone, empty quotes skipped."""
    return [text for match in QUOTED.finditer(prompt) if (text := quoted_text(match)).strip()]


def quoted_text(match: re.Match) -> str:
    """What stands between the marks of a match of QUOTED."""
    return next(group for group in match.groups() if group is not None)
