"""The shipped blueprints: nodes of ComfyUI's node library that hold a whole graph of this pack."""

from itertools import combinations

import numpy as np
import pytest
from glm_image_pack.cli.graph.errors import NodeError, WorkflowError
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.stock import Folders
from glm_image_pack.cli.graph.workflow import parse_workflow
from glm_image_pack.glmimage_core.glm_image.files.components import NANO
from glm_image_pack.glmimage_core.images import from_picture, to_pictures
from glm_image_pack.training.drawing import draw
from glm_image_pack.training.reading import read
from PIL import Image, ImageDraw

from blueprints import COGVIEW3, EDIT, FOLDER, INPAINT, NAMES, TEXT_TO_IMAGE, definition_of, file_of, placed
from make_blueprints import write
from shipped import ROOT, saved
from take_pictures import PAINTINGS, STARRED, is_right

OF_GLM_IMAGE = [TEXT_TO_IMAGE, EDIT, INPAINT]
PICTURE = ROOT / "workflows" / "input" / "glm-image-shapes.png"
TITLE_PX = 50  # above a node: its title, and a badge above that
ON_NANO = {"checkpoint": NANO, "steps": 20}
SMALL = {"aspect": "1:1", "megapixels": 0.06}  # 256 x 256
COMBINED = PAINTINGS["several_references"]


@pytest.fixture
def folders(tmp_path) -> Folders:
    """To read: the shapes, the same with a hole over the red circle, which Load Image's mask covers, and a star on yellow."""
    folder = tmp_path / "input"
    folder.mkdir()
    shapes = Image.open(PICTURE).convert("RGB")
    shapes.save(folder / "shapes.png")
    alpha = Image.new("L", shapes.size, 255)
    ImageDraw.Draw(alpha).rectangle((16, 16, 143, 143), fill=0)
    shapes.putalpha(alpha)
    shapes.save(folder / "masked.png")
    to_pictures(draw(STARRED)[None])[0].save(folder / "starred.png")
    return Folders(folder, tmp_path / "output", [])


def inputs_of(prompt: dict, class_type: str) -> dict:
    (node,) = (node for node in prompt.values() if node["class_type"] == class_type)
    return node["inputs"]


def painted(runner, ui: dict) -> Image.Image:
    runner.run(parse_workflow(ui, ALL_NODES))
    return Image.open(saved(runner.folders)[-1]).convert("RGB")


def test_there_are_the_promised_blueprints_as_the_script_writes_them(tmp_path):
    assert sorted([*OF_GLM_IMAGE, COGVIEW3]) == NAMES
    write(tmp_path)
    written = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text("utf-8") for path in FOLDER.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_the_one_node_of_a_file_has_the_inputs_of_its_subgraph(name):
    (host,), definition = file_of(name)["nodes"], definition_of(name)
    assert host["type"] == definition["id"] and host["title"] == definition["name"] == name
    for end in ("inputs", "outputs"):
        ends = [[(slot["name"], slot["type"], slot.get("label")) for slot in slots[end]] for slots in (host, definition)]
        assert ends[0] == ends[1]
    assert [slot["name"] for slot in host["inputs"] if "widget" not in slot] == {
        TEXT_TO_IMAGE: ["image"],
        EDIT: ["image", "image_2", "image_3", "image_4"],
        INPAINT: ["image", "mask"],
    }.get(name, [])


@pytest.mark.parametrize("name", OF_GLM_IMAGE)
def test_a_run_keeps_the_composition_and_changes_the_details(name):
    """The classic renderer shows no control of a seed on a blueprint, so what the nodes inside have decides."""
    seeds = {node["type"]: node["widgets_values"] for node in definition_of(name)["nodes"]}
    assert "fixed" in seeds["GLMImageGeneratePrior"] and "randomize" not in seeds["GLMImageGeneratePrior"]
    assert "randomize" in seeds["GLMImageSampler"] and "fixed" not in seeds["GLMImageSampler"]


