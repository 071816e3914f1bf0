"""Libraries of others: how old they may be, and what to say of one that is missing or does not start."""

import importlib
import logging
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

log = logging.getLogger(__name__)

OLDEST = {"torch": (2, 7), "transformers": (5, 1), "diffusers": (0, 37), "accelerate": (), "safetensors": (), "numpy": ()}
"""The oldest versions with which `make quick` and `make test-oldest` pass; () where any will do."""

PACKAGES = {"PIL": "pillow", "yaml": "pyyaml", "google": "protobuf", "cv2": "opencv-python", "comfy_kitchen": "comfy-kitchen"}
"""Modules whose packages have other names."""

# What libraries were seen to raise while they are imported: a driver or a shared library that is not there, another version.
BREAKS = (ImportError, RuntimeError, OSError, AttributeError, TypeError, ValueError, KeyError)


def check_version(library: str) -> None:
    """Raise ImportError, with what to install, where a library of OLDEST is missing or too old. Imports nothing."""
    oldest = OLDEST[library]
    needs = f"GLM-Image needs {library}" + (f" {'.'.join(map(str, oldest))} or newer" if oldest else "")
    try:
        installed = version(library)
    except PackageNotFoundError:
        raise ImportError(f"{needs}, which is missing: pip install -U {library}")
    if tuple(int(number) for number in installed.split(".")[: len(oldest)]) < oldest:
        raise ImportError(f"{needs}, not {installed}: pip install -U {library}")


def start(module: str) -> ModuleType:
    """Import a module. Raises ImportError in one line, with what to install, where that fails in whatever way."""
    try:
        return importlib.import_module(module)
    except BREAKS as error:
        raise ImportError(import_failure(error, module.split(".")[0])) from error


@cache
def started(module: str) -> ModuleType | None:
    """A module that makes things quicker and is not needed: None where it is missing, or does not start, which the log says."""
    try:
        return start(module)
    except ImportError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            log.warning("%s; going on without it", error)
        return None


def import_failure(error: BaseException, library: str = "") -> str:
    """What to do about an import that failed, from the first error of its chain. library: what was to be imported."""
    root = first_cause(error)
    if "torchvision::" in str(root):
        return "the torchvision that is installed does not fit this torch: reinstall torchvision, from where torch came from"
    if isinstance(root, ModuleNotFoundError) and root.name:
        module = root.name.split(".")[0]
        package = PACKAGES.get(module, module)
        needs = f"{library} needs {package}, which" if library not in ("", module) else package
        return f"{needs} is missing: pip install -U {package}"
    said = " ".join(str(root).split()) or type(root).__name__
    return f"{library} does not start ({said})" if library else said


def first_cause(error: BaseException) -> BaseException:
    """The error with which a chain of errors began."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
