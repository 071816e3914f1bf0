"""`python . COMMAND`: makes this folder a package and hands over to the command line."""

import importlib
import importlib.util
import os
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


def _run(arguments: list[str]) -> int:
    if sys.flags.optimize > 1:  # transformers makes classes of their docstrings, which this level leaves out
        os.environ["PYTHONOPTIMIZE"] = "1"
        os.execv(sys.executable, [sys.executable, str(Path(__file__).parent), *arguments])
    register_pack()
    importlib.import_module("glm_image_pack.cli.interrupts").handle_interrupts()
    try:
        main = importlib.import_module("glm_image_pack.cli.main").main
    except ImportError as error:
        print(importlib.import_module("glm_image_pack.glmimage_core.libraries").import_failure(error), file=sys.stderr)
        return 2
    return main(arguments)


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
