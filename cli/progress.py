"""Progress on standard error: a bar on a terminal, a line every few seconds in a log."""

import sys
from contextlib import AbstractContextManager, nullcontext

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LOG_EVERY = 10.0  # seconds


class LogBar(tqdm):
    """tqdm for a log, where a bar cannot be drawn over: the first line after LOG_EVERY seconds, and one at the end."""

    def __init__(self, **options):
        self._written = None  # the count in the last line
        bar = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"
        super().__init__(**options, mininterval=LOG_EVERY, delay=LOG_EVERY, leave=False, smoothing=0, bar_format=bar)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:  # an empty one would clear the bar
            self._written = self.n
            print(self, file=self.fp, flush=True)

    def close(self) -> None:
        if not self.disable and self._written != self.n:
            self.display()
        super().close()


def progress_bar(label: str, total: int, initial: int = 0) -> tqdm:
    """A bar for `total` steps, of which `initial` are done. Close it, or use it as a context, before anything is printed."""
    if sys.stderr.isatty():
        return tqdm(desc=label, total=total, initial=initial, file=sys.stderr, dynamic_ncols=True)
    return LogBar(desc=label, total=total, initial=initial, file=sys.stderr)


class StageProgress:
    """The standalone host's on_progress: a bar for each stage, closed when the stage is complete."""

    def __init__(self):
        self._stage: tuple[str, int] | None = None
        self._bar: tqdm | None = None

    def __call__(self, label: str, done: int, total: int) -> None:
        if self._bar is None or self._stage != (label, total) or done < self._bar.n:
            self.close()
            self._stage, self._bar = (label, total), progress_bar(label, total, initial=done)
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        """End the line of a stage that stopped early."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def quiet_libraries() -> None:
    """Switch off the loading bars of transformers and diffusers, which would mix with ours."""
    try:
        import diffusers
        import transformers
    except ImportError:
        return  # the command that needs them says so
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()


def logging_beside_bars() -> AbstractContextManager:
    """While it is entered, a message of the log stands above a bar on a terminal, not in it."""
    return logging_redirect_tqdm() if sys.stderr.isatty() else nullcontext()
