"""Folders of models: diffusers' layout, and finding one below some roots."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any, NamedTuple

from ..json_text import parse_json

PIPELINE_INDEX = "model_index.json"
FOLDER_LEVELS = 5  # how deep below a root checkpoints are looked for
KEPT_FOLDERS = 2**14  # whose entries are remembered; a walk over more would read all of them again
COARSEST_MTIME_NS = 2 * 10**9  # FAT writes times in steps of two seconds


def is_pipeline(folder: Path, class_name: str) -> bool:
    """Whether the folder's model_index.json names that pipeline of diffusers. A file that cannot be read names none."""
    return glance_at(folder / PIPELINE_INDEX).get("_class_name") == class_name


def glance_at(file: Path) -> Mapping[str, Any]:
    """The object in a JSON file, for a listing: read once as long as the file does not change, empty where it cannot be read."""
    try:
        return _glanced(file, *stamp(file))
    except OSError:
        return {}


@lru_cache(maxsize=4096)
def _glanced(file: Path, *stamp: int) -> Mapping[str, Any]:
    try:
        return MappingProxyType(read_json(file))
    except (OSError, ValueError):
        return {}


def find_named(name: str, found: Mapping[str, Path], roots: Iterable[Path], *, what: str, layout: str) -> Path:
    """The folder of that name among those found below the roots.

    Raises FileNotFoundError that says what was looked for, where, what is there instead, and the layout that it should have.
    """
    if name in found:
        return found[name]
    looked = ", ".join(map(str, roots)) or "no folder at all"
    others = f"; found there: {', '.join(found)}" if found else ""
    raise FileNotFoundError(f"no {what} {name!r} in {looked}{others}; {layout}")


def find_below(roots: Iterable[Path], is_wanted: Callable[[Path, list[str]], bool]) -> dict[str, Path]:
    """The wanted folders below the roots, by their paths relative to their roots with forward slashes, sorted by name.

    is_wanted gets a folder and the names of its files. The first root wins where two hold the same name. Linked folders are
    followed, unless they lead back up; a wanted folder or a pipeline of diffusers is not searched for others.
    """
    found: dict[str, Path] = {}
    for root in roots:
        for folder, subfolders, files in walk(root):
            wanted = is_wanted(folder, files)
            if wanted:
                found.setdefault(folder.relative_to(root).as_posix(), folder)
            if wanted or PIPELINE_INDEX in files:
                subfolders.clear()
    return dict(sorted(found.items()))


def find_pipelines(roots: Iterable[Path], class_name: str) -> dict[str, Path]:
    """The folders below the roots whose model_index.json names that pipeline of diffusers, by name as `find_below`."""
    return find_below(roots, lambda folder, files: PIPELINE_INDEX in files and is_pipeline(folder, class_name))


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """The folders below a root down to FOLDER_LEVELS, the nearest first: path, names of its folders, names of its files, sorted.

    Remove names of folders to skip these. Linked folders are followed, unless they lead back up; what lies below them is walked
    through one link only, so that links in circles end. Folders that cannot be read are left out. The entries of a folder are
    remembered until its modification time says that one was added, removed or renamed: a walk over folders that stay the same
    asks for one time each.
    """
    ahead = deque([(Path(root), 0, False)])
    walked: set[tuple[int, int]] = set()
    while ahead:
        folder, level, through_link = ahead.popleft()
        try:
            status = folder.stat()
            entries = _entries(folder, status)
        except OSError:
            continue
        known = through_link and (status.st_dev, status.st_ino) in walked
        walked.add((status.st_dev, status.st_ino))
        subfolders, files, links = list(entries.folders), list(entries.files), set()
        for link in entries.links:
            if not (folder / link).is_dir():
                files.append(link)
            elif not folder.resolve().is_relative_to((folder / link).resolve()):
                links.add(link)
        subfolders = [] if known or level == FOLDER_LEVELS else sorted([*subfolders, *links])
        yield folder, subfolders, sorted(files)
        ahead += ((folder / name, level + 1, through_link or name in links) for name in subfolders)


class Entries(NamedTuple):
    """The names in a folder. A link is looked up at every walk, since its target can change without the folder."""

    folders: tuple[str, ...]
    files: tuple[str, ...]
    links: tuple[str, ...]


def _entries(folder: Path, status: os.stat_result) -> Entries:
    """The entries of a folder, read again when its modification time has changed. Raises OSError where that fails."""
    if time.time_ns() - status.st_mtime_ns < COARSEST_MTIME_NS:
        return _scan(folder)  # another change now could leave this modification time as it is
    return _remembered(folder, status.st_dev, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=KEPT_FOLDERS)
def _remembered(folder: Path, *stamp: int) -> Entries:
    return _scan(folder)


def _scan(folder: Path) -> Entries:
    folders, files, links = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            # On Windows a junction is a link too; Python tells since 3.12.
            if entry.is_symlink() or getattr(entry, "is_junction", bool)():
                links.append(entry.name)
            else:
                (folders if entry.is_dir() else files).append(entry.name)
    return Entries(tuple(folders), tuple(files), tuple(links))


def check_empty(folder: Path) -> None:
    """Raise ValueError for a folder that holds anything, and for a file in its place."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that the libraries will read: the shards that an index names, or the one file.

    Raises ValueError for an index that names no files, or files outside the folder.
    """
    for stem in ("model", "diffusion_pytorch_model"):  # transformers' name, diffusers' name
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return [folder / shard for shard in _shards(index)]
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    return []


def _shards(index: Path) -> list[str]:
    """The names of the files in an index, sorted."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map, which says in which file each tensor is")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or shard != PureWindowsPath(shard).name or shard in ("", ".", ".."):
            raise ValueError(f"{index} has {tensor} in {shard!r}, which is no file of its folder")
    return sorted(set(weight_map.values()))


def stamp(file: Path) -> tuple[int, int]:
    """What changes when a file does, without reading it: its modification time in ns, and its bytes. Raises OSError."""
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def read_json(file: Path) -> dict:
    """The object in a JSON file. Raises FileNotFoundError or ValueError that names the file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not understood: it holds no object")
    return content
