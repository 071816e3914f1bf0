"""Ctrl+C, from the first moment on."""

import os
import signal
from types import FrameType

_IMPORTING = "<frozen importlib._bootstrap>"


def handle_interrupts() -> None:
    """Raise KeyboardInterrupt as usual, but end the process while a module is imported.

    Some libraries swallow the exception there or leave the interpreter half ended, and nothing is held yet. Where a shell has
    what runs in its background ignore interrupts, they stay ignored.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupted)


def _interrupted(_number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            os.write(2, b"\ninterrupted\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt
