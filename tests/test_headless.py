"""Workflow files without ComfyUI: formats, checks, running, saving, the command line."""

import gc
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from glm_image_pack.cli.graph.errors import NodeError
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.runner import Runner
from glm_image_pack.cli.graph.stock import STOCK_NODES, Folders
from glm_image_pack.cli.graph.workflow import Workflow, WorkflowError, parse_workflow, read_workflow
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.checkpoints import build
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.files.components import NANO as BUILT_IN
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pictures import pattern

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
NANO = ["nano", "nano_edit"]  # with the built-in model
WITH_SERVER = ["enhance_prompt_api", "remote"]  # which run in tests/test_language.py and tests/test_remote.py
COMFYUI_ONLY = ["custom_sampler", "stock_sampler"]
WITH_VLM = ["enhance_prompt", "describe"]
COGVIEW3 = ["cogview3_plus", "cogview3_base"]
needs_glmga = pytest.mark.skipif(not hasattr(transformers, "GlmgaConfig"), reason="this transformers has no Glmga")
HEADLESS = [
    pytest.param(name, marks=[needs_glmga]) if name in WITH_VLM else name
    for name in NAMES
    if name not in [*COMFYUI_ONLY, *WITH_SERVER]
]
SMALL = {"width": 256, "height": 288, "steps": 2, "megapixels": 0.25, "max_tokens": 64, "relay_steps": 1}
SIZES = {
    "cogview3_plus": (512, 544),
    "cogview3_base": (512, 576),
    "restyle": (576, 448),
    "stock_sampler": (672, 384),
    "custom_sampler": (448, 576),
}  # of the others: 256 x 288


def shipped(name: str, kind: str = "api") -> Workflow:
    """A shipped workflow at a size for tests."""
    workflow = read_workflow(ROOT / "workflows" / ("api" if kind == "api" else "") / f"{name}.json", ALL_NODES)
    for node in workflow.prompt.values():
        small = dict(SMALL)
        if node["class_type"] == "GLMImageCogView3Sampler":
            small |= dict(zip(("width", "height"), SIZES["cogview3_plus"], strict=True))
        for key, value in small.items():
            if not isinstance(node["inputs"].get(key, []), list):  # neither absent nor linked
                node["inputs"][key] = value
    return workflow


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders(ROOT / "workflows" / "input", tmp_path / "output", [])


@pytest.fixture
def runner(folders):
    return Runner(ALL_NODES, folders, keep=True)


def saved(folders: Folders) -> list[Path]:
    """What was written and is no preview."""
    return [path for path in folders.written if path.parent.name != "preview"]


def set_input(workflow: Workflow, class_type: str, **values) -> None:
    for node in workflow.prompt.values():
        if node["class_type"] == class_type:
            node["inputs"] |= values


def ran(runner: Runner, workflow: Workflow) -> set[str]:
    return {workflow.prompt[node_id]["class_type"] for node_id in runner.executed}


# Shipped workflows


def test_there_are_the_promised_workflows():
    text = ["text_to_image", "variations", "same_prior_new_seed", "lora"]
    edits = ["image_edit", "several_references", "restyle"]
    assert sorted([*text, *edits, *NANO, *WITH_VLM, *COGVIEW3, *COMFYUI_ONLY, *WITH_SERVER]) == NAMES


@pytest.mark.parametrize("name", COMFYUI_ONLY)
def test_a_workflow_for_comfyui_only_is_refused_by_name(name, runner):
    with pytest.raises(ValueError, match="no such node here: .*VAEDecode; run the workflow in ComfyUI"):
        runner.run(read_workflow(ROOT / "workflows" / "api" / f"{name}.json", ALL_NODES))


def test_every_node_is_in_a_workflow():
    files = (ROOT / "workflows").glob("*.json")
    used = {node["type"] for path in files for node in json.loads(path.read_text("utf-8"))["nodes"]}
    assert {name for name in ALL_NODES if name.startswith("GLMImage")} <= used


