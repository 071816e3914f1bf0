"""Vision-language models: what they are shown, what they say, and the nodes that ask them. With a random Glmga."""

import json
import shutil

import pytest
import torch
from glm_image_pack.bench.measure import allocator_peak
from glm_image_pack.glmimage_core.language import vlm as vlms
from glm_image_pack.glmimage_core.language.rewriting import description_request
from glm_image_pack.glmimage_core.tiny.vlm import VOCABULARY
from glm_image_pack.glmimage_core.weights.linear import quantization_of
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from PIL import Image
from transformers.utils import is_torchvision_available

pytest.importorskip("transformers.models.glmga", reason="this transformers has no Glmga")
RED, BLUE = (Image.new("RGB", (100, 80), colour) for colour in ("red", "blue"))
needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="transformers' video processors need torchvision")


@pytest.fixture(scope="module")
def folder(models):
    return models / "LLM" / "Glmga"


@pytest.fixture(scope="module")
def vlm(folder):
    return vlms.load_vlm(folder)


@pytest.fixture
def wire():
    return NODES["GLMImageLoadVLM"]().load("Glmga", "auto", "none")[0]


def say(vlm, request="what is it?", pictures=(), seed=0, **settings) -> str:
    return vlms.answer(vlm, vlms.prepare(vlm, "Be brief.", request, pictures), seed=seed, max_tokens=12, **settings).text


def test_the_model_is_told_shown_and_asked_in_this_order(vlm):
    question = vlms.prepare(vlm, "Be brief.", "what?", [RED, BLUE])
    text = vlm.processor.decode(question.inputs["input_ids"][0])
    seen = text.replace("<|image|>", "")
    picture = "<|begin_of_image|><|end_of_image|>"
    assert seen == f"[gMASK]<sop><|system|>Be brief.<|user|>{picture}{picture}what?<|assistant|><think></think>"
    patches = question.inputs["image_grid_thw"].prod(1).tolist()
    assert question.patches == sum(patches)
    assert question.inputs["input_ids"].eq(vlm.model.config.image_token_id).sum() == sum(patches) // 4


def test_it_says_what_transformers_says(vlm):
    question = vlms.prepare(vlm, "Be brief.", "what?", [RED])
    with torch.inference_mode():
        ids = vlm.model.generate(**question.inputs, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=12)
    theirs = vlm.processor.decode(ids[0, question.tokens :], skip_special_tokens=True)
    assert vlms.answer(vlm, question, temperature=0, max_tokens=12).text == theirs


def test_pictures_and_their_order_count(vlm):
    answers = {say(vlm, pictures=pictures, temperature=0) for pictures in ((), (RED,), (RED, BLUE), (BLUE, RED))}
    assert len(answers) == 4


def test_a_seed_says_the_same_and_leaves_the_global_one_alone(vlm):
    before = torch.get_rng_state()
    assert say(vlm, seed=1, temperature=1.5) == say(vlm, seed=1, temperature=1.5)
    assert len({say(vlm, seed=seed, temperature=1.5) for seed in range(4)}) > 1
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_tells_each_token_and_stops_the_model(vlm):
    seen = []
    say(vlm, temperature=0, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 12) and [done for done, _ in seen] == list(range(len(seen))) and len(seen) > 3

    class Stopped(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        say(vlm, temperature=0, progress=stop)


@needs_torchvision
def test_a_clip_is_sampled_as_its_processor_has_it(vlm):
    frames = [Image.new("RGB", (64, 64), (10 * index, 0, 0)) for index in range(20)]
    question = vlms.prepare(vlm, "", "what happens?", clip=vlms.Clip(frames, rate=4.0))
    sampled = question.inputs["video_grid_thw"][0, 0].item() * 2
    assert sampled == 8  # two a second of five, of which the checkpoint allows eight
    text = vlm.processor.decode(question.inputs["input_ids"][0])
    assert text.count(" seconds") == sampled // 2 and "4" in text.split(" seconds")[-2]
    assert vlms.answer(vlm, question, temperature=0, max_tokens=3).text


@needs_torchvision
@pytest.mark.parametrize(("frames", "rate"), [(2, 24.0), (5, 24.0), (10, 1000.0), (3, 30.0)])
def test_of_a_clip_that_is_too_short_to_sample_the_first_and_the_last_frame_are_seen(vlm, frames, rate):
    pictures = [Image.new("RGB", (64, 64), (20 * index, 0, 0)) for index in range(frames)]
    question = vlms.prepare(vlm, "", "what happens?", clip=vlms.Clip(pictures, rate))
    assert question.inputs["video_grid_thw"][0, 0].item() == 1  # two frames are one step of time
    ends = vlms.prepare(vlm, "", "what happens?", clip=vlms.Clip([pictures[0], *[BLUE] * (frames - 2), pictures[-1]], rate))
    assert torch.equal(question.inputs["pixel_values_videos"], ends.inputs["pixel_values_videos"])
    assert vlms.answer(vlm, question, temperature=0, max_tokens=3).text


@pytest.mark.parametrize(("frames", "rate"), [(1, 4.0), (3, 0.0)])
def test_what_is_no_clip_is_named(vlm, frames, rate):
    with pytest.raises(ValueError, match="a clip has . frames at .* a second; use two or more"):
        vlms.prepare(vlm, "", "what?", clip=vlms.Clip([RED] * frames, rate))


@pytest.mark.parametrize("quantization", ["int8", "fp8", "nf4"])
def test_its_language_half_can_be_quantized(folder, vlm, quantization):
    pytest.importorskip("comfy_kitchen")
    small = vlms.load_vlm(folder, quantization=quantization)
    assert quantization_of(small.model.model.language_model) == quantization
    assert quantization_of(small.model.model.visual) == "none"
    question = vlms.prepare(vlm, "", "what?", [RED])
    with torch.inference_mode():
        exact, rounded = (model(**question.inputs).logits[0, -1] for model in (vlm.model, small.model))
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > (0.95 if quantization == "nf4" else 0.99)


def broken(folder, tmp_path, change):
    copy = tmp_path / "LLM" / "broken"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def other_kind(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "glm_next_year"}))


