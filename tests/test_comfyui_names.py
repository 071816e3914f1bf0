"""What the pack calls of ComfyUI is there and takes what it is called with, also in branches that no test runs.

Runs when COMFYUI_DIR names a ComfyUI checkout and the package comfy-import-guard is installed: it reads both as text.
"""

import os
import subprocess
from pathlib import Path

import pytest

from package import packed, unpack

report = pytest.importorskip("comfy_import_guard.report", reason="needs comfy-import-guard")
from comfy_import_guard.repo import Repo  # noqa: E402

COMFYUI = os.environ.get("COMFYUI_DIR")
pytestmark = pytest.mark.skipif(not COMFYUI, reason="COMFYUI_DIR names no ComfyUI checkout to look into")

ASKED_FOR = {"comfy.model_patcher.CoreModelPatcher", "comfy.model_management.archive_model_dtypes"}
"""Names that older ComfyUIs lack: the host asks whether they are there before it uses them."""


def committed(comfyui: Path, folder: Path) -> None:
    """A git repository in the folder with ComfyUI's modules as its last commit, in which the guard looks."""
    folder.mkdir(parents=True)
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    modules = (":(glob)*.py", ":(glob)comfy*/**/*.py")
    for command in (["init"], ["--work-tree", str(comfyui), "add", "--force", *modules], [*identity, "commit", "--message", "-"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)


def test_comfyui_has_what_the_pack_calls(tmp_path):
    committed(Path(COMFYUI).resolve(), tmp_path / "cache" / "ComfyUI")
    unpack([name for name in packed() if name.endswith(".py")], tmp_path / "custom_nodes" / "comfyui-glm-image")
    found = report.check(Repo(tmp_path / "cache", offline=True, quiet=True), tmp_path, target="HEAD")
    (pack,) = found["packs"]
    assert pack["references"] > 50 and pack["unparseable"] == []
    assert [row for row in pack["breaking"] if row["dotted"] not in ASKED_FOR] == []
    assert [*pack["soft"], *pack["signature_drift"]] == []
