"""Running a workflow without ComfyUI: what is checked before, what runs, and what runs again."""

import gc
import shutil
from collections import Counter

import pytest
from glm_image_pack.cli.graph.errors import NodeError, WorkflowError
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.runner import Run, Runner, in_parts
from glm_image_pack.cli.graph.stock import Folders
from glm_image_pack.cli.graph.workflow import Workflow
from PIL import Image

from pictures import pattern
from shipped import ROOT, executed, set_input, shipped

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
    set_input(workflow, "GLMImagePrompt", prompt="another edit")
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
    names = Counter(node["class_type"] for node in in_parts(workflow, ALL_NODES).prompt.values())
    assert names["LoadImage"] == 2
    runner = Runner({name: counting(node, asked) for name, node in ALL_NODES.items()}, folders, keep=True)
    for _ in range(2):
        asked.clear()
        runner.run(workflow)
        assert asked == Counter(names.keys() - {"GLMImageSize"})  # whose place a size for tests takes


def test_each_node_that_ran_is_told_with_its_seconds(folders):
    finished = []
    runner = Runner(ALL_NODES, folders, keep=True, on_finished=lambda title, seconds: finished.append((title, seconds)))
    workflow = shipped("text_to_image")
    runner.run(workflow)
    parts = in_parts(workflow, ALL_NODES)
    assert [title for title, _ in finished] == [parts.title(node_id) for node_id in runner.executed]
    slow = dict(finished)["node 9 (GLM-Image Sampler)"]
    assert slow > 0 and all(seconds >= 0 for _, seconds in finished)
    count = len(finished)
    runner.run(workflow)
    assert len(finished) == count  # nothing ran again


# Bad workflows


def broken(change) -> Workflow:
    workflow = shipped("separate_loaders")
    ids = {node["class_type"]: node_id for node_id, node in workflow.prompt.items()}
    change(workflow.prompt, ids)
    return workflow


BAD = {
    "a missing node": (lambda p, i: p.pop(i["GLMImageLoadVAE"]), "vae is linked to node .*, which is missing"),
    "an unknown node": (lambda p, i: p[i["GLMImageVAEDecode"]].update(class_type="Nowhere"), "no such node here: Nowhere"),
    "an unknown output": (lambda p, i: p[i["SaveImage"]].update(class_type="Nowhere"), "no output.*no such node here"),
    "an empty prompt": (
        lambda p, i: p[i["GLMImagePrompt"]]["inputs"].update(prompt=" "),
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
            "names no file in it",
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
    set_input(workflow, "GLMImagePrompt", prompt="a house <|image|>")
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


# Nodes that fail


def failing(where: str, error: BaseException) -> dict:
    """The nodes, with Upscale Image raising an error in one of its methods."""
    stock = ALL_NODES["ImageScale"]

    def fail(*arguments, **values):
        raise error

    methods = {"VALIDATE_INPUTS": staticmethod(lambda width, folders: fail())} if where == "VALIDATE_INPUTS" else {where: fail}
    if where in ("INPUT_TYPES", "IS_CHANGED"):
        methods = {where: classmethod(fail)}
    return ALL_NODES | {"ImageScale": type("Failing", (stock,), methods)}


def scaled(**values) -> Workflow:
    inputs = {"image": ["1", 0], "upscale_method": "bilinear", "width": 8, "height": 8, "crop": "disabled"} | values
    return Workflow(
        {
            "1": {"class_type": "LoadImage", "inputs": {"image": "glm-image-shapes.png"}},
            "2": {"class_type": "ImageScale", "inputs": inputs},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
        }
    )


class Unforeseen(Exception):
    """Of a class that nothing here knows."""


@pytest.mark.parametrize("where", ["scale", "VALIDATE_INPUTS", "INPUT_TYPES"])
@pytest.mark.parametrize("error", [Unforeseen("words"), KeyError("words"), MemoryError("words"), RecursionError("words")])
def test_any_exception_of_a_node_or_of_its_check_names_the_node(where, error, folders):
    pictures = Folders(ROOT / "workflows" / "input", folders.output, [])
    with pytest.raises(NodeError, match=rf"node 2 \(ImageScale\).*{type(error).__name__}: '?words") as raised:
        Runner(failing(where, error), pictures).run(scaled())
    assert raised.value.__cause__ is error
    assert where != "VALIDATE_INPUTS" or "width" in str(raised.value)


def test_an_interruption_is_no_exception_of_a_node(folders):
    pictures = Folders(ROOT / "workflows" / "input", folders.output, [])
    with pytest.raises(KeyboardInterrupt):
        Runner(failing("scale", KeyboardInterrupt()), pictures).run(scaled())


def test_a_library_that_cannot_be_imported_is_told_with_the_first_cause(folders):
    first = RuntimeError("operator torchvision::nms does not exist")
    second = ModuleNotFoundError("Could not import module 'PreTrainedModel'")
    second.__cause__, last = first, RuntimeError("Failed to import diffusers")
    last.__cause__ = second
    pictures = Folders(ROOT / "workflows" / "input", folders.output, [])
    with pytest.raises(NodeError, match="does not fit this torch: reinstall torchvision"):
        Runner(failing("scale", last), pictures).run(scaled())


def test_a_chain_of_3000_nodes_is_checked_and_ordered(folders):
    prompt = {"0": {"class_type": "PrimitiveInt", "inputs": {"value": 5}}}
    prompt |= {str(i): {"class_type": "PrimitiveInt", "inputs": {"value": [str(i - 1), 0]}} for i in range(1, 3000)}
    prompt["3000"] = {"class_type": "PreviewAny", "inputs": {"source": ["2999", 0]}}
    assert Run(Workflow(prompt), ALL_NODES, folders).check() == [str(i) for i in range(3001)]


def test_the_longest_chain_runs_first_so_that_loaders_run_late(folders):
    order = Run(shipped("text_to_image"), ALL_NODES, folders)
    ids = order.check()
    classes = [order.prompt[node_id]["class_type"] for node_id in ids]
    assert classes.index("GLMImageGeneratePrior") < classes.index("GLMImageLoadDiT") < classes.index("GLMImageLoadVAE")
    assert all(ids.index(source) < ids.index(node_id) for node_id in ids for source in order.sources(node_id))


# Values


def test_a_name_in_a_folder_is_found_however_windows_spells_it(folders):
    class Choice:
        RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "run", True

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"name": (["sub/my lora.safetensors", "back\\slash"],)}}

    def checked(name):
        workflow = Workflow({"1": {"class_type": "Choice", "inputs": {"name": name}}})
        Run(workflow, {"Choice": Choice}, folders).check()
        return workflow.prompt["1"]["inputs"]["name"]

    assert checked("sub\\my lora.safetensors") == "sub/my lora.safetensors"
    assert checked("back\\slash") == "back\\slash"  # known as it is
    with pytest.raises(WorkflowError, match="must be one of"):
        checked("sub\\other")


