"""Predicted memory against the allocator, and who is on a small device during a whole run."""

import asyncio
import re

import pytest
import torch
from glm_image_pack.bench.measure import allocator_peak
from glm_image_pack.cli.main import main
from glm_image_pack.cli.predictions import settings_for_cards
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.files.components import COMPONENTS
from glm_image_pack.glmimage_core.glm_image.memory import dit_bytes, glyph_bytes, prior_bytes
from glm_image_pack.glmimage_core.placement.prediction import Job, setting_for
from glm_image_pack.glmimage_core.placement.residency import HEADROOM, Residency, model_bytes
from glm_image_pack.glmimage_core.tiny.glm_image import write_layout
from glm_image_pack.glmimage_core.tiny.spec import RELEASED
from glm_image_pack.glmimage_core.units import human_bytes
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES

from pictures import pattern


def edit(models, side: int, sampler_steps: int = 2):
    """An edit of a side x side picture with one reference of that size, node by node."""
    ar, encoder, dit, vae = models
    image = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0))
    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(encoder, 'a sign "OPEN"')
    (references,) = NODES["GLMImageEncodeReference"]().encode(ar, vae, image)
    (prior,) = asyncio.run(NODES["GLMImageGeneratePrior"]().generate(ar, "an edit", side, side, 1, 0, references=references))
    positive, negative = NODES["GLMImageApplyPrior"]().apply(positive, negative, prior, references)
    (latent,) = NODES["GLMImageSampler"]().sample(dit, positive, negative, 0, sampler_steps, 1.5)
    return NODES["GLMImageVAEDecode"]().decode(vae, latent)


@pytest.mark.parametrize("side", [256, 512])
def test_inspect_predicts_the_peak_of_a_tiny_edit_within_10_percent(folder, ar, encoder, dit, vae, side, capsys):
    models = (ar, encoder, dit, vae)
    measured = sum(model_bytes(part.model) for part in models) + allocator_peak(lambda: edit(models, side))
    assert main(["inspect", str(folder), "--width", str(side), "--height", str(side)]) == 0
    predicted = int(re.search(r"all models resident.*\((\d+) bytes\)", capsys.readouterr().out)[1])
    assert predicted == pytest.approx(measured, rel=0.1)


def test_inspect_counts_for_a_stage_only_the_half_of_the_ar_model_that_it_runs(folder, ar, capsys):
    assert main(["inspect", str(folder), "--width", "256", "--height", "256"]) == 0
    printed = capsys.readouterr().out
    for stage, half in (("Generate Prior", "language"), ("Encode Reference, vision", "vision")):
        weights = float(re.search(rf"{stage} +([\d.]+) kB", printed)[1])
        assert weights == pytest.approx(model_bytes(ar.halves[half]) / 1000, rel=1e-3)


@pytest.mark.parametrize("cached", [False, True], ids=["", "step cache"])
@pytest.mark.parametrize("references", [(), ((256, 256),), ((512, 512), (256, 384))])
@pytest.mark.parametrize("side", [256, 512])
def test_the_samplers_memory_is_predicted_within_10_percent(dit, encode_reference, encoder, side, references, cached):
    from glm_image_pack.glmimage_core.glm_image.denoise import Approximations, sample
    from glm_image_pack.glmimage_core.glm_image.glyphs import encode_glyph_texts

    from plans import plan

    glyphs = encode_glyph_texts(encoder, ["OPEN"])
    encoded = [encode_reference(pattern(*size, 3)) for size in references]
    assert tuple((r.width, r.height) for r in encoded) == references

    def run():
        approximations = Approximations(step_cache=1e-6 * cached)
        sample(dit, plan(side, side), glyphs, glyphs, seeds=[0], steps=3, references=encoded, approximations=approximations)
        dit.cached_references.clear()

    job = Job(side, side, references=references, glyph_tokens=glyphs.shape[1], one_length=True, step_cache=cached)
    assert dit_bytes(dit.model.config, 4, job, on_cpu=True) == pytest.approx(allocator_peak(run), rel=0.1)


@pytest.mark.parametrize("texts", [(), ("A" * 2000,), ("A" * 1023,), ("A" * 255,) * 3])
def test_the_glyph_encoder_takes_no_more_memory_than_predicted(encoder, texts):
    from glm_image_pack.glmimage_core.glm_image.glyphs import encode_glyph_texts

    measured = allocator_peak(lambda: encode_glyph_texts(encoder, list(texts)))
    assert 0.3 < measured / glyph_bytes(encoder.model.config, 4, texts) < 1.05


def test_encode_prompt_asks_for_the_memory_of_its_texts(encoder, quiet_host, monkeypatch):
    asked = []
    hold = Residency.hold

    def watch(self, model, working_bytes=0, blocks=()):
        asked.append(working_bytes)
        return hold(self, model, working_bytes, blocks)

    monkeypatch.setattr(Residency, "hold", watch)
    texts = {"prompt": "a sign", "negative_prompt": f'"{"B" * 500}"', "glyph_text": "A"}
    NODES["GLMImageEncodePrompt"]().encode(encoder, **texts)
    assert asked == [glyph_bytes(encoder.model.config, 4, ["B" * 500])]


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_ar_stages_memory_is_predicted_within_10_percent(ar, batch, rows):
    from glm_image_pack.glmimage_core.glm_image.prior import generate_prior

    settings = {"seed": 0, "batch": batch, "lookahead": rows}
    measured = allocator_peak(lambda: generate_prior(ar, "a prompt of some length", 256, 256, **settings))
    job = Job(256, 256, batch, prompt_tokens=40)
    assert prior_bytes(ar.model.config, 4, job, rows) == pytest.approx(measured, rel=0.1)


