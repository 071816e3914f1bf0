"""Files that are named by a prefix and a number, as ComfyUI names what it saves: prefix_00001_.png."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from .names import check_names, inside


def stem_of(folder: Path, prefix: str) -> Path:
    """What the names of a prefix's files begin with.

    A backslash parts folders, as on Windows. Raises ValueError for a prefix that leaves the folder or is all of it, and for a
    name that not every system can write.
    """
    prefix = prefix.replace("\\", "/")
    check_names(f"{prefix}_00001_.png")  # what follows makes a name of `CON` and of `end.`
    stem = inside(folder, prefix)
    if stem == folder.resolve():
        raise ValueError(f"{prefix!r} is the folder {folder} itself, and names no file in it")
    return stem


def expanded(prefix: str, width: int, height: int) -> str:
    """ComfyUI's placeholders: %width% and %height% of the picture, %year% to %second% of the clock."""
    now = time.localtime()
    values = {"width": width, "height": height, "year": now.tm_year, "month": f"{now.tm_mon:02}", "day": f"{now.tm_mday:02}"}
    values |= {"hour": f"{now.tm_hour:02}", "minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}"}
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", str(value))
    return prefix


def write_numbered(stem: Path, suffix: str, write: Callable[[Path], object]) -> Path:
    """Have stem_00001_.png written, with the first number above all that are there, whole or not at all: a kill leaves a .part.

    suffix: such as .png. write: is called with the path to write to. Returns the file. Raises OSError that names it.
    """
    part = stem.with_name(f"{uuid4().hex}.part")  # shorter than most names, so that the longest of them can be written
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        return _named(part, stem, suffix)
    except OSError as error:
        raise OSError(f"could not write {stem}_00001_{suffix}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _named(part: Path, stem: Path, suffix: str) -> Path:
    """Give a finished file the next free name, which another process cannot take at the same time."""
    pattern = re.compile(rf"{re.escape(stem.name)}_(\d+)_.*")
    while True:
        taken = [int(match[1]) for file in stem.parent.iterdir() if (match := pattern.fullmatch(file.name))]
        path = stem.with_name(f"{stem.name}_{max(taken, default=0) + 1:05}_{suffix}")
        try:
            os.link(part, path)  # a second name, unless there is such a file
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                continue
            part.replace(path)
        return path
