"""Runs what the pack gives to the front end, in Node.js beside stand-ins for the front end's own modules."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[1] / "nodes" / "web"


def run_in_node(folder: Path, script: str, modules: dict[str, str], given, *arguments: str):
    """What a script prints as JSON. It finds the pack's files in ./extensions/pack and the modules, by name, in ./scripts.

    given: what it reads as JSON from standard input.
    """
    if not shutil.which("node"):
        pytest.skip("needs Node.js")
    ignored = shutil.ignore_patterns("docs")
    shutil.copytree(WEB, folder / "extensions" / "pack", ignore=ignored, dirs_exist_ok=True)
    (folder / "scripts").mkdir(exist_ok=True)
    files = {"run.js": script, "package.json": '{"type": "module"}'}
    for name, text in (files | {f"scripts/{module}": text for module, text in modules.items()}).items():
        (folder / name).write_text(text, "utf-8")
    command = ["node", str(folder / "run.js"), *arguments]
    return json.loads(subprocess.run(command, input=json.dumps(given).encode(), capture_output=True, check=True).stdout)