@pytest.mark.parametrize("name", HEADLESS)
def test_both_formats_of_a_workflow_are_one_graph_and_as_the_script_writes_them(name, tmp_path):
    ui = read_workflow(ROOT / "workflows" / f"{name}.json", ALL_NODES)
    api = read_workflow(ROOT / "workflows" / "api" / f"{name}.json", ALL_NODES)
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


@pytest.mark.parametrize("name", [name for name in HEADLESS if name not in COGVIEW3])
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


ADDED = {  # since version 1
    "GLMImageSampler": {"sampler_name": "euler", "cfg_start": 0.0, "cfg_end": 1.0, "step_cache": 0.0},
    "GLMImageLoadDiT": {"attention": "auto", "compile": False, "device": "default"},
} | {f"GLMImageLoad{model}": {"device": "default"} for model in ("AR", "GlyphEncoder", "VAE")}


@pytest.mark.parametrize("name", ["text_to_image", "image_edit"])
def test_workflows_that_were_shared_before_inputs_were_added_are_the_same_graph(name, runner, folders):
    """As released in version 1: what the nodes have now and had not then has its default."""
    old = ROOT / "tests" / "data" / "workflows"
    ui, api = (read_workflow(old / f"{name}-1{suffix}.json", ALL_NODES) for suffix in ("", "-api"))
    now = read_workflow(ROOT / "workflows" / "api" / f"{name}.json", ALL_NODES)
    for node_id, node in now.prompt.items():
        added = ADDED.get(node["class_type"], {})
        assert node["inputs"] == api.prompt[node_id]["inputs"] | added
        assert node["inputs"] == added | ui.prompt[node_id]["inputs"]
    for node in api.prompt.values():
        node["inputs"] |= {key: value for key, value in SMALL.items() if key in node["inputs"]}
    runner.run(api)
    assert len(folders.written) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_has_a_thumbnail(name):
    with Image.open(ROOT / "workflows" / f"{name}.jpg") as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 256


# Running again


def test_a_new_sampler_seed_leaves_the_ar_stage_alone(runner):
    workflow = shipped("text_to_image")
    runner.run(workflow)
    assert "GLMImageGeneratePrior" in ran(runner, workflow)
    runner.run(workflow)
    assert runner.executed == []
    set_input(workflow, "GLMImageSampler", seed=1)
    runner.run(workflow)
    assert ran(runner, workflow) == {"GLMImageSampler", "GLMImageVAEDecode", "SaveImage"}


def test_a_second_edit_with_the_same_reference_does_not_run_it_again(runner, monkeypatch):
    from glm_image_pack.glmimage_core.glm_image import reference_cache as caching

    runs = []
    original = caching.reference_keys_values
    monkeypatch.setattr(caching, "reference_keys_values", lambda dit, reference: runs.append(1) or original(dit, reference))
    workflow = shipped("image_edit")
    runner.run(workflow)
    set_input(workflow, "PrimitiveStringMultiline", value="another edit")
    runner.run(workflow)
    assert {"GLMImageGeneratePrior", "GLMImageSampler"} < ran(runner, workflow)
    assert "GLMImageEncodeReference" not in ran(runner, workflow)
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
    assert {"LoadImage", "GLMImageEncodeReference", "GLMImageGeneratePrior"} < ran(runner, workflow)


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
    assert "GLMImageGeneratePrior" not in ran(runner, workflow) and len(folders.written) == 1


# UI format


def graph(*nodes, links=()) -> dict:
    return {"nodes": list(nodes), "links": list(links), "version": 0.4}


def node(node_id, node_type, inputs=(), values=(), mode=0, outputs=()):
    slots = [{"name": name, "type": kind, "link": link} for name, kind, link in inputs]
    out = [{"name": kind, "type": kind, "links": []} for kind in outputs]
    return {"id": node_id, "type": node_type, "inputs": slots, "widgets_values": list(values), "mode": mode, "outputs": out}


