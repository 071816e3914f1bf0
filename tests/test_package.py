"""The package of ComfyUI's registry: nothing that users do not need, and all that the pages send them to."""

import ast
import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from package import ROOT, left_out, packed, unpack

PICTURES = {".gif", ".jpg", ".png", ".svg", ".webp"}
WITHOUT_TRAINING = {"cli/score.py", "cli/train.py"}  # they say so before they import it


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The package, unpacked."""
    folder = tmp_path_factory.mktemp("package") / "comfyui-glm-image"
    unpack(packed(), folder)
    return folder


@pytest.fixture
def command(copy, monkeypatch, capfd):
    """command(*arguments): `python . ARGUMENTS` in the package. Returns exit status, output and messages."""
    monkeypatch.chdir(copy)
    name = "unpacked_package"
    runpy.run_path(str(copy / "__main__.py"))["register_pack"](name)
    main = importlib.import_module(f"{name}.cli.main").main

    def run(*arguments: str) -> tuple[int, str, str]:
        return main(list(arguments)), *capfd.readouterr()

    yield run
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def missing_modules(folder: Path, name: str) -> list[str]:
    """The modules of the pack that a file imports and that the folder lacks."""
    file = folder / name
    relative = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.ImportFrom) and node.level]
    modules = [file.parents[node.level - 1].joinpath(*(node.module or "").split(".")) for node in relative]
    return [f"{name}: {module}" for module in modules if not module.is_dir() and not module.with_suffix(".py").is_file()]


def test_what_only_developers_need_is_not_in_the_package():
    first = {name.partition("/")[0] for name in packed()}
    assert first & {"training", "tests", "scripts", ".ci", "Makefile", ".gitignore"} == set()
    assert {"README.md", "nodes", "cli", "bench", "nano", "locales", "workflows"} <= first


def test_of_pictures_the_package_has_those_that_comfyui_shows_or_loads():
    """The pages show theirs where the repository is hosted."""
    for name in packed():
        path = Path(name)
        if path.suffix in PICTURES:
            thumbnail = path.parent.name == "workflows" and (ROOT / path.with_suffix(".json")).is_file()
            assert thumbnail or path.parent == Path("workflows/input"), name


def test_every_module_of_the_package_finds_those_that_it_imports(copy):
    names = [name for name in packed() if name.endswith(".py")]
    missing = [line for name in names if name not in WITHOUT_TRAINING for line in missing_modules(copy, name)]
    assert missing == []
    assert all(missing_modules(copy, name) for name in WITHOUT_TRAINING)


def test_commands_that_the_package_lacks_the_means_for_say_where_they_run(command, tmp_path):
    for arguments in (["score", "--share", "0.001"], ["train", str(tmp_path / "run"), "--minutes", "0.001"]):
        status, output, message = command(*arguments)
        assert status == 2 and output == "" and "run it in a clone of the repository" in message
        assert len(message.splitlines()) == 1


def test_what_the_readme_tells_users_to_run_runs_in_the_package(command, tmp_path):
    told = set(re.findall(r"python \. (\w+)", (ROOT / "README.md").read_text("utf-8")))
    assert told == {"inspect", "render", "info", "bench"}  # each of which is run below
    status, output, _ = command("info")
    assert status == 0 and "torch" in output
    status, output, _ = command("inspect", "nano")
    assert status == 0 and "transformer" in output
    small = ("--set", "GLM-Image Sampler.steps=1", "--device", "cpu", "--output", str(tmp_path))
    status, output, message = command("render", "nano", *small)
    assert status == 0, message
    assert Path(output.strip()).is_file()
    report = tmp_path / "card.json"
    status, *_ = command("bench", "card", "--limit", "1", "--save", str(report))
    assert report.is_file() and json.loads(report.read_text("utf-8"))


def test_the_folder_that_pip_installs_is_in_the_package():
    """`pip install .`, of the README, takes these."""
    packages = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.DOTALL)[1]
    folders = [name.replace("glmimage_core.nano", "nano").replace(".", "/") for name in re.findall(r'"(.+?)"', packages)]
    assert "glmimage_core/glm_image" in folders and left_out(folders) == []


def test_workflows_name_the_pack_by_its_id_in_the_registry():
    """So that a ComfyUI without the pack can say which one is missing."""
    name = re.search(r'^name = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]
    for file in sorted([*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]):
        graph = json.loads(file.read_text("utf-8"))
        parts = [graph, *graph.get("definitions", {}).get("subgraphs", [])]
        nodes = [node for part in parts for node in part["nodes"] if node["type"].startswith("GLMImage")]
        assert nodes and {node["properties"].get("cnr_id") for node in nodes} == {name}, file
