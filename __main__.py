"""`python . COMMAND`: makes this folder a package and hands over to the command line."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def register_pack(name: str = "glm_image_pack") -> ModuleType:
    """Make this folder a package of a name of our choice: its own may hold characters no package may have.

    `__init__.py` is not run, so importing a module of the pack imports what that module needs and no node.
    """
    root = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(name, root / "__init__.py", submodule_search_locations=[str(root)])
    sys.modules[name] = pack = importlib.util.module_from_spec(spec)
    return pack


def load_pack(name: str = "glm_image_pack") -> ModuleType:
    """Import this folder as ComfyUI does, with all nodes."""
    pack = register_pack(name)
    pack.__spec__.loader.exec_module(pack)
    return pack


if __name__ == "__main__":
    register_pack()
    sys.exit(importlib.import_module("glm_image_pack.cli.main").main(sys.argv[1:]))
