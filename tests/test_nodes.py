"""The nodes as ComfyUI sees them. Ids, input names, output order and combo strings are a file format: tests/data/nodes.json
holds what has been published, and a change to it may only add at the end of a list.
"""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from glm_image_pack.glmimage_core.placement.residency import Residency
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from glm_image_pack.nodes import NODE_DISPLAY_NAME_MAPPINGS
from glm_image_pack.nodes.checkpoint_loader import CheckpointLoader
from glm_image_pack.nodes.host.devices import DEVICES, device_of
from glm_image_pack.nodes.host.requests import SampleRequest
from glm_image_pack.nodes.host.standalone import families, usable_device
from glm_image_pack.nodes.sockets import MODEL_LOADERS, VAE_LOADERS

from make_locale_en import node_definitions
from pictures import pattern
from plans import plan

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = json.loads((ROOT / "tests" / "data" / "nodes.json").read_text("utf-8"))


def inputs_of(node: type) -> dict[str, dict]:
    """The inputs that a user sees, by section."""
    return {section: entries for section, entries in node.INPUT_TYPES().items() if section != "hidden"}


def described(node: type) -> dict:
    """What a saved workflow relies on: inputs in order with combo strings and defaults, outputs in order."""
    inputs = []
    for section, entries in inputs_of(node).items():
        for name, (kind, options) in entries.items():
            combo = kind if isinstance(kind, list) and name not in ("checkpoint", "lora_name", "file") else None
            kind = "COMBO" if isinstance(kind, list) else kind
            inputs.append([section, name, kind, combo, options.get("default")])
    return {
        "title": node.TITLE,
        "inputs": inputs,
        "outputs": [list(pair) for pair in zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True)],
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_has_been_published_is_unchanged(name):
    now, then = described(NODES[name]), PUBLISHED[name]
    assert now["inputs"][: len(then["inputs"])] == [
        [*old[:3], new[3] if old[3] and new[3][: len(old[3])] == old[3] else old[3], old[4]]
        for old, new in zip(then["inputs"], now["inputs"], strict=False)
    ]
    assert now["outputs"][: len(then["outputs"])] == then["outputs"]
    assert now["title"] == then["title"]


def test_every_node_is_published():
    assert list(PUBLISHED) == list(NODES) == list(NODE_DISPLAY_NAME_MAPPINGS)


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_every_node_input_and_output_says_what_it_is(node):
    assert node.CATEGORY == "GLM-Image" and len(node.DESCRIPTION) > 20
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    assert all(len(text) > 10 for text in node.OUTPUT_TOOLTIPS)
    for entries in inputs_of(node).values():
        for name, (_, options) in entries.items():
            assert len(options["tooltip"]) > 10, name


def test_loaders_list_the_checkpoints_there_are(quiet_host, tmp_path):
    for name in ("GLMImageLoadAR", "GLMImageLoadDiT", "GLMImageLoadVAE", "GLMImageLoadGlyphEncoder"):
        assert NODES[name].INPUT_TYPES()["required"]["checkpoint"][0] == ["GLM-Image", "nano (built in)"]
        assert NODES[name].VALIDATE_INPUTS("GLM-Image") is True
        assert "no GLM-Image checkpoint 'other'" in NODES[name].VALIDATE_INPUTS("other")
    quiet_host.models = tmp_path
    missing = NODES["GLMImageLoadVAE"].VALIDATE_INPUTS("GLM-Image")
    assert f"download zai-org/GLM-Image as it is into {tmp_path / 'diffusers' / 'GLM-Image'}" in missing


@pytest.mark.parametrize("loader", [name for name, node in NODES.items() if issubclass(node, CheckpointLoader)])
def test_a_loader_always_has_a_choice_and_says_what_is_not_there(loader, quiet_host, tmp_path):
    quiet_host.models = tmp_path
    (*_, last) = NODES[loader].INPUT_TYPES()["required"]["checkpoint"][0]
    assert last in ("none", "nano (built in)")
    assert f"'none' in {tmp_path}" in NODES[loader].VALIDATE_INPUTS("none")


def test_a_bad_size_is_refused_when_the_graph_is_queued():
    validate = NODES["GLMImageGeneratePrior"].VALIDATE_INPUTS
    assert validate(1024, height=768, prompt="a house") is True
    assert "992 or 1024" in validate(1000, height=1024, prompt="a house")
    assert "8192" in validate(1024, height=8192, prompt="a house")
    assert "empty" in validate(1024, height=1024, prompt=" ")
    assert validate(None, height=1024, prompt=None) is True and "1001" in validate(None, height=1001)  # some come over links


