"""`render --nano`: any graph of GLM-Image runs on the built-in model."""

import json

import pytest
from glm_image_pack.cli.graph.errors import WorkflowError
from glm_image_pack.cli.graph.nano import LOADERS, run_on_nano
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.runner import Run
from glm_image_pack.cli.graph.workflow import Workflow, parse_workflow, read_workflow
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.glm_image.files.components import NANO
from glm_image_pack.workflows import template_file
from PIL import Image

from blueprints import EDIT, INPAINT, TEXT_TO_IMAGE, placed
from shipped import COGVIEW3, NAMES

WITHOUT_GLM_IMAGE = [*COGVIEW3, "remote"]
ON_NANO = [name for name in NAMES if name not in WITHOUT_GLM_IMAGE]


def shipped(name: str) -> Workflow:
    return read_workflow(template_file(name), ALL_NODES)


def on_nano(prompt: dict) -> dict:
    run_on_nano(workflow := Workflow(prompt), ALL_NODES)
    return workflow.prompt


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


@pytest.mark.parametrize("name", ON_NANO)
def test_every_shipped_workflow_of_glm_image_can_run_with_nano_in_float32(name, folders):
    run_on_nano(workflow := shipped(name), ALL_NODES)
    run = Run(workflow, ALL_NODES, folders)
    ran = [run.prompt[node_id] for node_id in run.check()]
    loaders = [node for node in ran if node["class_type"] in LOADERS]
    unused = {"GLMImageLoadAR"} if name == "load_plan" else set()  # its plan is there already
    assert {node["class_type"] for node in loaders} == set(LOADERS) - {"GLMImageLoad"} - unused  # which runs as its parts
    assert {(node["inputs"]["checkpoint"], node["inputs"]["dtype"]) for node in loaders} == {(NANO, "float32")}
    assert workflow.ui is None  # the saved picture does not carry another graph than the one that ran


@pytest.mark.parametrize(("name", "pictures"), [(TEXT_TO_IMAGE, {}), (EDIT, ["image"]), (INPAINT, ["image", "mask"])])
def test_a_blueprint_can_run_with_nano(name, pictures, folders):
    ui = placed(name, dict.fromkeys(pictures, "glm-image-shapes.png"), quantization="nf4", checkpoint="not here")
    run_on_nano(workflow := parse_workflow(ui, ALL_NODES), ALL_NODES)
    Run(workflow, ALL_NODES, folders).check()
    assert {node["inputs"].get("quantization", "none") for node in workflow.prompt.values()} == {"none"}


@pytest.mark.parametrize("name", WITHOUT_GLM_IMAGE)
def test_a_workflow_without_glm_image_is_refused(name):
    with pytest.raises(WorkflowError, match="--nano: the workflow loads no model of GLM-Image"):
        run_on_nano(shipped(name), ALL_NODES)


def test_prompt_seeds_and_steps_stay_and_a_size_that_nano_knows_too(caplog):
    before = json.loads(json.dumps(shipped("nano_edit").prompt))
    assert on_nano(shipped("nano_edit").prompt) == before
    assert not caplog.records


def test_a_size_becomes_the_nearest_of_nano_wherever_it_is_typed(caplog):
    prompt = {
        "1": node("GLMImageLoadAR", checkpoint="GLM-Image"),
        "2": node("GLMImageGeneratePrior", width=1728, height=960),
        "3": node("EmptySD3LatentImage", width=1728, height=960),
        "4": node("ImageScale", width=640, height=480),
        "5": node("PrimitiveInt", value=1024),
        "6": node("GLMImageGeneratePrior", width=["5", 0], height=1536),
        "7": node("GLMImageGeneratePrior", width=192, height=384),
    }
    sizes = {key: (one["inputs"].get("width"), one["inputs"].get("height")) for key, one in on_nano(prompt).items()}
    assert sizes["2"] == sizes["3"] == (512, 288) and sizes["4"] == (640, 480) and sizes["7"] == (192, 384)
    assert sizes["6"] == (["5", 0], 512) and prompt["5"]["inputs"]["value"] == 352
    assert "node 2 (GLMImageGeneratePrior): nano knows no 1728x960; 512x288 is taken" in caplog.text


def test_glm_image_size_fits_itself_to_nano():
    for loader, output in (("GLMImageLoadAR", 0), ("GLMImageLoad", 1)):
        prompt = {"7": node(loader), "2": node("GLMImageSize", aspect="1:1", megapixels=1.0)}
        assert on_nano(prompt)["2"]["inputs"] == {"aspect": "1:1", "megapixels": 1.0, "fit": True, "ar": ["7", output]}


def test_loras_are_left_out_one_behind_another(caplog):
    lora = {"lora_name": "x.safetensors", "strength_model": 1.0, "strength_ar": 1.0}
    prompt = {
        "1": node("GLMImageLoadAR"),
        "2": node("GLMImageLoadDiT"),
        "3": node("GLMImageLoadLoRA", model=["4", 0], ar=["4", 1], **lora),
        "4": node("GLMImageLoadLoRA", model=["2", 0], ar=["1", 0], **lora),
        "5": node("GLMImageGeneratePrior", ar=["3", 1]),
        "6": node("GLMImageSampler", model=["3", 0]),
    }
    assert on_nano(prompt)["5"]["inputs"]["ar"] == ["1", 0] and prompt["6"]["inputs"]["model"] == ["2", 0]
    assert prompt.keys() == {"1", "2", "5", "6"} and caplog.text.count("there is no LoRA for nano") == 2


def test_primitives_in_a_circle_are_left_to_the_check_of_the_graph():
    prompt = {
        "1": node("GLMImageLoadAR"),
        "2": node("PrimitiveInt", value=["3", 0]),
        "3": node("PrimitiveInt", value=["2", 0]),
        "4": node("GLMImageGeneratePrior", width=["2", 0], height=1024),
    }
    assert on_nano(prompt)["4"]["inputs"] == {"width": ["2", 0], "height": 1024}


def test_the_command_paints_what_a_rewriter_was_given_and_names_words_that_nano_does_not_know(tmp_path, capsys, caplog):
    typed = ("--set", "Prompt.prompt=A red star and a bookshop.", "--set", "GLM-Image Sampler.steps=1")
    small = ("--set", "GLM-Image Generate Prior.width=192", "--set", "GLM-Image Generate Prior.height=192")
    assert main(["render", "enhance_prompt_api", "--nano", "--output", str(tmp_path), *typed, *small]) == 0
    with Image.open(capsys.readouterr().out.strip()) as picture:
        assert picture.size == (192, 192) and "workflow" not in picture.text
        ran = json.loads(picture.text["prompt"]).values()
    assert {node["inputs"]["checkpoint"] for node in ran if node["class_type"] in LOADERS} == {NANO}
    assert "GLM-Image Enhance Prompt (API)) is left out" in caplog.text and "does not know: bookshop" in caplog.text
