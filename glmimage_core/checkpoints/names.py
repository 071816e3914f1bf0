"""File names that every system can write. A workflow travels, so what Windows cannot write is refused everywhere."""

import re
from pathlib import Path

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[1-9\xb9\xb2\xb3]) *(\..*)?", re.IGNORECASE | re.DOTALL)
_CHARACTERS = re.compile(r'[\x00-\x1f<>:"|?*]')


def check_names(path: str) -> None:
    """Raise ValueError where a folder or the file of a path has a name that Windows reserves, or cannot write."""
    for name in re.split(r"[/\\]", path):
        if found := _CHARACTERS.search(name):
            raise ValueError(f"{path!r} holds {found[0]!r}, which no file name may hold on Windows")
        if _RESERVED.fullmatch(name):
            raise ValueError(f"{path!r}: Windows keeps the name {name!r} for a device; choose another")
        if name not in (".", "..") and name.endswith((".", " ")):
            raise ValueError(f"{path!r}: on Windows no name may end with a dot or a space, as {name!r} does")


def inside(folder: Path, name: str) -> Path:
    """folder / name. Raises ValueError for a name that leaves the folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leaves the folder {folder}")
    return path
