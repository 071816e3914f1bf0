"""Which sizes and words a checkpoint knows, and what is said of others before any work."""

import asyncio
import json
import random
import shutil

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image import pipeline
from glm_image_pack.glmimage_core.glm_image.files.components import AR, BUILT_IN, NANO
from glm_image_pack.glmimage_core.glm_image.files.inspect import inspect_checkpoint, trained_on
from glm_image_pack.glmimage_core.glm_image.files.load import load_ar, load_vae
from glm_image_pack.glmimage_core.glm_image.files.quantize import quantize_checkpoint
from glm_image_pack.glmimage_core.glm_image.plans.from_picture import prior_from_pictures
from glm_image_pack.glmimage_core.glm_image.trained_on import FIELD, RELEASED, TrainedOn
from glm_image_pack.glmimage_core.images import to_pictures
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from glm_image_pack.nodes.host import host
from glm_image_pack.nodes.inpaint import UNDER_MASK
from glm_image_pack.training import captions, larger, layout, world

from single_files import write_file

CONFIG = f"{AR.folder}/config.json"
SIDES = TrainedOn(sides=(192, 384))
SMALL_WORLD = {"sides": [192, 384], "words": ["a", "red", "star"]}


class Begun(Exception):
    """The AR model is asked to work."""


@pytest.fixture
def stopped_before_work(monkeypatch):
    """Generate Prior raises Begun in place of its work."""

    async def begin(*work):
        raise Begun

    monkeypatch.setattr(host, "run_in_background", begin)


@pytest.fixture
def stating(folder, tmp_path):
    """stating(entry): a copy of the tiny checkpoint that says so of its training."""

    def write(entry, name: str = "stating"):
        copy = host.models = tmp_path / "models"
        shutil.copytree(folder, copy / "diffusers" / name)
        config = copy / "diffusers" / name / CONFIG
        config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {FIELD: entry}), "utf-8")
        return copy / "diffusers" / name

    return write


@pytest.fixture(scope="module")
def nano_ar():
    return load_ar(BUILT_IN[NANO], "float32")


def plan(ar, prompt: str, width: int, height: int):
    return asyncio.run(NODES["GLMImageGeneratePrior"]().generate(ar, prompt, width, height, 1, 0))


def test_nano_states_what_its_training_drew():
    assert trained_on(BUILT_IN[NANO]) == TrainedOn.stated_in({FIELD: layout.trained_on(larger.SIDES)}, "training")


@pytest.mark.parametrize("language", captions.LANGUAGES)
def test_nano_knows_every_word_of_its_captions(language):
    known = trained_on(BUILT_IN[NANO])
    for number in range(300):
        rng = random.Random(number)
        scene = world.random_scene(rng, 8, 8)
        for prompt in (captions.describe(rng, scene, language).prompt, captions.random_edit(rng, 8, 8, language).prompt):
            assert known.unknown_words(prompt) == [], prompt


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("A red star on a blue background.", []),
        ('The word "HOUSE" at the top', []),
        ("A wooden house, two trees and a House", ["wooden", "house", "trees"]),
        ("5 red starlights", ["5", "starlights"]),
        ("\u767d\u8272\u80cc\u666f\u4e0a\uff0c\u4e2d\u95f4\u6709\u4e00\u4e2a\u623f\u5b50", ["\u623f\u5b50"]),  # a house
        ("\u7ea2\u8272star", []),
    ],
)
def test_words_that_nano_does_not_know_are_found_outside_quotation_marks(prompt, unknown):
    assert trained_on(BUILT_IN[NANO]).unknown_words(prompt) == unknown


@pytest.mark.parametrize(
    ("limits", "asked", "nearest"),
    [
        (SIDES, (1280, 1280), (384, 384)),
        (SIDES, (1728, 960), (384, 224)),
        (SIDES, (960, 1728), (224, 384)),
        (SIDES, (100, 150), (192, 288)),
        (SIDES, (1600, 200), (384, 192)),
        (SIDES, (250, 330), (256, 320)),
        (TrainedOn(sides=(200, 390)), (1280, 100), (384, 224)),
        (RELEASED, (1184, 896), (1184, 896)),
        (RELEASED, (512, 512), (1024, 1024)),
        (RELEASED, (4000, 3000), (2368, 1760)),
        (TrainedOn(), (5000, 100), (4096, 192)),
    ],
)
def test_the_nearest_size_is_one_that_is_known_in_whole_tokens(limits, asked, nearest):
    assert limits.nearest_size(*asked) == nearest
    assert limits.size_warnings(*nearest) == [] and limits.nearest_size(*nearest) == nearest


def test_many_unknown_words_are_not_all_named():
    (warning,) = TrainedOn(words=frozenset("a")).prompt_warnings("b c d e f g h i j k")
    assert "b, c, d, e, f, g, h, i and 2 more" in warning


