"""Folders of models: diffusers' layout, and finding one below some roots."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

PIPELINE_INDEX = "model_index.json"
FOLDER_LEVELS = 5  # how deep below a root checkpoints are looked for


def is_pipeline(folder: Path, class_name: str) -> bool:
    """Whether the folder's model_index.json names that pipeline of diffusers. One that cannot be read names none."""
    try:
        return read_json(folder / PIPELINE_INDEX).get("_class_name") == class_name
    except (OSError, ValueError):
        return False


def find_named(name: str, found: Mapping[str, Path], roots: Iterable[Path], what: str, layout: str) -> Path:
    """The folder of that name among those found below the roots. Raises FileNotFoundError that says where was looked for what."""
    if name in found:
        return found[name]
    looked = ", ".join(map(str, roots)) or "no folder at all"
    there = f"; found there: {', '.join(found)}" if found else ""
    raise FileNotFoundError(f"no {what} {name!r} in {looked}{there}; {layout}")


def find_below(roots: Iterable[Path], wanted: Callable[[Path, list[str]], bool]) -> dict[str, Path]:
    """The wanted folders below the roots, by their paths relative to their roots with forward slashes, sorted by name.

    wanted is asked with a folder and the names of its files. The first root wins where two hold the same name. Linked folders
    are followed, unless they lead back up; a wanted folder or a pipeline of diffusers is not searched for others.
    """
    found: dict[str, Path] = {}
    for root in roots:
        for folder, below, files in walk(root):
            is_wanted = wanted(folder, files)
            if is_wanted:
                found.setdefault(folder.relative_to(root).as_posix(), folder)
            if is_wanted or PIPELINE_INDEX in files:
                below.clear()
    return dict(sorted(found.items()))


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """The folders below a root down to FOLDER_LEVELS: path, names of folders in it (take out those to skip), names of files.

    Linked folders are followed, unless they lead back up.
    """
    for folder, below, files in os.walk(root, followlinks=True):
        path = Path(folder)
        below[:] = sorted(name for name in below if not path.resolve().is_relative_to((path / name).resolve()))
        if len(path.relative_to(root).parts) >= FOLDER_LEVELS:
            below.clear()
        yield path, below, files


def check_empty(folder: Path) -> None:
    """Raise ValueError for a folder that holds anything."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that the libraries will read: the shards that an index names, or the one file."""
    for stem in ("model", "diffusion_pytorch_model"):  # transformers' name, diffusers' name
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return [folder / shard for shard in sorted(set(read_json(index).get("weight_map", {}).values()))]
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    return []


def read_json(file: Path) -> dict:
    """The object in a JSON file. Raises FileNotFoundError or ValueError that names the file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds no object")
    return content