def test_the_ar_model_runs_by_halves_where_the_whole_of_it_does_not_fit(quiet_host, folder, ar, vae):
    """On a device, played by cpu:0, that the language half fills with its work."""
    image = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    small = checkpoints.load_ar(folder)

    def plan(ar):
        (references,) = NODES["GLMImageEncodeReference"]().encode(ar, vae, image)
        (prior,) = asyncio.run(NODES["GLMImageGeneratePrior"]().generate(ar, "an edit", 256, 256, 1, 0, references=references))
        return prior.tokens

    expected = plan(ar)
    job = Job(256, 256, references=((256, 256),), prompt_tokens=len("an edit"))
    working = prior_bytes(small.model.config, 4, job)
    budget = working + model_bytes(small.halves["language"])
    residency = Residency(torch.device("cpu", 0), lambda: budget - sum(map(model_bytes, residency.resident)))
    quiet_host.residency = residency
    there = []  # and what is free beside it
    quiet_host.on_progress = lambda stage, *_: there.append((stage, residency.resident, residency.free_bytes()))
    for _ in range(2):
        assert torch.equal(plan(small), expected)
        assert residency.resident == [small.halves["language"]] and model_bytes(small.model) + working > budget
    planning = [(resident, free) for stage, resident, free in there if stage == "Generate Prior"]
    assert planning and all(resident == [small.halves["language"]] and free >= working for resident, free in planning)
    assert there[0][1] == [small.halves["vision"]]


def test_on_a_small_device_one_big_model_is_there_at_a_time_and_the_picture_is_the_same(quiet_host, folder):
    """A device that the DiT fills with its work: cpu:0 plays it."""
    models = (
        checkpoints.load_ar(folder),
        checkpoints.load_glyph_encoder(folder),
        checkpoints.load_dit(folder),
        checkpoints.load_vae(folder),
    )
    expected = edit(models, 256)[0]
    together = []
    job = Job(256, 256, references=((256, 256),), glyph_tokens=8)
    budget = {"size": model_bytes(models[2].model) + dit_bytes(models[2].model.config, 4, job)}
    residency = Residency(
        torch.device("cpu", 0), lambda: budget["size"] - sum(model_bytes(model) for model in residency.resident)
    )
    quiet_host.residency = residency
    quiet_host.on_progress = lambda stage, *_: together.append((stage, {type(model).__name__ for model in residency.resident}))

    models[2].cached_references.clear()
    roomy = edit(models, 256)[0]
    assert {frozenset(names) for stage, names in together if stage == "Sampler"} == {frozenset({"GlmImageDit"})}
    assert all(len(names) < 4 for _, names in together)
    assert torch.allclose(roomy, expected, atol=1e-4)

    together.clear()
    budget["size"] = 10**9
    assert torch.allclose(edit(models, 256)[0], expected, atol=1e-4)
    assert len(together[-1][1]) == 5  # room for all: nobody leaves


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The released models on the meta device."""
    folder = tmp_path_factory.mktemp("released")
    write_layout(folder, RELEASED)
    return {name: COMPONENTS[name].build_from(folder) for name in COMPONENTS}


@pytest.mark.parametrize(
    ("card", "text", "edit"),
    [
        (8, ("nf4", "none, block by block"), ("nf4", "none, block by block")),
        (12, ("int8", "int8"), ("int8", "int8")),
        (16, ("int8", "none"), ("int8", "none")),
        (24, ("none", "none"), ("none", "none")),
    ],
)
def test_settings_for_cards_at_1024_of_the_released_models(released, card, text, edit):
    for references, expected in (((), text), (((1024, 1024),), edit)):
        rows = settings_for_cards(Job(references=references), released).rows
        (row,) = (row for row in rows if row["card"] == f"{card} GiB ({human_bytes(card * 2**30)})")
        found = [re.fullmatch(r"(.+) \(peak ([\d.]+) GB\)", row[model]).groups() for model in ("AR model", "DiT")]
        assert tuple(setting for setting, _ in found) == expected
        assert all(float(peak) * 1e9 + HEADROOM <= card * 2**30 for _, peak in found)
        assert row["VAE Decode"] == "whole"


def test_no_setting_where_nothing_fits(released):
    dit = released["transformer"]
    assert setting_for(dit, room=5 * 10**8, itemsize=2, working=0, blocks="transformer_blocks.") is None
    assert setting_for(dit, room=4 * 10**9, itemsize=2, working=0, blocks="transformer_blocks.").streamed
    assert setting_for(dit, room=4 * 10**9, itemsize=2, working=0) is None
