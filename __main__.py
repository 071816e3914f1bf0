"""`python . COMMAND`: loads this folder as a package, as ComfyUI does, and hands over to the command line."""

import importlib
import importlib.util
import sys
from pathlib import Path


def load_pack(name: str = "glm_image_pack"):
    """Import this folder as a package of a name of our choice: its own may hold characters no package may have."""
    root = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(name, root / "__init__.py", submodule_search_locations=[str(root)])
    sys.modules[name] = pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    return pack


if __name__ == "__main__":
    load_pack()
    sys.exit(importlib.import_module("glm_image_pack.cli.main").main(sys.argv[1:]))
