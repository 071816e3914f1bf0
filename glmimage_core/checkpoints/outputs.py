"""Files and folders that are written whole or not at all, and told before the work where they cannot be."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .folders import check_empty


def check_writable(path: Path) -> None:
    """Raise OSError where a file or folder of that path could not be made or changed. Makes nothing."""
    path = path.absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    for part in path.relative_to(there).parts:
        (there / part).exists()  # raises OSError for a name that is too long
    if there != path and not there.is_dir():
        raise NotADirectoryError(f"{path} cannot be made: {there} is no folder")
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise PermissionError(f"{there} may not be written")


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold a lock file for as long as a with block runs; the system lets it go when the process ends.

    Raises ValueError where another process holds it.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise ValueError(f"another command is writing to {lock.parent}; wait for it") from error


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` to write into, which becomes it when the with block has run. What an earlier kill left there goes.

    Raises ValueError for a target that holds anything, OSError for one that cannot be made.
    """
    target = target.absolute()
    check_empty(target)
    check_writable(target)
    unfinished = target.with_name(f".{target.name}.unfinished")
    check_writable(unfinished)
    target.parent.mkdir(parents=True, exist_ok=True)
    with only_one(target.with_name(f".{target.name}.lock")):
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        try:
            yield unfinished
            if target.exists():  # empty
                target.rmdir()
            unfinished.rename(target)
        except BaseException:
            shutil.rmtree(unfinished)
            raise
