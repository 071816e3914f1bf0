"""The version of the pack."""

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
