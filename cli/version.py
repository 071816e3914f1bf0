"""The versions of the pack and of what it uses."""

import importlib.metadata
import re
from pathlib import Path

NAME = "comfyui-glm-image"
PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def pack_version() -> str:
    """The version in pyproject.toml; without that file, as after `pip install`, the one in the package's metadata."""
    if PROJECT.is_file():
        # The standard library reads TOML since Python 3.11, and the pack runs on 3.10.
        return re.search(r'^version = "(.+)"$', PROJECT.read_text("utf-8"), re.MULTILINE)[1]
    return importlib.metadata.version(NAME)


def version_of(package: str) -> str | None:
    """The version of an installed package, by the name that pip has for it; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
