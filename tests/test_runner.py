"""Running a workflow without ComfyUI: what is checked before, what runs, and what runs again."""

import gc
import shutil
from collections import Counter

import pytest
from glm_image_pack.cli.graph.errors import NodeError, WorkflowError
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.runner import Runner
from glm_image_pack.cli.graph.stock import Folders
from glm_image_pack.cli.graph.workflow import Workflow

from pictures import pattern
from shipped import executed, set_input, shipped

# Running again


def test_a_new_sampler_seed_leaves_the_ar_stage_alone(runner):
    workflow = shipped("text_to_image")
    runner.run(workflow)
    assert "GLMImageGeneratePrior" in executed(runner, workflow)
    runner.run(workflow)
    assert runner.executed == []
    set_input(workflow, "GLMImageSampler", seed=1)
    runner.run(workflow)
    assert executed(runner, workflow) == {"GLMImageSampler", "GLMImageVAEDecode", "SaveImage"}


def test_a_second_edit_with_the_same_reference_does_not_run_it_again(runner, monkeypatch):
    from glm_image_pack.glmimage_core.glm_image import reference_cache as caching

    runs = []
    original = caching.reference_keys_values
    monkeypatch.setattr(caching, "reference_keys_values", lambda dit, reference: runs.append(1) or original(dit, reference))
    workflow = shipped("image_edit")
    runner.run(workflow)
    set_input(workflow, "PrimitiveStringMultiline", value="another edit")
    runner.run(workflow)
    assert {"GLMImageGeneratePrior", "GLMImageSampler"} < executed(runner, workflow)
    assert "GLMImageEncodeReference" not in executed(runner, workflow)
    assert len(runs) == 1