@pytest.mark.parametrize("name", NAMES)
def test_every_link_inside_begins_and_ends_at_a_slot_that_knows_it(name):
    definition = definition_of(name)
    nodes = {node["id"]: node for node in definition["nodes"]}
    for link in definition["links"]:
        if link["origin_id"] == -10:
            origin = definition["inputs"][link["origin_slot"]]["linkIds"]
        else:
            origin = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        if link["target_id"] == -20:
            target = definition["outputs"][link["target_slot"]]["linkIds"]
        else:
            target = [nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"]]
        assert link["id"] in origin and link["id"] in target
    assert len({link["id"] for link in definition["links"]}) == len(definition["links"])


@pytest.mark.parametrize("name", NAMES)
def test_widgets_stand_behind_slots_as_older_front_ends_expect_within_a_subgraph(name):
    for node in definition_of(name)["nodes"]:
        widgets = ["widget" in slot for slot in node["inputs"]]
        assert widgets == sorted(widgets)


@pytest.mark.parametrize("name", NAMES)
def test_no_node_inside_lies_over_another_and_each_is_in_its_group(name):
    definition = definition_of(name)
    boxes = [(*node["pos"], *node["size"]) for node in definition["nodes"]]
    for one, other in combinations(boxes, 2):
        beside = one[0] + one[2] <= other[0] or other[0] + other[2] <= one[0]
        apart = one[1] + one[3] <= other[1] - TITLE_PX or other[1] + other[3] <= one[1] - TITLE_PX
        assert beside or apart
    for left, top, width, height in boxes:
        groups = [group["bounding"] for group in definition["groups"]]
        inside = [x <= left and left + width <= x + w and y <= top - TITLE_PX and top + height <= y + h for x, y, w, h in groups]
        assert sum(inside) == 1


@pytest.mark.parametrize("name", OF_GLM_IMAGE)
def test_one_widget_chooses_the_checkpoint_of_all_models_and_each_seed_reaches_its_stage(name):
    seeds = {"composition_seed": 5, "detail_seed": 7}
    typed = {"prompt": "x", "checkpoint": "mine", "quantization": "int8", "steps": 9, **seeds}
    pictures = {"image": "a.png"} if name != TEXT_TO_IMAGE else {}
    prompt = parse_workflow(placed(name, pictures, **typed), ALL_NODES).prompt
    loader = inputs_of(prompt, "GLMImageLoad")
    assert (loader["checkpoint"], loader["quantization"]) == ("mine", "int8")
    prior, sampler = inputs_of(prompt, "GLMImageGeneratePrior"), inputs_of(prompt, "GLMImageSampler")
    assert (prior["seed"], sampler["seed"], sampler["steps"]) == (5, 7, 9)
    assert prior["prompt"] == inputs_of(prompt, "GLMImageEncodePrompt")["prompt"] == "x"
    labels = {slot["name"]: slot.get("label") for slot in definition_of(name)["inputs"]}
    assert (labels["composition_seed"], labels["detail_seed"]) == ("composition seed", "detail seed")


def test_text_to_image_on_nano_shows_what_is_asked_for(runner):
    painting = PAINTINGS["nano"]
    picture = painted(runner, placed(TEXT_TO_IMAGE, prompt=painting.asked.prompt, **ON_NANO, **SMALL))
    assert is_right(painting, [read(from_picture(picture)[0])])


def test_a_blueprint_as_it_is_paints_on_nano_in_a_size_that_nano_knows(runner, caplog):
    picture = painted(runner, placed(TEXT_TO_IMAGE, checkpoint=NANO, steps=1))
    assert picture.size == (512, 512)
    assert "1280x1280 is no size that this model knows; the nearest one is taken: 512x512" in caplog.text


def test_a_picture_gives_its_size_to_one_that_is_made_from_words(runner):
    Image.new("RGB", (320, 192)).save(runner.folders.input / "wide.png")
    values = {"prompt": "a red star", "aspect": "image size", "megapixels": 1.0, "checkpoint": NANO, "steps": 1}
    assert painted(runner, placed(TEXT_TO_IMAGE, {"image": "wide.png"}, **values)).size == (320, 192)
    with pytest.raises(NodeError, match="no image is connected; connect one or choose an aspect"):
        painted(runner, placed(TEXT_TO_IMAGE, **values))


def test_an_edit_of_one_picture_keeps_its_size(runner):
    painting = PAINTINGS["nano_edit"]
    picture = painted(runner, placed(EDIT, {"image": "shapes.png"}, prompt=painting.asked.prompt, **ON_NANO))
    assert picture.size == (256, 256) and is_right(painting, [read(from_picture(picture)[0])])


def test_pictures_are_counted_as_they_are_connected_whichever_slots_stay_empty(runner):
    asked = {"prompt": COMBINED.asked.prompt, **ON_NANO}
    second = painted(runner, placed(EDIT, {"image": "shapes.png", "image_2": "starred.png"}, **asked))
    last = painted(runner, placed(EDIT, {"image": "shapes.png", "image_4": "starred.png"}, **asked))
    assert is_right(COMBINED, [read(from_picture(second)[0])])
    assert second.tobytes() == last.tobytes()


def test_an_edit_without_its_first_picture_is_refused_before_anything_runs(runner):
    with pytest.raises(WorkflowError, match=r"GLM-Image Encode Reference\): image is not connected"):
        painted(runner, placed(EDIT, {"image_2": "starred.png"}, **ON_NANO))
    assert runner.executed == []


def test_inpainting_paints_within_the_mask_and_keeps_every_pixel_away_from_it(runner):
    painting = PAINTINGS["nano_edit"]
    pictures = {"image": "masked.png", "mask": "masked.png"}
    result = painted(runner, placed(INPAINT, pictures, prompt=painting.asked.prompt, **ON_NANO))
    assert is_right(painting, [read(from_picture(result)[0])])
    before, after = np.array(Image.open(PICTURE).convert("RGB")), np.array(result)
    assert (before[168:] == after[168:]).all() and (before[:, 168:] == after[:, 168:]).all()


def test_cogview3_plus_paints_the_size_and_the_seed_of_its_node(runner):
    typed = {"prompt": "a lighthouse", "width": 512, "height": 544, "steps": 1}
    pictures = [painted(runner, placed(COGVIEW3, seed=seed, **typed)) for seed in (1, 2, 1)]
    assert {picture.size for picture in pictures} == {(512, 544)}
    first, other, again = (picture.tobytes() for picture in pictures)
    assert first == again != other
