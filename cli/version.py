"""The versions of what the pack uses."""

import importlib.metadata


def version_of(package: str) -> str | None:
    """The version of an installed package, by the name that pip has for it; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