def test_a_picture_that_changed_on_disk_is_read_again(runner, folders, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    pattern(160, 128, 3).save(source / "glm-image-scene.png")
    runner.folders = Folders(source, folders.output, [])
    workflow = shipped("image_edit")
    runner.run(workflow)
    pattern(160, 128, 5).save(source / "glm-image-scene.png")
    runner.run(workflow)
    assert {"LoadImage", "GLMImageEncodeReference", "GLMImageGeneratePrior"} < executed(runner, workflow)


def test_without_keeping_a_model_is_let_go_after_its_last_use(folders, quiet_host):
    from transformers import GlmImageForConditionalGeneration

    alive = []

    def count(label, done, total):
        if label == "Sampler":
            gc.collect()
            alive.append(sum(isinstance(thing, GlmImageForConditionalGeneration) for thing in gc.get_objects()))

    gc.collect()
    before = sum(isinstance(thing, GlmImageForConditionalGeneration) for thing in gc.get_objects())
    quiet_host.on_progress = count
    runner = Runner(ALL_NODES, folders)
    runner.run(shipped("text_to_image"))
    assert alive and set(alive) == {before}


def test_an_interruption_passes_through_and_the_next_run_goes_on_from_there(runner, quiet_host, folders):
    def stop(label, done, total):
        if label == "Sampler":
            raise KeyboardInterrupt

    workflow = shipped("text_to_image")
    quiet_host.on_progress = stop
    with pytest.raises(KeyboardInterrupt):
        runner.run(workflow)
    assert folders.written == []
    quiet_host.on_progress = lambda *step: None
    runner.run(workflow)
    assert "GLMImageGeneratePrior" not in executed(runner, workflow) and len(folders.written) == 1


def counting(node_class: type, asked: Counter) -> type:
    """The class, with a count of how often it was asked for its inputs."""

    def INPUT_TYPES(cls):
        asked[node_class.__name__] += 1
        return node_class.INPUT_TYPES()

    return type(node_class.__name__, (node_class,), {"INPUT_TYPES": classmethod(INPUT_TYPES)})


def test_a_class_is_asked_for_its_inputs_once_a_run(folders):
    """A loader looks through folders to answer. The workflow has two nodes of one class."""
    workflow, asked = shipped("several_references"), Counter()
    names = Counter(node["class_type"] for node in workflow.prompt.values())
    assert names["LoadImage"] == 2
    runner = Runner({name: counting(node, asked) for name, node in ALL_NODES.items()}, folders, keep=True)
    for _ in range(2):
        asked.clear()
        runner.run(workflow)
        assert asked == Counter(names.keys())


def test_each_node_that_ran_is_told_with_its_seconds(folders):
    finished = []
    runner = Runner(ALL_NODES, folders, keep=True, on_finished=lambda title, seconds: finished.append((title, seconds)))
    workflow = shipped("text_to_image")
    runner.run(workflow)
    assert [title for title, _ in finished] == [workflow.title(node_id) for node_id in runner.executed]
    slow = dict(finished)["node 10 (GLM-Image Sampler)"]
    assert slow > 0 and all(seconds >= 0 for _, seconds in finished)
    runner.run(workflow)
    assert len(finished) == len(workflow.prompt)  # nothing ran again


# Bad workflows


def broken(change) -> Workflow:
    workflow = shipped("text_to_image")
    ids = {node["class_type"]: node_id for node_id, node in workflow.prompt.items()}
    change(workflow.prompt, ids)
    return workflow


BAD = {
    "a missing node": (lambda p, i: p.pop(i["GLMImageLoadVAE"]), "vae is linked to node .*, which is missing"),
    "an unknown node": (lambda p, i: p[i["GLMImageVAEDecode"]].update(class_type="Nowhere"), "no such node here: Nowhere"),
    "an unknown output": (lambda p, i: p[i["SaveImage"]].update(class_type="Nowhere"), "no output.*no such node here"),
    "an empty prompt": (
        lambda p, i: p[i["PrimitiveStringMultiline"]]["inputs"].update(value=" "),
        "Generate Prior.*prompt is empty",
    ),
    "a link to a wrong output": (
        lambda p, i: p[i["GLMImageVAEDecode"]]["inputs"].update(vae=[i["GLMImageLoadVAE"], 3]),
        "vae is linked to output 3",
    ),
    "a link of a wrong type": (
        lambda p, i: p[i["GLMImageVAEDecode"]]["inputs"].update(vae=[i["GLMImageLoadAR"], 0]),
        "vae takes VAE, but .*AR Model.* gives GLM_IMAGE_AR",
    ),
    "a value where a link belongs": (
        lambda p, i: p[i["GLMImageVAEDecode"]]["inputs"].update(vae="file"),
        "vae is 'file', but takes a link",
    ),
    "a loop": (
        lambda p, i: (
            p[i["GLMImageSampler"]]["inputs"].update(positive=[i["GLMImageApplyPrior"], 0])
            or p[i["GLMImageApplyPrior"]]["inputs"].update(prior=[i["GLMImageGeneratePrior"], 0])
            or p[i["GLMImageEncodePrompt"]]["inputs"].update(prompt=[i["GLMImageEncodePrompt"], 2])
        ),
        "Encode Prompt.*lead back to itself",
    ),
    "a value below its range": (lambda p, i: p[i["GLMImageSampler"]]["inputs"].update(steps=0), "steps is 0; its minimum is 1"),
    "a value above its range": (lambda p, i: p[i["GLMImageSampler"]]["inputs"].update(cfg=99), "cfg is 99.0; its maximum is 20"),
    "top_p 0": (lambda p, i: p[i["GLMImageGeneratePrior"]]["inputs"].update(top_p=0), "top_p is 0.0"),
    "top_p above 1": (lambda p, i: p[i["GLMImageGeneratePrior"]]["inputs"].update(top_p=1.5), "top_p is 1.5"),
    "a negative temperature": (
        lambda p, i: p[i["GLMImageGeneratePrior"]]["inputs"].update(temperature=-1),
        "temperature is -1.0",
    ),
    "a value that is no number": (
        lambda p, i: p[i["GLMImageSampler"]]["inputs"].update(steps="many"),
        "steps is 'many', which is no INT",
    ),
    "not a number": (lambda p, i: p[i["GLMImageSampler"]]["inputs"].update(cfg=float("nan")), "cfg is nan"),
    "a size between grids": (
        lambda p, i: p[i["GLMImageGeneratePrior"]]["inputs"].update(width=1000),
        "width 1000 .* 992 or 1024",
    ),
    "a size out of range": (lambda p, i: p[i["GLMImageGeneratePrior"]]["inputs"].update(height=9999), "height 9999 is outside"),
    "a choice that is none": (
        lambda p, i: p[i["GLMImageVAEDecode"]]["inputs"].update(tiling="maybe"),
        "tiling is 'maybe'; it must be one of auto, on, off",
    ),
    "an input left out": (lambda p, i: p[i["GLMImageSampler"]]["inputs"].pop("seed"), "seed is missing"),
    "no checkpoint": (lambda p, i: p[i["GLMImageLoadDiT"]]["inputs"].update(checkpoint="none"), "no GLM-Image checkpoint 'none'"),
    "a file name that leaves its folder": (
        lambda p, i: p[i["SaveImage"]]["inputs"].update(filename_prefix="../../x"),
        "leaves the folder",
    ),
    **{
        f"a file name that is the folder, {prefix}": (
            lambda p, i, prefix=prefix: p[i["SaveImage"]]["inputs"].update(filename_prefix=prefix),
            "names no picture in it",
        )
        for prefix in (".", "./", "a/..", "x/../")
    },
    "no output": (lambda p, i: p.pop(i["SaveImage"]), "no output"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_workflow_is_refused_before_anything_runs(name, runner, folders):
    change, message = BAD[name]
    with pytest.raises(WorkflowError, match=message) as error:
        runner.run(broken(change))
    assert "\n" not in str(error.value)
    assert runner.executed == [] and not folders.output.exists()


def test_what_shows_only_while_a_node_runs_names_the_node(runner):
    workflow = shipped("text_to_image")
    set_input(workflow, "PrimitiveStringMultiline", value="a house <|image|>")
    with pytest.raises(NodeError, match="GLM-Image Generate Prior.*control token"):
        runner.run(workflow)


@pytest.mark.parametrize("component", ["vision_language_encoder", "text_encoder", "transformer", "vae"])
def test_a_broken_component_is_found_before_any_work(runner, quiet_host, folder, tmp_path, component):
    shutil.copytree(folder, tmp_path / "models" / "diffusers" / "GLM-Image")
    file = next((tmp_path / "models" / "diffusers" / "GLM-Image" / component).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    quiet_host.models = tmp_path / "models"
    with pytest.raises(WorkflowError, match=rf"{file.name} is truncated"):
        runner.run(shipped("text_to_image"))
    assert runner.executed == []


def test_a_node_of_another_pack_that_no_output_needs_is_left_out_with_a_warning(runner, folders, caplog):
    workflow = shipped("text_to_image")
    workflow.prompt["99"] = {"class_type": "SomeLabel", "inputs": {"text": "hello"}}
    runner.run(workflow)
    assert len(folders.written) == 1 and "node 99 (SomeLabel) is left out" in caplog.text


def test_an_undeclared_input_is_ignored_as_in_comfyui(runner, folders):
    workflow = shipped("image_edit")
    set_input(workflow, "LoadImage", upload="image")  # as older frontends export it
    runner.run(workflow)
    assert len(folders.written) == 1