def test_glyph_text_is_shown_and_can_be_overridden(encoder):
    node = NODES["GLMImageEncodePrompt"]()
    quoted, _, shown = node.encode(encoder, 'the dog\'s sign says "OPEN" and "LATE"')
    given, _, taken = node.encode(encoder, "no quotes at all", "", " OPEN \n\nLATE\n")
    assert shown == taken == "OPEN\nLATE"
    assert torch.equal(quoted[0][0], given[0][0])
    assert node.encode(encoder, "nothing to draw")[2] == ""


def test_a_negative_prompt_acts_by_its_quoted_text_and_says_when_it_does_not(encoder, caplog):
    node = NODES["GLMImageEncodePrompt"]()
    plain = node.encode(encoder, "a house")[1][0][0]
    assert torch.equal(plain, node.encode(encoder, "a house", "ugly, blurry")[1][0][0])
    assert "changes nothing" in caplog.text
    assert not torch.equal(plain[:, :1], node.encode(encoder, "a house", 'the word "SALE"')[1][0][0][:, :1])


def test_apply_prior_changes_no_input_in_place(encoder):
    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(encoder, "a house")
    applied, _ = NODES["GLMImageApplyPrior"]().apply(positive, negative, plan())
    assert positive[0][1] == {} and negative[0][1] == {}
    assert applied[0][1]["glm_image_prior"].width == 256


def test_references_that_the_plan_did_not_see_are_noticed(encoder, ar, encode_reference, caplog):
    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(encoder, "a house")
    (prior,) = asyncio.run(NODES["GLMImageGeneratePrior"]().generate(ar, "a house", 256, 256, 1, 0))
    NODES["GLMImageApplyPrior"]().apply(positive, negative, prior, (encode_reference(pattern(128, 128, 3)),))
    assert "not the references" in caplog.text


def test_a_second_apply_prior_says_that_it_replaces_the_first(encoder, caplog):
    apply = NODES["GLMImageApplyPrior"]().apply
    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(encoder, "a house")
    once, unwanted = apply(positive, negative, plan(256, 256))
    apply(positive, unwanted, plan(256, 288))  # a negative has no plan that could be lost
    assert not caplog.messages
    twice, _ = apply(once, unwanted, plan(256, 288))
    assert "this replaces the prior of another Apply Prior" in caplog.text
    assert twice[0][1]["glm_image_prior"].height == 288


def test_the_sampler_refuses_what_is_not_for_it(encoder, dit, vae):
    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(encoder, "a house")
    applied, unwanted = NODES["GLMImageApplyPrior"]().apply(positive, negative, plan())
    sampler = NODES["GLMImageSampler"]()
    with pytest.raises(ValueError, match="Apply Prior"):
        sampler.sample(dit, positive, negative, 0, 1, 1.5)
    with pytest.raises(ValueError, match="Load GLM-Image DiT"):
        sampler.sample(object(), applied, unwanted, 0, 1, 1.5)
    with pytest.raises(ValueError, match="model is empty: Load GLM-Image LoRA passes on only"):
        sampler.sample(None, applied, unwanted, 0, 1, 1.5)
    with pytest.raises(ValueError, match="ar is empty"):
        asyncio.run(NODES["GLMImageGeneratePrior"]().generate(None, "a house", 256, 256, 1, 0))
    with pytest.raises(ValueError, match="swap positive and negative"):
        sampler.sample(dit, unwanted, applied, 0, 1, 1.5)
    with pytest.raises(ValueError, match="2 combined"):
        sampler.sample(dit, applied * 2, unwanted, 0, 1, 1.5)
    with pytest.raises(ValueError, match="256x256 pixels, but the latent image is of 512x256"):
        sampler.sample(dit, applied, unwanted, 0, 1, 1.5, 1.0, {"samples": torch.zeros(1, 16, 32, 64)})
    with pytest.raises(ValueError, match="Load GLM-Image VAE"):
        NODES["GLMImageVAEDecode"]().decode(object(), {"samples": torch.zeros(1, 16, 32, 32)})


