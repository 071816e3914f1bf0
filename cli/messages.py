"""Words of others on a terminal: titles, values and answers come from files and servers, and may hold anything."""

import logging

from ..glmimage_core.stated import escaped

MOST = 1200  # characters of one message; names of models and choices fit, a pasted file does not
TAIL = 300  # of them, how many are of the end, where the cause stands


def one_line(text: str) -> str:
    """A message in one line: white space joined, control and direction characters shown as escapes, a long middle left out."""
    text = " ".join(escaped(word) for word in text.split())
    if len(text) > MOST:
        left_out = len(text) - MOST
        text = f"{text[: MOST - TAIL]} ... ({left_out:,} characters left out) ... {text[-TAIL:]}"
    return text


class MessageFormatter(logging.Formatter):
    """A record of the log in one line; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        line = one_line(f"{record.levelname}: {record.getMessage()}")
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "\n" + "\n".join(map(escaped, trace.splitlines()))
        return line
