"""The package that ComfyUI's registry gets: what git has, without what .comfyignore names."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _git(*arguments: str, given: str = "") -> list[str]:
    command = ["git", "-c", "core.quotePath=off", *arguments]
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode in (0, 1), done.stderr  # 1: check-ignore found none
    return done.stdout.splitlines()


def left_out(names: list[str]) -> list[str]:
    """Those of the paths, relative to the root, that .comfyignore, which is written as .gitignore is, keeps out."""
    if not names:
        return []
    exclude = f"core.excludesFile={ROOT / '.comfyignore'}"
    return _git("-c", exclude, "check-ignore", "--no-index", "--stdin", given="".join(f"{name}\n" for name in names))


def packed() -> list[str]:
    """The paths of the package, relative to the root."""
    names = [name for name in _git("ls-files", "--cached", "--others", "--exclude-standard") if (ROOT / name).is_file()]
    return sorted(set(names) - set(left_out(names)))


def unpack(names: list[str], folder: Path) -> None:
    """Copy files of the pack into a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