def test_a_vae_of_another_family_is_refused_by_the_name_of_the_loader_to_connect(ar, vae):
    image = torch.rand(1, 256, 256, 3)
    _, text_encoder, plus_vae = NODES["GLMImageLoadCogView3"]().load("CogView3-Plus-3B", "auto")
    relay, base_vae = NODES["GLMImageLoadCogView3Base"]().load("cogview3-relay-3b", "auto")
    sides = NODES["GLMImageCogView3Encode"]().encode(text_encoder, "a cat", family="CogView3-Base")[:2]
    for wrong in (plus_vae, base_vae, object()):
        with pytest.raises(ValueError, match="vae is not GLM-Image's; connect Load GLM-Image VAE"):
            NODES["GLMImageEncodeReference"]().encode(ar, wrong, image)
    for wrong in (plus_vae, vae, object()):
        with pytest.raises(ValueError, match="vae is not CogView3-Base's; connect Load CogView3-Base"):
            NODES["GLMImageCogView3Relay"]().sample(relay, wrong, image, *sides, 0, 2, 1, 7.5)
    for own in (vae, plus_vae, base_vae):
        (latent,) = NODES["GLMImageVAEEncode"]().encode(own, image)
        assert NODES["GLMImageVAEDecode"]().decode(own, latent)[0].shape == image.shape
    with pytest.raises(ValueError, match=r"not \[batch, 16, height / 8, width / 8\]: they belong to another model family"):
        NODES["GLMImageVAEDecode"]().decode(plus_vae, {"samples": torch.zeros(1, 4, 32, 32)})


def test_every_loader_that_an_error_names_is_a_node():
    named = {loader for _, loader in MODEL_LOADERS.values()} | set(VAE_LOADERS.values())
    assert named <= set(NODE_DISPLAY_NAME_MAPPINGS.values())


def test_every_request_has_an_answer():
    assert set(families.SAMPLERS) == set(SampleRequest.__subclasses__())


@pytest.mark.parametrize("approximations", [{"cfg_start": 0.2, "cfg_end": 0.7}, {"step_cache": 0.8}])
def test_the_samplers_approximations_reach_the_library(encoder, dit, approximations):
    from glm_image_pack.glmimage_core.glm_image.denoise import Approximations, sample

    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(encoder, 'a sign "OPEN"')
    positive, negative = NODES["GLMImageApplyPrior"]().apply(positive, negative, plan())
    exact, short = (
        NODES["GLMImageSampler"]().sample(dit, positive, negative, 3, 10, 1.5, **settings)[0]["samples"]
        for settings in ({}, approximations)
    )
    expected = sample(
        dit, plan(), positive[0][0], negative[0][0], seeds=[3], steps=10, approximations=Approximations(**approximations)
    )
    assert torch.allclose(short, expected, atol=1e-5) and not torch.allclose(short, exact, atol=1e-3)