LOAD = node(1, "LoadImage", values=["a.png", "image"], outputs=["IMAGE", "MASK"])
SAVE = node(9, "SaveImage", inputs=[("images", "IMAGE", 2)], values=["out"])


def test_reroutes_notes_and_frontend_primitives_dissolve():
    ui = graph(
        LOAD,
        node(2, "Reroute", inputs=[("", "*", 1)], outputs=["*"]),
        node(3, "Note", values=["hello"]),
        node(4, "PrimitiveNode", values=["typed once", "fixed"], outputs=["STRING"]),
        node(9, "SaveImage", inputs=[("images", "IMAGE", 2), ("filename_prefix", "STRING", 3)], values=["out"]),
        links=[[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 9, 0, "IMAGE"], {"id": 3, "origin_id": 4, "origin_slot": 0}],
    )
    prompt = parse_workflow(ui, ALL_NODES).prompt
    assert set(prompt) == {"1", "9"}
    assert prompt["9"]["inputs"] == {"images": ["1", 0], "filename_prefix": "typed once"}


def test_a_muted_node_drops_out_and_a_bypassed_one_hands_through():
    def middle(mode):
        return node(5, "GLMImageVAEDecode", inputs=[("vae", "VAE", None), ("samples", "IMAGE", 1)], mode=mode, outputs=["IMAGE"])

    links = [[1, 1, 0, 5, 1, "IMAGE"], [2, 5, 0, 9, 0, "IMAGE"]]
    assert parse_workflow(graph(LOAD, middle(4), SAVE, links=links), ALL_NODES).prompt["9"]["inputs"]["images"] == ["1", 0]
    assert "images" not in parse_workflow(graph(LOAD, middle(2), SAVE, links=links), ALL_NODES).prompt["9"]["inputs"]


def test_the_entry_after_a_seed_is_skipped_and_later_inputs_have_their_defaults():
    values = ["p", 512, 640, 2, 77, "randomize", 0.5]
    prompt = parse_workflow(graph(node(3, "GLMImageGeneratePrior", values=values)), ALL_NODES).prompt
    expected = {
        "prompt": "p",
        "width": 512,
        "height": 640,
        "batch_size": 2,
        "seed": 77,
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 50,
    }
    assert prompt["3"]["inputs"] == expected


def test_a_subgraph_unfolds_as_in_the_frontend():
    """The image edit with its middle folded into a subgraph, as ComfyUI's frontend saved it and as it queued it."""
    data = json.loads((ROOT / "tests" / "data" / "subgraph.json").read_text("utf-8"))
    prompt = parse_workflow(data["ui"], ALL_NODES).prompt
    assert {node_id: node["inputs"] for node_id, node in prompt.items()} == {
        node_id: node["inputs"] | ADDED.get(node["class_type"], {}) for node_id, node in data["prompt"].items()
    }
    (folded,) = (node for node in data["ui"]["nodes"] if node["id"] == 15)
    folded["widgets_values_named"]["seed"] = 77
    assert parse_workflow(data["ui"], ALL_NODES).prompt["15:10"]["inputs"]["seed"] == 77
    data["ui"]["definitions"]["subgraphs"][0]["nodes"].append({"id": 99, "type": folded["type"], "inputs": []})
    with pytest.raises(WorkflowError, match="damaged"):  # a subgraph within itself
        parse_workflow(data["ui"], ALL_NODES)


