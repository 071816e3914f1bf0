"""JSON that others wrote."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text. Raises ValueError for other text, also where it is nested deeper than the parser goes.

    Bytes may be UTF-8 or UTF-16 with a mark in front, as Windows' editors and shells write them.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
