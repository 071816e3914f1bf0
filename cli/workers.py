"""Work in several processes of this program, which print a line for each piece that is done."""

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class WorkerError(RuntimeError):
    """A process ended with a status other than 0; it has said why on standard error."""


def lines_of(commands: Sequence[Sequence[str]]) -> Iterator[str]:
    """Run commands of this program side by side; yields the lines that they print, in the order in which they come.

    Raises WorkerError when one of them fails. Ends all of them when the caller stops early.
    """
    printed: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: a process has printed all
    processes = [
        subprocess.Popen([sys.executable, str(ROOT), *command], stdout=subprocess.PIPE, encoding="utf-8") for command in commands
    ]
    try:
        for process in processes:
            threading.Thread(target=_pass_on, args=(process, printed), daemon=True).start()
        for _ in processes:
            while (line := printed.get()) is not None:
                yield line
            if failed := [process.returncode for process in processes if process.poll()]:
                raise WorkerError(f"a process of the score ended with status {failed[0]}")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _pass_on(process: subprocess.Popen, printed: queue.SimpleQueue) -> None:
    for line in process.stdout:
        printed.put(line)
    process.wait()
    printed.put(None)