def test_a_picture_carries_its_workflow_and_paints_itself_again(runner, folders, tmp_path):
    runner.run(shipped("text_to_image", "ui"))
    with Image.open(folders.written[0]) as picture:
        assert set(picture.text) == {"prompt", "workflow"}
    again = read_workflow(folders.written[0], ALL_NODES)
    Runner(ALL_NODES, folders).run(again)
    first, second = (Image.open(path).tobytes() for path in folders.written)
    assert first == second
    only_ui = tmp_path / "ui.png"
    info = Image.open(folders.written[0])
    text = PngInfo()
    text.add_text("workflow", info.text["workflow"])
    info.save(only_ui, pnginfo=text)
    assert read_workflow(only_ui, ALL_NODES).prompt.keys() == again.prompt.keys()


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
    "no output": (lambda p, i: p.pop(i["SaveImage"]), "no output"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_workflow_is_refused_before_anything_runs(name, runner, folders):
    change, message = BAD[name]
    with pytest.raises(WorkflowError, match=message) as error:
        runner.run(broken(change))
    assert "\n" not in str(error.value)
    assert runner.executed == [] and not folders.output.exists()


@pytest.mark.parametrize(
    ("image", "message"),
    [("../pyproject.toml", "leaves the folder"), ("/etc/passwd", "leaves the folder"), ("none.png", "no picture 'none.png'")],
)
def test_a_reference_outside_the_input_folder_is_refused(runner, image, message):
    workflow = shipped("image_edit")
    set_input(workflow, "LoadImage", image=image)
    with pytest.raises(WorkflowError, match=message):
        runner.run(workflow)


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


def test_a_file_name_may_come_from_a_primitive(runner, folders):
    workflow = shipped("image_edit")
    workflow.prompt["50"] = {"class_type": "PrimitiveString", "inputs": {"value": "glm-image-mug.png"}}
    set_input(workflow, "LoadImage", image=["50", 0])
    runner.run(workflow)
    assert len(folders.written) == 1
    workflow.prompt["50"]["inputs"]["value"] = "../secret.png"
    with pytest.raises(WorkflowError, match="leaves the folder"):
        runner.run(workflow)


def test_text_can_be_previewed(runner, capsys):
    workflow = shipped("text_to_image")
    (encode,) = (node_id for node_id, node in workflow.prompt.items() if node["class_type"] == "GLMImageEncodePrompt")
    workflow.prompt["50"] = {"class_type": "PreviewAny", "inputs": {"source": [encode, 2]}}
    runner.run(workflow)
    assert "THE LAST PAGE" in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "value", "expected"), [("I;16", 128 * 257, 128), ("L", 128, 128), ("P", 0, 0), ("RGBA", 0, 0)])
def test_pictures_of_any_mode_are_loaded(tmp_path, mode, value, expected):
    Image.new(mode, (40, 30), value).save(tmp_path / "picture.png")
    image, mask = STOCK_NODES["LoadImage"]().load("picture.png", Folders(tmp_path, tmp_path, []))
    assert image.shape == (1, 30, 40, 3)
    assert abs(float(image.mean()) * 255 - expected) <= 1
    assert mask.shape == ((1, 30, 40) if mode == "RGBA" else (1, 64, 64))


def test_a_masked_part_of_a_picture_is_kept(runner, folders, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    picture = pattern(256, 288, 3).convert("RGBA")
    picture.putalpha(Image.new("L", picture.size, 255))
    picture.paste((0, 0, 0, 0), (128, 0, 256, 288))  # the transparent half may change
    picture.save(source / "in.png")
    runner.folders = Folders(source, folders.output, [])
    workflow = shipped("text_to_image")
    ids = {node["class_type"]: node_id for node_id, node in workflow.prompt.items()}
    more = {
        "50": ("LoadImage", {"image": "in.png"}),
        "51": ("GLMImageVAEEncode", {"vae": [ids["GLMImageLoadVAE"], 0], "image": ["50", 0]}),
        "52": ("SetLatentNoiseMask", {"samples": ["51", 0], "mask": ["50", 1]}),
    }
    workflow.prompt |= {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in more.items()}
    set_input(workflow, "GLMImageSampler", latent_image=["52", 0], denoise=0.8)
    runner.run(workflow)
    assert len(runner.folders.written) == 1


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"a": 1}', '{"1": {"inputs": {}}}', "{", '{"nodes": [{"id": 1}], "links": []}', "\x00"]
)
def test_a_file_that_is_no_workflow_says_so(tmp_path, content):
    path = tmp_path / "workflow.json"
    path.write_text(content)
    with pytest.raises(WorkflowError):
        read_workflow(path, ALL_NODES)