def million_layers(copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 10**6
    (copy / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (million_layers, r"num_hidden_layers in .*config.json is 1000000, and no more than \d+ tensors are stored"),
        (other_kind, "'glm_next_year', which this transformers has no model for"),
        (lambda copy: (copy / "model.safetensors").unlink(), "is missing its weights"),
        (lambda copy: (copy / "model.safetensors").write_bytes(b"no"), "truncated or corrupt"),
        (lambda copy: (copy / "tokenizer_config.json").unlink(), "tokenizer_config.json is missing"),
        (lambda copy: (copy / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing"),
        (lambda copy: (copy / "chat_template.jinja").unlink(), "has no chat template"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(folder, tmp_path, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        vlms.load_vlm(broken(folder, tmp_path, change))


def test_the_loader_lists_models_that_see_and_says_what_is_wrong_before_a_graph_runs(folder, quiet_host, tmp_path):
    loader, quiet_host.models = NODES["GLMImageLoadVLM"], tmp_path
    assert loader.INPUT_TYPES()["required"]["checkpoint"][0] == ["none"]
    assert "no vision-language model 'Glmga'" in loader.VALIDATE_INPUTS("Glmga")
    shutil.copytree(folder, tmp_path / "LLM" / "zai" / "Glmga")
    shutil.copytree(folder, tmp_path / "LLM" / "pipeline" / "text_encoder")
    (tmp_path / "LLM" / "pipeline" / "model_index.json").write_text("{}")
    assert loader.INPUT_TYPES()["required"]["checkpoint"][0] == ["zai/Glmga"]
    assert loader.VALIDATE_INPUTS("zai/Glmga") is True
    (tmp_path / "LLM" / "zai" / "Glmga" / "model.safetensors").unlink()
    assert "is missing its weights" in loader.VALIDATE_INPUTS("zai/Glmga")


def test_a_rewritten_prompt_keeps_its_texts(wire):
    images = torch.rand(2, 64, 64, 3)
    enhance = NODES["GLMImageEnhancePrompt"]().enhance
    for seed in range(3):
        (prompt,) = enhance(wire, 'a sign with "OPEN 24h"', "general", "auto", seed, 1.0, 40, images)
        assert '"OPEN 24h"' in prompt and prompt != 'a sign with "OPEN 24h"'


def letters_and_stops(wire, monkeypatch):
    """Make a model write nothing but a, full stop and space: sentences, of a kind."""
    config = wire.model.generation_config
    written = {wire.processor.tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "a. "}
    monkeypatch.setattr(config, "suppress_tokens", [token for token in range(VOCABULARY) if token not in written])
    monkeypatch.setattr(config, "top_p", 1.0)
    monkeypatch.setattr(config, "top_k", 0)


def test_an_answer_says_whether_it_was_cut_off(vlm, monkeypatch):
    question = vlms.prepare(vlm, "", "what?")
    said = vlms.answer(vlm, question, temperature=0, max_tokens=12)
    assert said.cut_off
    with torch.inference_mode():
        last = vlm.model.generate(**question.inputs, do_sample=False, max_new_tokens=12)[0, -1].item()
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", last)  # the model has said all that it had to say
    assert not vlms.answer(vlm, question, temperature=0, max_tokens=12).cut_off


@pytest.mark.parametrize("node", ["GLMImageEnhancePrompt", "GLMImageDescribe"])
def test_what_was_cut_off_leaves_no_torn_sentence_and_is_told(wire, monkeypatch, caplog, node):
    letters_and_stops(wire, monkeypatch)
    texts = []
    for seed in range(4):
        if node == "GLMImageDescribe":
            texts += NODES[node]().describe(wire, torch.ones(1, 64, 64, 3), 0.0, "", "auto", seed, 50.0, 64)
        else:
            texts += NODES[node]().enhance(wire, "a cat", "general", "auto", seed, 50.0, 64)
    assert any(text.endswith(".") for text in texts)
    assert all(text.endswith(".") for text in texts if ". " in text)
    assert caplog.text.count("the model was cut off after 64 tokens") == 4


def thinking(wire, monkeypatch):
    """As of a model whose template begins its answer with a thought, and that never ends it."""
    template = wire.processor.chat_template.replace("<think></think>", "<think>")
    monkeypatch.setattr(wire.processor, "chat_template", template)


def test_a_model_that_only_thinks_changes_no_prompt(wire, monkeypatch, caplog):
    thinking(wire, monkeypatch)
    assert NODES["GLMImageEnhancePrompt"]().enhance(wire, "a cat", "general", "auto", 0, 0.0, 16) == ("a cat",)
    assert "said nothing within 16 tokens, or only thought" in caplog.text


def test_a_model_that_only_thinks_describes_nothing(wire, monkeypatch):
    thinking(wire, monkeypatch)
    with pytest.raises(ValueError, match="said nothing within 16 tokens, or only thought"):
        NODES["GLMImageDescribe"]().describe(wire, torch.rand(1, 64, 64, 3), 0.0, "", "auto", 0, 0.0, 16)


def test_layers_that_cannot_be_quantized_are_not_taken_for_it(folder, monkeypatch):
    pytest.importorskip("comfy_kitchen")
    monkeypatch.setattr(vlms, "quantizable", lambda model, quantization: {})
    with pytest.raises(ValueError, match="would reach 0% of the language half's weights in Glmga"):
        vlms.load_vlm(folder, quantization="int8")


def test_the_quantization_is_checked_for_the_device_that_it_is_given(folder, monkeypatch):
    """Not for a card that happens to be there: with an old card beside it, int8 on the CPU was refused."""
    pytest.importorskip("comfy_kitchen")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert vlms.load_vlm(folder, quantization="int8", device=torch.device("cpu"))
    with pytest.raises(ValueError, match="int8"):
        vlms.load_vlm(folder, quantization="int8", device=torch.device("cuda"))


def test_a_config_that_cannot_be_read_is_no_model(quiet_host, tmp_path):
    (tmp_path / "LLM" / "gone").mkdir(parents=True)
    (tmp_path / "LLM" / "gone" / "config.json").symlink_to(tmp_path / "nowhere")
    quiet_host.models = tmp_path
    assert NODES["GLMImageLoadVLM"].INPUT_TYPES()["required"]["checkpoint"][0] == ["none"]


def test_an_empty_prompt_is_refused_before_the_graph_runs():
    check = NODES["GLMImageEnhancePrompt"].VALIDATE_INPUTS
    assert "empty" in check(" ") and check("a cat") is True and check(None) is True


def test_describing_goes_by_instruction_and_pictures(wire):
    describe = NODES["GLMImageDescribe"]().describe
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    said = {
        describe(wire, pictures, 0.0, instruction, "auto", 0, 0.0, 16)[0]
        for pictures in (images, images[:1])
        for instruction in ("", "Which colours?")
    }
    assert len(said) == 4


@needs_torchvision
def test_frames_of_a_clip_are_described_as_one(wire):
    frames = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    said = {NODES["GLMImageDescribe"]().describe(wire, frames, rate, "What is it?", "en", 0, 0.0, 16) for rate in (0.0, 1.0, 2.0)}
    assert len(said) == 3  # pictures, a clip, and one half as long


def test_requests_are_of_the_language_asked_for():
    assert "clip" in description_request(clip=True) and "\u89c6\u9891" in description_request("", "zh", clip=True)
    assert "caption" in description_request() and "pictures" in description_request(pictures=2)
    colours = "\u4ec0\u4e48\u989c\u8272"  # which colours, in Chinese
    assert description_request(colours) == colours
    assert description_request(colours, "en").splitlines() == [colours, "Answer in English."]
    with pytest.raises(ValueError, match="language is 'fr'"):
        description_request(language="fr")


@pytest.mark.skipif(torch.__version__.startswith("2.7."), reason="in torch 2.7 the CPU's attention takes other memory")
@pytest.mark.parametrize(("pictures", "letters", "answered"), [(0, 2000, 2), (1, 10, 2), (3, 10, 2), (0, 10, 300)], ids=str)
def test_memory_is_predicted_within_10_percent(folder, pictures, letters, answered):
    vlm = vlms.load_vlm(folder)
    vlm.model.generation_config.eos_token_id = None  # says as much as it may
    question = vlms.prepare(vlm, "", "x" * letters, [RED.resize((640, 480))] * pictures)
    measured = allocator_peak(lambda: vlms.answer(vlm, question, temperature=0, max_tokens=answered))
    assert question.working_bytes(vlm, answered) == pytest.approx(measured, rel=0.1)
