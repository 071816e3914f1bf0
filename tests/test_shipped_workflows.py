"""The shipped workflow files: complete, in both formats, and each paints."""

import json
import subprocess
import sys

import pytest
import transformers
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.workflow import read_workflow
from glm_image_pack.glmimage_core.glm_image.files.components import NANO as BUILT_IN
from glm_image_pack.workflows import template_file
from PIL import Image

from shipped import (
    ADDED,
    COGVIEW3,
    NAMES,
    NANO,
    ROOT,
    SIZES,
    SMALL,
    STOCK_SAMPLERS,
    UNPLANNED,
    WITH_SERVER,
    WITH_VLM,
    api_file,
    saved,
    shipped,
)

needs_glmga = pytest.mark.skipif(not hasattr(transformers, "GlmgaConfig"), reason="this transformers has no Glmga")
HEADLESS = [pytest.param(name, marks=[needs_glmga]) if name in WITH_VLM else name for name in NAMES if name not in WITH_SERVER]


def test_there_are_the_promised_workflows():
    text = ["one_node", "text_to_image", "variations", "same_prior_new_seed", "lora", "separate_loaders"]
    edits = ["image_edit", "several_references", "restyle"]
    assert sorted([*text, *edits, *NANO, *WITH_VLM, *COGVIEW3, *STOCK_SAMPLERS, *WITH_SERVER]) == NAMES


def test_every_node_is_in_a_workflow():
    files = (ROOT / "workflows").glob("*.json")
    used = {node["type"] for path in files for node in json.loads(path.read_text("utf-8"))["nodes"]}
    # One needs a vision-language model beside painted sketches; what the other does, Apply Prior does by itself.
    apart = {"GLMImageChooseByText", "GLMImagePriorFromLatent"}
    assert {name for name in ALL_NODES if name.startswith("GLMImage")} - used == apart


@pytest.mark.parametrize("name", HEADLESS)
def test_both_formats_of_a_workflow_are_one_graph_and_as_the_script_writes_them(name, tmp_path):
    ui = read_workflow(template_file(name), ALL_NODES)
    api = read_workflow(api_file(name), ALL_NODES)
    assert ui.prompt == api.prompt and ui.ui and not api.ui


def test_the_script_writes_the_shipped_files(tmp_path):
    program = (
        "import runpy, sys, pathlib\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        f"runpy.run_path({str(ROOT / 'scripts' / 'make_workflows.py')!r})['write'](pathlib.Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    for path in [*(ROOT / "workflows").glob("*.json"), *(ROOT / "workflows" / "api").glob("*.json")]:
        assert (tmp_path / path.relative_to(ROOT / "workflows")).read_text("utf-8") == path.read_text("utf-8")


@pytest.mark.parametrize("name", [name for name in HEADLESS if name not in [*COGVIEW3, *UNPLANNED, "one_node"]])
def test_a_shipped_workflow_types_its_prompt_once_and_names_the_checkpoint(name):
    workflow = shipped(name)
    reading = ("GLMImageEncodePrompt", "GLMImageGeneratePrior")
    texts = [node["inputs"]["prompt"] for node in workflow.prompt.values() if node["class_type"] in reading]
    assert len(texts) == 2 and texts[0] == texts[1] and isinstance(texts[0], list)
    loaders = [node for node in workflow.prompt.values() if node["class_type"].startswith("GLMImageLoad")]
    vlms = {node["inputs"]["checkpoint"] for node in loaders if node["class_type"] == "GLMImageLoadVLM"}
    assert vlms == ({"Glmga"} if name in WITH_VLM else set())
    checkpoints = {node["inputs"].get("checkpoint") for node in loaders if node["class_type"] != "GLMImageLoadVLM"} - {None}
    assert checkpoints == {BUILT_IN if name in NANO else "GLM-Image"}


@pytest.mark.parametrize("kind", ["api", "ui"])
@pytest.mark.parametrize("name", HEADLESS)
def test_a_shipped_workflow_paints(name, kind, runner, folders):
    workflow = shipped(name, kind)
    runner.run(workflow)
    count = {"variations": 4, "same_prior_new_seed": 2}.get(name, 1)
    assert len(saved(folders)) == count
    pictures = {Image.open(path).tobytes() for path in saved(folders)}
    assert len(pictures) == count
    assert all(Image.open(path).size == SIZES.get(name, (256, 288)) for path in saved(folders))


@pytest.mark.parametrize("name", ["text_to_image", "image_edit"])
def test_workflows_that_were_shared_before_inputs_were_added_are_the_same_graph(name, runner, folders):
    """As released in version 1: what the nodes have now and had not then has its default."""
    old = ROOT / "tests" / "data" / "workflows"
    ui, api = (read_workflow(old / f"{name}-1{suffix}.json", ALL_NODES) for suffix in ("", "-api"))
    for node_id, node in ui.prompt.items():
        assert node["inputs"] == api.prompt[node_id]["inputs"] | ADDED.get(node["class_type"], {})
    for node in api.prompt.values():
        node["inputs"] |= {key: value for key, value in SMALL.items() if key in node["inputs"]}
    runner.run(api)
    assert len(folders.written) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_has_a_thumbnail(name):
    with Image.open(template_file(name).with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 256