def test_a_picture_without_a_workflow_says_so(tmp_path):
    pattern(64, 64, 3).save(tmp_path / "plain.png")
    with pytest.raises(WorkflowError, match="carries no workflow"):
        read_workflow(tmp_path / "plain.png", ALL_NODES)


# The command line


PROGRESS = re.compile(r"[A-Z][A-Za-z, ]+: \d+/\d+")


class Command:
    """The command line, called in this process."""

    def __init__(self, capsys):
        self.capsys = capsys

    def __call__(self, *arguments) -> "Command":
        self.status = main([str(argument) for argument in arguments])
        self.stdout, stderr = self.capsys.readouterr()
        self.progress = [line for line in stderr.splitlines() if PROGRESS.fullmatch(line)]
        self.messages = [line for line in stderr.splitlines() if not PROGRESS.fullmatch(line)]
        return self


@pytest.fixture
def command(capsys):
    return Command(capsys)


def render(models, output, *more, workflow="text_to_image") -> list:
    """Arguments that render a shipped workflow at a size for tests."""
    arguments = ["render", ROOT / "workflows" / "api" / f"{workflow}.json", "--models", models, "--output", output]
    arguments += ["--input", ROOT / "workflows" / "input", "--set", "GLM-Image Sampler.steps=2"]
    return [*arguments, "--set", "GLM-Image Generate Prior.width=256", "--set", "GLM-Image Generate Prior.height=288", *more]


def test_a_bypassed_node_can_be_switched_on(models, folder, tmp_path, command):
    from safetensors.torch import save_file

    layer = "transformer.transformer_blocks.0.attn1.to_v"
    width = checkpoints.load_dit(folder).model.transformer_blocks[0].attn1.to_v.weight.shape[0]
    (models / "loras").mkdir(exist_ok=True)
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, width), f"{layer}.lora_B.weight": torch.ones(width, 2)}
    save_file(tensors, models / "loras" / "mine.safetensors")
    small = [f"--set=GLM-Image {key}" for key in ("Generate Prior.width=256", "Generate Prior.height=256", "Sampler.steps=2")]
    workflow, pictures = str(ROOT / "workflows" / "lora.json"), []
    choose = "--set=Load GLM-Image LoRA.lora_name=mine.safetensors"
    for extra in ([], ["--enable", "Load GLM-Image LoRA", choose]):
        ran = command("render", workflow, "--models", str(models), "--output", str(tmp_path / str(len(pictures))), *small, *extra)
        assert ran.status == 0, ran.messages
        pictures.append(Image.open(ran.stdout.split()[-1]).tobytes())
    assert pictures[0] != pictures[1]
    for enable, message in (("Prompt", "those are: .*Load GLM-Image LoRA"), ("nobody", "not one node that is switched off")):
        ran = command("render", workflow, "--models", str(models), "--enable", enable)
        assert ran.status == 2 and re.search(message, ran.messages[-1])
    ran = command("render", str(ROOT / "workflows" / "api" / "lora.json"), "--models", str(models), "--enable", "1")
    assert ran.status == 2 and "give the UI format" in ran.messages[-1]


def process(*arguments, **options) -> subprocess.CompletedProcess:
    """The command line in a process of its own."""
    return subprocess.run([sys.executable, str(ROOT), *map(str, arguments)], capture_output=True, text=True, **options)


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "output"


