"""Walking folders of models: what is found, and what a second walk asks the disk for."""

import os
import time
from pathlib import Path

import pytest
import safetensors
from glm_image_pack.glmimage_core.checkpoints import folders
from glm_image_pack.glmimage_core.checkpoints.folders import COARSEST_MTIME_NS, FOLDER_LEVELS, find_below, walk
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES

LONG_AGO_NS = time.time_ns() - 10 * COARSEST_MTIME_NS


def settle(root) -> None:
    """Make all folders look as if nothing had changed in them for a while."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, ns=(LONG_AGO_NS, LONG_AGO_NS))


@pytest.fixture
def root(tmp_path):
    """Three folders of models."""
    for name in ("a", "b", "c/d"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
    settle(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def scans(monkeypatch):
    """The folders that are read, as they are read."""
    read, scandir = [], os.scandir

    def counted(folder):
        read.append(folder)
        return scandir(folder)

    monkeypatch.setattr(folders.os, "scandir", counted)
    return read


def found(root) -> list[str]:
    return sorted(folder.relative_to(root).as_posix() for folder, _, files in walk(root) if "config.json" in files)


def test_a_second_walk_reads_no_folder(root, scans):
    assert found(root) == ["a", "b", "c/d"] and len(scans) == 5
    scans.clear()
    assert found(root) == ["a", "b", "c/d"] and scans == []


def test_the_loaders_share_one_walk(root, scans, quiet_host):
    """Every loader lists the checkpoints whenever a browser asks for the nodes and whenever a graph is queued."""
    root.rename(root.parent / "diffusers")
    quiet_host.models = root.parent
    nodes = ("GLMImageLoadAR", "GLMImageLoadGlyphEncoder", "GLMImageLoadDiT", "GLMImageLoadVAE", "GLMImageLoadCogView3")
    for _ in range(2):
        for node in nodes:
            NODES[node].INPUT_TYPES()
    assert len(scans) == len(set(scans)) == 5


def test_what_is_added_removed_or_renamed_is_seen(root):
    assert found(root) == ["a", "b", "c/d"]
    (root / "c" / "e").mkdir()
    (root / "c" / "e" / "config.json").write_text("{}")
    assert found(root) == ["a", "b", "c/d", "c/e"]
    (root / "a" / "config.json").unlink()
    assert found(root) == ["b", "c/d", "c/e"]
    (root / "b").rename(root / "z")
    assert found(root) == ["c/d", "c/e", "z"]
    (root / "z" / "config.json").rename(root / "z" / "other.json")
    assert found(root) == ["c/d", "c/e"]


def test_two_changes_within_a_tick_of_the_file_systems_clock_are_seen(root):
    now = time.time_ns()
    os.utime(root / "a", ns=(now, now))
    assert found(root) == ["a", "b", "c/d"]
    (root / "a" / "config.json").unlink()
    os.utime(root / "a", ns=(now, now))
    assert found(root) == ["b", "c/d"]


def test_a_folder_in_the_place_of_another_of_the_same_age_is_seen(root):
    assert found(root) == ["a", "b", "c/d"]
    (root / "a").rename(root.parent / "aside")
    (root.parent / "new").mkdir()
    (root.parent / "new").rename(root / "a")
    settle(root)  # the folder, and the root that it is in, have the times that they had
    assert found(root) == ["b", "c/d"]


def test_a_file_that_changes_is_read_again(root):
    def wanted():
        return list(
            find_below([root], lambda folder, files: "config.json" in files and "x" in (folder / "config.json").read_text())
        )

    assert wanted() == []
    (root / "b" / "config.json").write_text('{"x": 1}')
    settle(root)
    assert wanted() == ["b"]


def test_a_link_is_looked_up_every_time(root, tmp_path):
    (root / "linked").symlink_to(tmp_path / "disk")
    settle(root)
    assert found(root) == ["a", "b", "c/d"]
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "config.json").write_text("{}")
    assert found(root) == ["a", "b", "c/d", "linked"]
    (tmp_path / "disk" / "config.json").unlink()
    assert found(root) == ["a", "b", "c/d"]
    (tmp_path / "disk" / "up").symlink_to(tmp_path)
    assert found(root) == ["a", "b", "c/d"]  # the link leads back up: nothing is found twice


def test_a_walk_ends_at_a_depth_and_does_not_mind_what_cannot_be_read(tmp_path):
    deep = tmp_path.joinpath(*"12345678")
    deep.mkdir(parents=True)
    assert [len(folder.relative_to(tmp_path).parts) for folder, _, _ in walk(tmp_path)] == list(range(FOLDER_LEVELS + 1))
    assert list(walk(tmp_path / "nowhere")) == []


def test_names_taken_out_are_skipped_only_in_that_walk(root):
    for folder, subfolders, _ in walk(root):
        if folder == root:
            subfolders.remove("a")
    assert found(root) == ["a", "b", "c/d"]


def test_links_in_circles_end_and_each_name_is_still_found(tmp_path):
    """Seven folders that link to each other are 7^6 names."""
    siblings = [f"s{number}" for number in range(7)]
    for name in siblings:
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "config.json").write_text("{}")
        for other in siblings:
            if other != name:
                (tmp_path / name / other).symlink_to(tmp_path / other)
    assert len(list(walk(tmp_path))) < 100
    assert {f"{name}/model" for name in siblings} <= set(found(tmp_path))


def test_a_folder_is_found_by_its_own_name_and_by_that_of_a_link_to_it(root):
    (root / "aa").symlink_to(root / "c")
    (root / "zz").symlink_to(root / "c" / "d")
    assert found(root) == ["a", "aa/d", "b", "c/d", "zz"]


def test_a_second_listing_opens_no_file(models, monkeypatch, quiet_host):
    """All loaders, over checkpoints, single files and vision-language models: what a slow network share would be asked for."""
    opened = []
    nodes = [node for name, node in NODES.items() if name.startswith("GLMImageLoad") and hasattr(node, "names")]
    first = [node.names() for node in nodes]
    for owner, name in ((Path, "read_bytes"), (Path, "read_text"), (safetensors, "safe_open")):
        kept = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, kept=kept, **more: opened.append(args[0]) or kept(*args, **more))
    assert [node.names() for node in nodes] == first and any(len(names) > 2 for names in first)
    assert opened == []
    index = models / "diffusers" / "GLM-Image" / "model_index.json"
    os.utime(index, ns=(LONG_AGO_NS, index.stat().st_mtime_ns + 1))
    assert [node.names() for node in nodes] == first and opened == [index]
