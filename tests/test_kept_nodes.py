"""Save Prior and Load Prior: a plan outlives the session, in its own file or in its picture."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from glm_image_pack.cli.graph.errors import WorkflowError
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.runner import Runner
from glm_image_pack.cli.graph.stock import Folders
from glm_image_pack.cli.graph.workflow import read_workflow
from glm_image_pack.glmimage_core.glm_image.plans.choose import chosen
from glm_image_pack.glmimage_core.glm_image.plans.kept import load_prior
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from PIL import Image

from plan_graphs import PLANNING, graph, painted_again
from plans import plan


@pytest.fixture
def room(folders, quiet_host, tmp_path, monkeypatch) -> Folders:
    """An empty folder to read, too."""
    monkeypatch.setattr(quiet_host, "input", tmp_path / "input")
    quiet_host.input.mkdir()
    return replace(folders, input=quiet_host.input)


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def test_a_plan_that_was_kept_paints_the_same_picture_without_an_ar_model(room):
    Runner(ALL_NODES, room).run(graph(PLANNING))
    assert sorted(path.name for path in room.written) == [
        "GLM-Image_00001_.safetensors",
        "picture 256_00001_.png",
        "picture 256_00002_.png",
    ]
    first, second = (room.output / "prior" / f"picture 256_0000{number}_.png" for number in (1, 2))
    for kept, pictures in (("GLM-Image_00001_.safetensors", (first, second)), (first.name, (first,))):
        room.written.clear()
        Runner(ALL_NODES, room).run(painted_again(f"prior/{kept} [output]"))
        for again, original in zip(room.written, pictures, strict=True):
            # Save Image cuts fractions of a level off, where Save Prior rounds.
            assert np.abs(pixels(again).astype(int) - pixels(original)).max() <= 1
            assert pixels(original).std() > 5


def test_each_picture_carries_its_own_plan_and_the_workflow(room):
    Runner(ALL_NODES, room).run(graph(PLANNING))
    whole = load_prior(room.output / "prior" / "GLM-Image_00001_.safetensors")
    for number in (0, 1):
        path = room.output / "prior" / f"picture 256_0000{number + 1}_.png"
        own = load_prior(path)
        assert torch.equal(own.tokens, chosen(whole, [number]).tokens) and own.seed == 7 + number
        assert read_workflow(path, ALL_NODES).prompt.keys() == PLANNING.keys()


def test_the_plans_that_were_saved_last_are_listed_first(room):
    for prefix in ("prior/b", "prior/a", "prior/a", "elsewhere/c"):
        NODES["GLMImageSavePrior"]().save(plan(), prefix)
        time.sleep(0.02)  # more than the clock of a file system ticks
    (room.input / "prior").mkdir()
    for name in ("prior/given.safetensors", "photo.png", "notes.txt"):
        (room.input / name).touch()
    (choices, _) = NODES["GLMImageLoadPrior"].INPUT_TYPES()["required"]["file"]
    assert choices == [
        "prior/a_00002_.safetensors [output]",
        "prior/a_00001_.safetensors [output]",
        "prior/b_00001_.safetensors [output]",
        "prior/given.safetensors",
        "photo.png",
    ]
    assert NODES["GLMImageLoadPrior"].VALIDATE_INPUTS("elsewhere/c_00001_.safetensors [output]") is True


def test_what_is_no_plan_is_told_before_anything_runs(room):
    validate = NODES["GLMImageLoadPrior"].VALIDATE_INPUTS
    assert NODES["GLMImageLoadPrior"].INPUT_TYPES()["required"]["file"][0] == ["none"]
    assert "there is no plan 'none'" in validate("none") and str(room.input) in validate("none")
    assert "leaves the folder" in validate("../secret.safetensors")
    Image.new("RGB", (32, 32)).save(room.input / "photo.png")
    assert "carries no plan" in validate("photo.png")
    with pytest.raises(WorkflowError, match=r"node plan \(GLMImageLoadPrior\): file: .*carries no plan"):
        Runner(ALL_NODES, room).run(painted_again("photo.png"))
    assert validate(None) is True  # over a link


@pytest.mark.parametrize("prefix", ["../out", "/tmp", "a:b", ""])
def test_a_name_that_cannot_be_written_is_told_before_anything_runs(room, prefix):
    assert NODES["GLMImageSavePrior"].VALIDATE_INPUTS(prefix) is not True
    with pytest.raises(WorkflowError, match="filename_prefix"):
        Runner(ALL_NODES, room).run(
            graph(PLANNING | {"save": ("GLMImageSavePrior", PLANNING["save"][1] | {"filename_prefix": prefix})})
        )


def test_a_folder_that_is_a_file_is_told_before_anything_runs(room):
    room.output.mkdir()
    (room.output / "prior").touch()
    assert "cannot be made" in NODES["GLMImageSavePrior"].VALIDATE_INPUTS("prior/x")


def test_pictures_of_another_plan_are_refused_and_one_plan_serves_many(room):
    save = NODES["GLMImageSavePrior"]().save
    with pytest.raises(ValueError, match="plans 2 pictures and 3 are connected"):
        save(plan(batch=2), "prior/x", torch.zeros(3, 64, 64, 3))
    save(plan(), "prior/x", torch.zeros(3, 64, 64, 3))
    assert [load_prior(path).seed for path in room.written] == [0, 0, 0]


def test_another_file_of_the_same_name_is_read_anew(room):
    name = "plan.safetensors [output]"
    keys = []
    for seed in (1, 1, 2):
        NODES["GLMImageSavePrior"]().save(plan(seed=seed), "plan")
        room.written[-1].replace(room.output / "plan.safetensors")
        keys.append(NODES["GLMImageLoadPrior"].IS_CHANGED(name))
    assert keys[0] == keys[1] != keys[2]
    runner, load = Runner(ALL_NODES, room, keep=True), ("GLMImageLoadPrior", {"file": name})
    show = graph({"plan": load, "show": ("PreviewAny", {"source": ["plan", 2]})})
    ran = []
    for seed in (2, 3):
        NODES["GLMImageSavePrior"]().save(plan(seed=seed), "plan")
        room.written[-1].replace(room.output / "plan.safetensors")
        runner.run(show)
        ran.append("plan" in runner.executed)
    assert ran == [True, True]
    runner.run(show)
    assert "plan" not in runner.executed