def test_render_prints_each_written_path_and_keeps_progress_apart(models, output, command):
    command(*render(models, output))
    assert command.status == 0 and command.messages == []
    (path,) = command.stdout.splitlines()
    with Image.open(path) as picture:
        assert picture.size == (256, 288)
    assert {"Generate Prior: 312/312", "Sampler: 2/2"} < set(command.progress)
    assert command(*render(models, output)).stdout.splitlines() == [path.replace("00001", "00002")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "GLM-Image Sampler.steps=0"], "node 10 (GLM-Image Sampler): steps is 0"),
        (["--set", "10.cfg=high"], "node 10 (GLM-Image Sampler): cfg is 'high', which is no FLOAT"),
        (["--set", "GLM-Image Sampler.stepz=1"], "no input 'stepz'"),
        (["--set", "Nobody.steps=1"], "no node has the id or title 'Nobody'"),
        (["--set", "nonsense"], "NODE.INPUT=VALUE"),
        (["--set", "GLM-Image Generate Prior.width=1000"], "992 or 1024"),
        (["--set", "Prompt.value="], "GLM-Image Generate Prior): width, height, prompt: the prompt is empty"),
        (["--models", "nowhere"], "no GLM-Image checkpoint 'GLM-Image' in nowhere/diffusers"),
    ],
)
def test_a_wrong_value_exits_with_2_and_one_line(models, output, command, more, message):
    command(*render(models, output, *more))
    assert command.status == 2 and command.stdout == ""
    assert len(command.messages) == 1 and message in command.messages[0]


def test_a_changed_workflow_does_not_carry_the_graph_it_no_longer_is(models, output, command):
    path = command(*render(models, output)).stdout.strip()
    assert set(Image.open(path).text) == {"prompt"}


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_refused_before_anything_runs(models, output, command, device):
    command(*render(models, output, "--device", device))
    assert command.status == 2 and command.progress == []
    assert len(command.messages) == 1 and f"--device {device} cannot be used" in command.messages[0]


def test_two_processes_never_write_one_file(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from glm_image_pack.cli.graph.stock import _write_whole

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda i: _write_whole(tmp_path / "x", pattern(32, 32, i), PngInfo()), range(24)))
    assert len(set(paths)) == 24 and sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_title_that_several_nodes_have_is_refused(models, output, command):
    workflow = ROOT / "workflows" / "api" / "several_references.json"
    command("render", workflow, "--models", models, "--set", "GLM-Image Encode Reference.image=x")
    assert command.status == 2 and "all have the id or title" in command.messages[0]


def test_a_full_disk_names_the_file_and_leaves_no_part_of_it(models, output):
    def limit():  # no file may grow beyond this, as if the disk were full
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = process(*render(models, output), preexec_fn=limit)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "text_to_image_00001_.png" in last and "Save Image" in last
    assert [path for path in output.rglob("*") if path.is_file()] == []


def test_inspect_describes_a_checkpoint(folder, command):
    command("inspect", folder, "--width", 512, "--height", 512)
    assert command.status == 0
    for word in ("vision_language_encoder", "transformer", "267,648", "float32", "peak, one model at a time"):
        assert word in command.stdout


def test_inspect_says_what_is_broken(folder, tmp_path, command):
    shutil.copytree(folder, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "vae")
    file = next((tmp_path / "broken" / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    assert command("inspect", tmp_path / "broken").status == 1
    assert "vae/config.json is missing" in command.stdout and "truncated or corrupt" in command.stdout
    assert command("inspect", tmp_path / "nothing").status == 2


def test_tiny_writes_a_checkpoint_that_renders_and_does_not_overwrite(tmp_path, output, command):
    folder = tmp_path / "models" / "diffusers" / "GLM-Image"
    assert command("tiny", folder).status == 0
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5_000_000
    assert command(*render(tmp_path / "models", output, workflow="image_edit")).status == 0
    assert command("tiny", folder).status == 2 and "not empty" in command.messages[0]


def test_the_command_line_runs_from_anywhere(models, output, tmp_path):
    done = process(*render(models, output), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_library_missing_is_named(models, output, command, monkeypatch):
    def version(name):
        if name == "diffusers":
            raise build.PackageNotFoundError(name)
        return "99.0"

    monkeypatch.setattr(build, "version", version)
    assert command(*render(models, output)).status == 2
    assert "pip install -U diffusers" in command.messages[0]
