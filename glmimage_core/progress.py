"""The callback that every long loop reports to, and through which a user stops it."""

from collections.abc import Callable
from typing import Protocol

from PIL import Image


class Progress(Protocol):
    """Called with done = 0 before the first step, and with the number of finished steps after each one.

    A loop over tokens may report every few tokens instead of each. The last call has done = total, unless a model ends its
    answer early. Whatever the callback raises stops the loop and reaches the caller.
    """

    def __call__(self, done: int, total: int, preview: Callable[[], Image.Image] | None = None) -> None:
        """preview draws the unfinished result. It takes a little time, so a callback need not call it at every step."""


def no_progress(done: int, total: int, preview: Callable[[], Image.Image] | None = None) -> None:
    """Shows nothing and never stops a loop."""
