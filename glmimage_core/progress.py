"""The callback that every long loop reports to, and through which a user stops it."""

from collections.abc import Callable
from typing import Protocol

from PIL import Image


class Progress(Protocol):
    """Called after each step and after each token or every few. Whatever it raises stops the loop and reaches the caller."""

    def __call__(self, done: int, total: int, preview: Callable[[], Image.Image] | None = None) -> None:
        """preview draws what there is so far; calling it costs a little time, so not everyone does each time."""


def no_progress(done: int, total: int, preview: Callable[[], Image.Image] | None = None) -> None:
    """Shows nothing and never stops a loop."""