@pytest.mark.parametrize(
    ("width", "height", "warning"),
    [
        (1024, 1024, None),
        (1056, 960, None),  # rounded to multiples of 32
        (2048, 2048, None),
        (3136, 1344, None),
        (960, 1728, None),
        (736, 736, "736x736 has fewer pixels than 1024x1024, the smallest area"),
        (4096, 2048, "4096x2048 has more pixels than 2048x2048, the largest area"),
    ],
)
def test_the_released_model_knows_one_to_four_megapixels_of_any_words(width, height, warning):
    said = RELEASED.size_warnings(width, height)
    assert [warning in text for text in said] == [True] * (warning is not None)
    assert RELEASED.prompt_warnings("A wooden house") == []


def test_a_checkpoint_that_states_nothing_is_taken_for_the_released_model(stating):
    assert load_ar(stating(None)).trained_on == RELEASED


def test_a_checkpoint_that_states_no_limits_is_warned_of_nothing(stating):
    known = load_ar(stating({})).trained_on
    assert known == TrainedOn() and known.size_warnings(192, 4096) == [] == known.prompt_warnings("A wooden house")


def test_what_is_stated_survives_a_single_file_and_quantization(stating, tmp_path):
    pytest.importorskip("comfy_kitchen")
    folder, known = stating(SMALL_WORLD), TrainedOn(sides=(192, 384), words=frozenset({"a", "red", "star"}))
    quantize_checkpoint(folder, tmp_path / "quantized", {AR.folder: "int8"})
    file = write_file(folder / AR.folder, tmp_path / "ar.safetensors")
    loaded = load_ar(folder), load_ar(tmp_path / "quantized"), load_ar(file, roots=[folder.parent])
    assert [ar.trained_on for ar in loaded] == [known] * 3


@pytest.mark.parametrize(
    "entry",
    [
        "any",
        [192, 384],
        {"sides": 384},
        {"sides": [192]},
        {"sides": [384, 192]},
        {"sides": [0, 192]},
        {"pixels": [True, 2]},
        {"pixels": [1.5, 2]},
        {"words": "a red star"},
        {"words": [1]},
    ],
)
def test_an_entry_that_says_nothing_sensible_is_refused_before_weights_are_read(stating, entry, tmp_path):
    folder = stating(entry)
    assert f"{FIELD} in {folder / CONFIG} is no object" in NODES["GLMImageLoadAR"].VALIDATE_INPUTS("stating")
    assert [FIELD in str(problem) for report in inspect_checkpoint(folder) for problem in report.problems] == [True]
    host.models = tmp_path / "files"
    write_file(folder / AR.folder, host.models / "text_encoders" / "ar.safetensors")
    shutil.copytree(folder / "processor", host.models / "text_encoders" / "processor")
    assert f"{FIELD} in " in NODES["GLMImageLoadAR"].VALIDATE_INPUTS("ar.safetensors")


def test_generate_prior_says_it_before_it_works(nano_ar, stopped_before_work, caplog):
    with pytest.raises(Begun):
        plan(nano_ar, "A red house", 1024, 1024)
    assert "1024x1024 is no size that this model knows: it was trained on sides of 192 to 512 pixels" in caplog.text
    assert "does not know: house;" in caplog.text


def test_generate_prior_says_nothing_of_what_the_model_knows(nano_ar, stopped_before_work, caplog):
    with pytest.raises(Begun):
        plan(nano_ar, 'A red star, the word "HOUSE"', 256, 384)
    assert not caplog.records


@pytest.mark.parametrize("node", ["GLMImageInpaint", "GLMImageRegrowPrior"])
def test_a_plan_of_which_a_part_is_drawn_anew_knows_no_more_words(node, nano_ar, stopped_before_work, caplog):
    vae = load_vae(BUILT_IN[NANO], "float32")
    picture, mask = torch.rand(1, 192, 576, 3), torch.ones(1, 192, 576)
    own = {"vae": vae, "image": picture, "under_mask": UNDER_MASK[0], "batch_size": 1}
    if node == "GLMImageRegrowPrior":
        own = {"prior": prior_from_pictures(nano_ar, to_pictures(picture), 576, 192)}
    with pytest.raises(Begun):
        asyncio.run(getattr(NODES[node](), NODES[node].FUNCTION)(ar=nano_ar, mask=mask, prompt="A red house", seed=0, **own))
    assert "does not know: house;" in caplog.text
    assert ("is no size that this model knows" in caplog.text) == (node == "GLMImageInpaint")  # the other's plan was made before


def test_the_python_door_says_it_too(monkeypatch, caplog):
    def begin(*work, **settings):
        raise Begun

    monkeypatch.setattr(pipeline, "generate_prior", begin)
    with pytest.raises(Begun):
        pipeline.GlmImage.nano().plan("A red house", 576, 512)
    assert "576x512 is no size" in caplog.text and "does not know: house;" in caplog.text


def test_size_warns_by_the_model_that_is_connected(nano_ar, caplog):
    size = NODES["GLMImageSize"]()
    assert size.size("1:1", 0.06, ar=nano_ar) == (256, 256) and not caplog.records
    assert size.size("1:1", 1.0) == (1024, 1024) and not caplog.records
    size.size("1:1", 1.0, ar=nano_ar)
    assert "1024x1024 is no size that this model knows" in caplog.text
