"""Workflow files that are wrong in random ways: one line, never another exception, never without end.

GLM_IMAGE_FUZZ=10000 says how many cases of each kind to try.
"""

import json
import os
import random
import signal
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from glm_image_pack.cli.graph.errors import NodeError, WorkflowError
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.runner import Run, Runner
from glm_image_pack.cli.graph.stock import Folders
from glm_image_pack.cli.graph.workflow import read_workflow

from shipped import ROOT
from workflow_fuzz import api, carrier, folded, mutated, small, ui

CASES = int(os.environ.get("GLM_IMAGE_FUZZ", "250"))
SECONDS = 20  # for one case, which takes milliseconds
PIXELS = 2000  # a side of a picture that a case may make; the largest that Upscale Image allows takes gigabytes


def written(data) -> tuple[str, bytes]:
    return "workflow.json", json.dumps(data).encode()


KINDS = {
    "api": lambda generator: written(mutated(api(), generator)),
    "ui": lambda generator: written(mutated(ui(), generator)),
    "subgraph": lambda generator: written(mutated(folded(), generator)),
    "picture": carrier,
}


@contextmanager
def in_time():
    """Fails where the block takes longer than SECONDS; only where signals are."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number, frame):
        raise TimeoutError(f"no end after {SECONDS} seconds")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders(ROOT / "workflows" / "input", tmp_path / "out", [])


def outcome(path: Path, folders: Folders, *, run: bool) -> str:
    """What comes of a file: "checked", "ran" or "refused". Another exception passes, with its case in a note."""
    try:
        with in_time():
            workflow = read_workflow(path, ALL_NODES)
            if not run:
                Run(workflow, ALL_NODES, folders).check()
                return "checked"
            sides = [value for node in workflow.prompt.values() for value in node["inputs"].values()]
            if any(isinstance(side, int | float) and PIXELS < side < 1e5 for side in sides):
                return "too large to run"
            Runner(ALL_NODES, folders).run(workflow)
            return "ran"
    except (WorkflowError, NodeError) as error:
        assert str(error).strip()
        return "refused" if isinstance(error, WorkflowError) else f"refused by {type(error.error).__name__}"


def tried(path: Path, kind: str, folders: Folders, *, run: bool = False) -> Counter:
    outcomes = Counter()
    for case in range(CASES):
        name, content = (
            written(mutated(small(), random.Random(f"run {case}"))) if run else KINDS[kind](random.Random(f"{kind} {case}"))
        )
        file = path / name
        file.write_bytes(content)
        try:
            outcomes[outcome(file, folders, run=run)] += 1
        except Exception as error:
            error.add_note(f"{kind} case {case}: {content[:3000]!r}")
            raise
    print(f"{kind}: {dict(outcomes)}")
    return outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_wrong_in_random_ways_is_checked_or_refused_in_one_line(kind, tmp_path, folders):
    outcomes = tried(tmp_path, kind, folders)
    assert outcomes["refused"] > CASES // 10  # else the changes are too small to find anything


def test_a_graph_that_is_wrong_in_random_ways_runs_or_is_refused_in_one_line(tmp_path, folders):
    outcomes = tried(tmp_path, "run", folders, run=True)
    assert outcomes["ran"] > CASES // 10 and outcomes["refused"] > CASES // 10