@pytest.mark.parametrize(("start", "end"), [(0.8, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_an_interval_that_is_none_is_told_before_anything_runs(start, end):
    assert "is no interval" in NODES["GLMImageSampler"].VALIDATE_INPUTS(start, end)
    assert NODES["GLMImageSampler"].VALIDATE_INPUTS(0.2, 0.8) is True


def test_an_encoded_picture_can_be_repainted_in_part(encoder, dit, vae):
    image = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(encoder, "a house")
    applied = NODES["GLMImageApplyPrior"]().apply(positive, negative, plan())
    (latent,) = NODES["GLMImageVAEEncode"]().encode(vae, image)
    mask = torch.zeros(1, 256, 256)
    mask[:, :, 128:] = 1  # as a noise mask comes from ComfyUI: the picture's size, no channel
    (painted,) = NODES["GLMImageSampler"]().sample(dit, *applied, 0, 2, 1.5, 0.7, latent | {"noise_mask": mask})
    assert torch.allclose(painted["samples"][..., :15], latent["samples"][..., :15], atol=1e-4)
    assert not torch.allclose(painted["samples"][..., 17:], latent["samples"][..., 17:], atol=1e-2)
    assert NODES["GLMImageVAEDecode"]().decode(vae, painted, "on")[0].shape == (1, 256, 256, 3)


def test_a_latent_batch_is_painted_as_a_batch(encoder, dit):
    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(encoder, "a house")
    applied = NODES["GLMImageApplyPrior"]().apply(positive, negative, plan())
    (latent,) = NODES["GLMImageSampler"]().sample(dit, *applied, 5, 1, 1.5, 1.0, {"samples": torch.zeros(2, 16, 32, 32)})
    (alone,) = NODES["GLMImageSampler"]().sample(dit, *applied, 6, 1, 1.5)
    assert torch.allclose(latent["samples"][1:], alone["samples"], atol=1e-4)


def test_the_registry_and_pip_install_the_same():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["dependencies"] == (ROOT / "requirements.txt").read_text("utf-8").split()


def test_the_scheduler_gives_the_schedule_of_the_sampler(dit):
    from glm_image_pack.glmimage_core.glm_image.schedule import full_schedule, partial_schedule

    scheduler = NODES["GLMImageScheduler"]()
    mu = 0.75 * 64 / 16 + 0.25  # 64 x 64 DiT tokens
    assert torch.equal(scheduler.schedule(dit, 30, 1.0, 1024, 1024)[0], full_schedule(30, mu).sigmas)
    assert torch.equal(scheduler.schedule(dit, 30, 0.5, 1024, 1024)[0], partial_schedule(30, 0.5, mu).sigmas)
    assert len(scheduler.schedule(dit, 30, 0.0, 1024, 1024)[0]) == 0
    with pytest.raises(ValueError, match="992 or 1024"):
        scheduler.schedule(dit, 30, 1.0, 1000, 1024)
    for node, inputs in (
        ("GLMImageScheduler", (object(), 30, 1.0, 1024, 1024)),
        ("GLMImageModelSampling", (object(), 1024, 1024)),
    ):
        with pytest.raises(ValueError, match="Load GLM-Image DiT"):
            getattr(NODES[node](), NODES[node].FUNCTION)(*inputs)


@pytest.mark.parametrize("name", NODES)
def test_every_node_can_be_searched_for_by_other_words(name):
    assert all(alias == alias.lower() and len(alias) > 2 for alias in NODES[name].SEARCH_ALIASES)


@pytest.mark.parametrize("name", NODES)
def test_every_node_has_a_help_page_that_names_its_inputs(name):
    page = (ROOT / "nodes" / "web" / "docs" / f"{name}.md").read_text("utf-8")
    assert page.startswith(f"# {NODES[name].TITLE}\n")
    widgets = [
        name
        for entries in inputs_of(NODES[name]).values()
        for name, (kind, _) in entries.items()
        if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING")
    ]
    assert all(f"**{widget}**" in page for widget in widgets)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_node_input_and_output_has_its_words_in_each_language(language):
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    own = node_definitions()
    assert list(words) == list(own)
    for name, node in own.items():
        for section in ("inputs", "outputs"):
            assert list(words[name][section]) == list(node[section]), name
            assert all(entry["name"] and len(entry["tooltip"]) > 6 for entry in words[name][section].values())
    assert language != "en" or words == own


# Devices


@pytest.mark.parametrize(
    ("choice", "default", "device"),
    [
        ("default", "cuda:1", "cuda:1"),
        ("cpu", "cuda:0", "cpu"),
        ("gpu:0", "cuda:1", "cuda:0"),
        ("gpu:1", "cuda:0", "cuda:1"),
        ("gpu:2", "cuda:0", None),
        ("gpu:0", "cpu", None),
    ],
)
def test_a_device_goes_by_its_number_among_those_of_its_kind(monkeypatch, choice, default, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choice in DEVICES and device_of(choice, torch.device(default)) == (device and torch.device(device))


def test_a_device_that_pytorch_does_not_have_is_named_without_the_command_lines_words():
    with pytest.raises(ValueError, match="^nonsense cannot be used: "):
        usable_device("nonsense")


def test_a_model_is_placed_on_the_device_that_its_loader_was_told_of(quiet_host):
    """The default one is cpu:0, which PyTorch takes for another one than cpu."""
    quiet_host.residency = Residency(torch.device("cpu:0"), free_bytes=lambda: 10**12)
    priors = []
    for device, resident in (("cpu", 0), ("default", 1)):
        (ar,) = NODES["GLMImageLoadAR"]().load("GLM-Image", "auto", "none", device)
        priors += asyncio.run(NODES["GLMImageGeneratePrior"]().generate(ar, "a house", 256, 256, 1, 0))
        assert len(quiet_host.residency.resident) == resident
    assert torch.equal(priors[0].tokens, priors[1].tokens)


@pytest.mark.parametrize("loader", ["GLMImageLoadAR", "GLMImageLoadDiT", "GLMImageLoadVAE", "GLMImageLoadGlyphEncoder"])
def test_without_that_card_the_default_device_is_taken_and_said(loader, caplog):
    quantization = {"quantization": "none"} if "quantization" in NODES[loader].INPUT_TYPES()["required"] else {}
    (wire,) = NODES[loader]().load("GLM-Image", "auto", **quantization, device="gpu:3")
    assert "there is no gpu:3 on this machine" in caplog.text and wire.target_device in (None, torch.device("cpu"))
    assert NODES[loader].VALIDATE_INPUTS("GLM-Image") is True