@pytest.mark.parametrize("value", [None, [], ["a"], {}, {"a": 1}])
def test_what_is_no_text_is_no_prompt(value, runner):
    workflow = shipped("text_to_image")
    set_input(workflow, "GLMImagePrompt", prompt=value)
    with pytest.raises(WorkflowError, match="prompt is .*, which is no STRING"):
        runner.run(workflow)


@pytest.mark.parametrize("value", [5, True, None, {}])
def test_a_choice_that_is_no_text_is_refused_also_where_the_class_checks_its_choices(value, runner):
    workflow = shipped("separate_loaders")
    set_input(workflow, "GLMImageLoadVAE", checkpoint=value)
    with pytest.raises(WorkflowError, match="Load GLM-Image VAE.: checkpoint is"):
        runner.run(workflow)


# Loaders of several models


def test_a_loader_of_several_models_loads_each_when_it_is_needed_and_lets_it_go(folders, runner):
    workflow = shipped("text_to_image")
    (loader,) = (node_id for node_id, node in workflow.prompt.items() if node["class_type"] == "GLMImageLoad")
    runner.run(workflow)
    ran = runner.executed
    parts = [node_id for node_id in ran if node_id.startswith(f"{loader}:")]
    assert sorted(parts) == [f"{loader}:{part}" for part in ("ar", "glyph_encoder", "model", "vae")]
    planned = next(node_id for node_id, node in workflow.prompt.items() if node["class_type"] == "GLMImageGeneratePrior")
    assert ran.index(f"{loader}:ar") < ran.index(planned) < ran.index(f"{loader}:model")
    assert loader in workflow.prompt and not set(parts) & set(workflow.prompt)  # pictures carry the graph as it was


def test_a_loader_of_several_models_gives_what_the_loaders_of_each_give(folders, runner):
    for name in ("text_to_image", "separate_loaders"):
        runner.run(shipped(name))
    one, other = (Image.open(path).tobytes() for path in folders.written)
    assert one == other
