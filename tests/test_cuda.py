"""As on a CUDA machine: real numbers at tiny size on a simulated card (tests/simulated_cuda), against those of the CPU."""

import gc
import math
import re
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from glm_image_pack.bench import checks
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.runner import Runner
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.component import Component
from glm_image_pack.glmimage_core.glm_image import decoder as decoding
from glm_image_pack.glmimage_core.glm_image import recording
from glm_image_pack.glmimage_core.glm_image.ar_model import fit, vision_tokens
from glm_image_pack.glmimage_core.glm_image.denoise import Approximations, sample
from glm_image_pack.glmimage_core.glm_image.dit import Dit
from glm_image_pack.glmimage_core.glm_image.draw import Sampling
from glm_image_pack.glmimage_core.glm_image.files.load import NF4_KERNELS, load_ar, load_dit, load_glyph_encoder, load_vae
from glm_image_pack.glmimage_core.glm_image.glyphs import encode_glyph_texts
from glm_image_pack.glmimage_core.glm_image.prior import AUTO, SYNC_EVERY, Prior, generate_prior
from glm_image_pack.glmimage_core.glm_image.references import Reference, encode_reference, latents_of
from glm_image_pack.glmimage_core.placement.residency import HEADROOM, Residency, free_device_bytes, model_bytes
from glm_image_pack.glmimage_core.placement.streaming import streamed
from glm_image_pack.glmimage_core.placement.streams import side_stream
from glm_image_pack.glmimage_core.vae import decode
from glm_image_pack.glmimage_core.weights.formats import FORMATS, inner_tensors
from glm_image_pack.glmimage_core.weights.linear import quantize
from glm_image_pack.glmimage_core.weights.lora import WeightedLora, applied_loras
from PIL import Image

from deep import deepened
from pictures import pattern
from plans import plan
from shipped import ROOT, saved, shipped
from simulated_cuda import Card, simulated_cuda, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

PROMPT, SIZE = "a red house", (192, 224)
CLOSE = {"atol": 2e-6, "rtol": 2e-6}


@pytest.fixture
def card():
    """A card with more memory than any test needs."""
    side_stream.cache_clear()  # a stream lives as long as its card
    gc.freeze()  # so that a test collects its own garbage only, which is quick
    with simulated_cuda() as card:
        yield card
    gc.unfreeze()
    side_stream.cache_clear()


@contextmanager
def placed(component: Component, card: Card, part: str = "model", **settings):
    """The component, computing on the card and with its weights there."""
    with Residency(card.device).hold(component.parts[part]) as device:
        yield replace(component.on(device), **settings)


@pytest.fixture
def kitchen():
    """comfy-kitchen is there, imported before there is a card, without its kernels. nf4 keeps no table on another test's card.
    To be asked for first."""
    comfy_kitchen = pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
    from glm_image_pack.glmimage_core.weights import nf4

    tables = (nf4.levels_on, nf4._pairs_on)
    for table in tables:
        table.cache_clear()
    with comfy_kitchen.registry.use_backend("eager"):
        yield
    for table in tables:
        table.cache_clear()


@pytest.fixture
def model(folder):
    """An AR model that knows no earlier plan."""
    return load_ar(folder)


@pytest.fixture(scope="module")
def reference(ar, vae) -> Reference:
    return encode_reference(ar, vae, pattern(128, 160, 3))


# Planning

WAYS = ("text", "edit", "two edits")


def planning(way: str, reference: Reference, lookahead: int = 1) -> dict:
    """The settings of a plan. An edit has no preview, and so a seventh of the tokens."""
    references, batch = [] if way == "text" else [reference], 2 if way == "two edits" else 1
    return {"seed": 7, "batch": batch, "references": references, "lookahead": lookahead}


@pytest.fixture(scope="module")
def plans(folder, reference) -> dict[str, Prior]:
    """What the CPU plans, a token a pass."""
    return {way: generate_prior(load_ar(folder), PROMPT, *SIZE, **planning(way, reference)) for way in WAYS}


def same_plan(got: Prior, expected: Prior) -> bool:
    previews = (got.preview, expected.preview)
    return torch.equal(got.tokens, expected.tokens) and (previews == (None, None) or torch.equal(*previews))


@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("lookahead", [1, 8, AUTO], ids=["one", "eight", "auto"])
@pytest.mark.parametrize("way", WAYS)
def test_a_plan_has_the_tokens_of_the_cpu_and_waits_once_a_look(model, plans, reference, card, way, lookahead, recorded, caplog):
    looks = []
    settings = planning(way, reference, lookahead) | {"progress": lambda done, total, preview=None: looks.append(done)}
    with placed(model, card, "language", weights_are_static=recorded) as there:
        card.waits.clear()
        got = generate_prior(there, PROMPT, *SIZE, **settings)
    assert same_plan(got, plans[way])
    waits = len(looks) - 2  # after the start and the first token
    if lookahead == 1:
        assert waits == math.ceil((got.tokens_a_picture - 1) / SYNC_EVERY)
    assert card.waits["read"] == waits + 2  # whether the first logits are finite, and the first token
    assert card.waits["write"] <= 3 * waits + 20 and not card.waits["synchronize"]
    assert not card.replays or recorded
    assert card.replays or not recorded or (lookahead == AUTO and way != "text")  # which may use no size often enough
    if recorded and lookahead == 1:
        assert (card.captures, card.replays) == (1, got.passes - recording.RECORD_AFTER)
    assert card.resets == card.captures
    assert "without a CUDA graph" not in caplog.text


def test_recorded_passes_of_several_sizes_take_turns_over_one_memory(model, card):
    with placed(model, card, "language", weights_are_static=True) as there, torch.inference_mode():
        ids, positions = torch.arange(10), [torch.arange(n).expand(3, -1) for n in (10, 200)]
        states = [decoding.prefill(there, ids, *positions, batch=2)[1] for _ in "ab"]
        recorded = recording.RecordedSteps(states[0], Sampling())
        plain = recording.PlainSteps(states[1], Sampling(), decoding.masked_window)
        generator = torch.Generator().manual_seed(0)
        for turn in range(recording.RECORD_AFTER + 2):
            for rows in (16, 1, 8, 2):
                tokens = torch.randint(there.codebook_size, (2, rows), generator=generator).to(card.device)
                noise = torch.empty(2, rows, there.codebook_size).exponential_(generator=generator).to(card.device)
                inputs = (tokens, torch.tensor([turn, 2 * turn], device=card.device), noise)
                assert torch.equal(recorded(*inputs), plain(*inputs))
        assert set(recorded.recordings) == {16, 1, 8, 2} and card.replays == 8
        recorded.reset()


def test_a_host_that_wants_no_graphs_gets_none(model, plans, reference, card):
    """As ComfyUI's --disable-cuda-graphs asks."""
    with placed(model, card, "language", weights_are_static=True, may_record=False) as there:
        got = generate_prior(there, PROMPT, *SIZE, **planning("edit", reference))
    assert same_plan(got, plans["edit"]) and not card.captures


@pytest.mark.parametrize("failure", ["capture", "item", "stray"])
def test_a_plan_whose_passes_cannot_be_recorded_is_decoded_without_and_that_is_remembered(
    model, plans, reference, card, failure, caplog
):
    """The capture itself fails, or a module reads a number, or brings a tensor of the CPU's, when it runs a token."""
    stray = torch.zeros(model.model.lm_head.out_features)
    if failure == "capture":
        card.capture_error = "CUDA error: operation not supported\nand more"
    else:
        disturb = {"item": lambda out: out + 0 * out.sum().item(), "stray": lambda out: out + stray.to(out.device)}[failure]
        model.model.lm_head.register_forward_hook(lambda module, inputs, out: disturb(out))
    with placed(model, card, "language", weights_are_static=True) as there:
        for _ in range(2):
            got = generate_prior(there, PROMPT, *SIZE, **planning("edit", reference))
            assert same_plan(got, plans["edit"])
    assert card.captures == 0 and there.cannot_record == {card.device}
    assert caplog.text.count("without a CUDA graph") == 1 and "and more" not in caplog.text
    assert card.stream is card.default_stream and card.sync_debug_mode == 0


@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
def test_after_a_plan_that_ran_out_of_memory_the_next_one_is_as_ever(model, plans, reference, card, recorded):
    settings = planning("edit", reference)
    with placed(model, card, "language", weights_are_static=recorded) as there:
        before, first = card.allocated, card.allocations
        generate_prior(there, PROMPT, *SIZE, **settings)
        count = card.allocations - first
        for part in (0.02, 0.05, 0.3, 0.9) if not recorded else (0.02, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9):
            card.fail_at = card.allocations + int(part * count)
            with pytest.raises(torch.OutOfMemoryError):
                generate_prior(there, PROMPT, *SIZE, **settings)
            gc.collect()
            assert card.allocated == before and card.stream is card.default_stream and card.sync_debug_mode == 0
        assert same_plan(generate_prior(there, PROMPT, *SIZE, **settings), plans["edit"])
        assert not there.cannot_record


# Painting


@pytest.fixture
def dit(dit):
    """Enough blocks for one to stay and three to come and go."""
    return deepened(dit, 4)


@pytest.fixture
def lora(dit) -> WeightedLora:
    """On a layer of each block."""
    generator, pairs = torch.Generator().manual_seed(0), {}
    for block in range(len(dit.blocks)):
        layer = f"transformer_blocks.{block}.attn1.to_q"
        rows, columns = dit.model.get_parameter(f"{layer}.weight").shape
        pairs[f"{layer}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
        pairs[f"{layer}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
    return WeightedLora(pairs, 0.1)


@pytest.fixture
def painting(glyphs, reference):
    """What `sample` is given for a kind of picture, beside the DiT and the number of steps."""

    def settings(kind: str) -> dict:
        shared = {"prior": plan(*SIZE), "positive": glyphs[0], "negative": glyphs[1], "seeds": [3]}
        width, height = SIZE
        latents = torch.randn(1, 16, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
        mask = (torch.arange(width // 8) > 9).float().expand(1, 1, height // 8, -1)
        own = {
            "edit": {"references": [reference]},
            "batch": {"seeds": [3, 4]},
            "one length": {"negative": glyphs[0].flip(1)},
            "part": {"latents": latents, "mask": mask, "denoise": 0.6},
            "step cache": {"approximations": Approximations(step_cache=0.9)},
        }
        return shared | own.get(kind, {})

    return settings


@contextmanager
def on_card(dit: Dit, card: Card, is_streamed: bool):
    if not is_streamed:
        with placed(dit, card) as there:
            yield there
    else:
        with streamed(dit.model, dit.blocks, resident=1, device=card.device):
            yield dit.on(card.device)


IS_STREAMED = pytest.mark.parametrize("is_streamed", [False, True], ids=["resident", "streamed"])


@IS_STREAMED
@pytest.mark.parametrize("kind", ["text", "lora", "batch", "one length", "part"])
def test_a_picture_is_the_cpus_and_no_step_waits(dit, painting, lora, card, kind, is_streamed):
    settings, loras = painting(kind), [lora] if kind == "lora" else []
    weights = {name: tensor.clone() for name, tensor in dit.model.state_dict().items()}
    with applied_loras(dit.model, loras):
        expected = sample(dit, **settings, steps=4)
    waits = []
    with on_card(dit, card, is_streamed) as there, applied_loras(there.model, loras):
        for steps in (2, 4):
            card.waits.clear()
            got = sample(there, **settings, steps=steps)
            waits.append(dict(card.waits))
    torch.testing.assert_close(got, expected, **CLOSE)
    assert waits[0] == waits[1] and waits[0]["read"] == 1
    dit.model.to("cpu")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in dit.model.state_dict().items())


@IS_STREAMED
@pytest.mark.parametrize("caches_on_device", [True, False])
def test_an_edit_is_the_cpus_and_waits_for_a_new_reference_only(dit, painting, card, caches_on_device, is_streamed):
    settings = painting("edit") | {"caches_on_device": caches_on_device}
    expected = sample(dit, **settings, steps=4)
    dit.cached_references.clear()
    waits = []
    with on_card(dit, card, is_streamed) as there:
        for steps in (4, 2, 4):
            card.waits.clear()
            got = sample(there, **settings, steps=steps)
            waits.append(dict(card.waits))
            torch.testing.assert_close(got, expected, **CLOSE) if steps == 4 else None
    kept = [tensor for layers in dit.cached_references.values() for pair in layers for tensor in pair]
    assert len(kept) == 2 * len(dit.blocks) and all(tensor.device.type == "cpu" and card.is_pinned(tensor) for tensor in kept)
    assert [wait["read"] for wait in waits] == [1 + len(kept), 1, 1] and waits[1] == waits[2]


@IS_STREAMED
def test_a_step_cache_decides_once_a_pass(dit, painting, card, is_streamed, caplog):
    caplog.set_level("INFO")
    settings = painting("step cache")
    expected = sample(dit, **settings, steps=8)
    with on_card(dit, card, is_streamed) as there:
        card.waits.clear()
        got = sample(there, **settings, steps=8)
    torch.testing.assert_close(got, expected, **CLOSE)
    assert card.waits["read"] == 1 + 2 * 7  # at the end, and on both sides of the guidance from the second step on
    said = [message for message in caplog.messages if message.startswith("step cache")]
    assert len(said) == 2 and said[0] == said[1] and " 0 of 16" not in said[0]


@IS_STREAMED
@pytest.mark.parametrize("quantization", FORMATS)
def test_quantized_weights_paint_as_on_the_cpu(kitchen, dit, painting, card, quantization, is_streamed):
    quantize(dit.model, quantization)
    expected = sample(dit, **painting("text"), steps=2)
    with on_card(dit, card, is_streamed) as there:
        painted = sample(there, **painting("text"), steps=2)
    if quantization == "int8":  # rounds its inputs too: what differs a little may be rounded to the next of 127 steps
        assert (painted - expected).norm() < 0.02 * expected.norm()
    else:
        torch.testing.assert_close(painted, expected, **CLOSE)


@pytest.mark.parametrize("room", [True, False], ids=["with room", "full"])
@pytest.mark.parametrize("quantization", FORMATS)
def test_a_card_quantizes_what_is_loaded_for_it_if_it_has_room(kitchen, folder, card, quantization, room, caplog):
    expected = dict(load_dit(folder, quantization=quantization).model.named_parameters())
    if not room:
        card.total = 0
    quantized = load_dit(folder, quantization=quantization, device=card.device).model
    assert (card.peak > 0) == room and card.allocated <= 64  # bytes of the table of nf4
    for name, parameter in quantized.named_parameters():
        ours, theirs = inner_tensors(parameter), inner_tensors(expected[name])
        assert all(tensor.device.type == "cpu" for tensor in ours) and all(map(torch.equal, ours, theirs)), name
    has_kernels = any(map(find_spec, NF4_KERNELS))
    assert ("nf4 is slow without bitsandbytes" in caplog.text) == (quantization == "nf4" and not has_kernels)


@pytest.mark.parametrize("quantization", FORMATS)
def test_quantized_weights_plan_as_on_the_cpu_recorded_or_not(kitchen, folder, reference, card, quantization):
    expected = generate_prior(load_ar(folder, quantization=quantization), PROMPT, *SIZE, seed=7, references=[reference])
    for recorded in (False, True):
        with placed(load_ar(folder, quantization=quantization), card, "language", weights_are_static=recorded) as there:
            got = generate_prior(there, PROMPT, *SIZE, seed=7, references=[reference], lookahead=1)
            assert same_plan(got, expected) and (card.replays > 0) == recorded


def test_streamed_blocks_are_copied_while_others_compute_and_leave_nothing(dit, painting, card):
    block, before = model_bytes(dit.blocks[0]), card.allocated
    with on_card(dit, card, is_streamed=True) as there:
        staying = card.allocated
        assert staying == model_bytes(dit.model) - 3 * block
        card.copied, card.peak = 0, staying
        sample(there, **painting("text"), steps=2)
        passes = 2 * 2
        assert passes * 3 * block <= card.copied < (passes * 3 + 2) * block
        assert all(card.is_pinned(weight) for weight in dit.blocks[1].parameters())
    gc.collect()
    assert card.allocated == before


def test_weights_that_cannot_all_be_pinned_are_streamed_from_where_they_are(dit, painting, card, caplog):
    expected = sample(dit, **painting("text"), steps=2)
    card.pinned_total = model_bytes(dit.blocks[0])
    with on_card(dit, card, is_streamed=True) as there:
        torch.testing.assert_close(sample(there, **painting("text"), steps=2), expected, **CLOSE)
    assert caplog.text.count("not all weights can be pinned (CUDA error: out of memory)") == 1


def test_after_a_picture_that_ran_out_of_memory_the_next_one_is_as_ever(dit, painting, card):
    expected = sample(dit, **painting("edit"), steps=2)
    for is_streamed in (False, True):
        dit.cached_references.clear()
        with on_card(dit, card, is_streamed) as there:
            first, before = card.allocations, card.allocated
            sample(there, **painting("edit"), steps=2)
            count = card.allocations - first
            for part in (0.01, 0.2, 0.6, 0.9):
                dit.cached_references.clear()
                card.fail_at = card.allocations + int(part * count)
                with pytest.raises(torch.OutOfMemoryError):
                    sample(there, **painting("edit"), steps=2)
                gc.collect()
            dit.cached_references.clear()
            torch.testing.assert_close(sample(there, **painting("edit"), steps=2), expected, **CLOSE)
            gc.collect()
            assert is_streamed or card.allocated == before
        Residency(card.device).release(dit.model)
        gc.collect()
        assert card.allocated == 0


# The other models


@pytest.mark.parametrize("texts", [[], ["OPEN"], ["OPEN", "wider text"]], ids=len)
def test_glyph_embeddings_are_the_cpus(folder, encoder, card, texts):
    expected = encode_glyph_texts(encoder, texts)
    with placed(load_glyph_encoder(folder), card) as there:
        card.waits.clear()
        torch.testing.assert_close(encode_glyph_texts(there, texts), expected, **CLOSE)
    assert card.waits["read"] <= 3


@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "tiled"])
def test_the_vaes_pictures_and_latents_are_the_cpus_and_it_waits_once_a_picture(folder, vae, card, tiled):
    latents = torch.randn(2, 16, 72, 8, generator=torch.Generator().manual_seed(0))
    picture = pattern(64, 576, 3)
    decoded, encoded = decode(vae, latents, tiled), latents_of(vae, picture, tiled)
    with placed(load_vae(folder), card) as there:
        card.waits.clear()
        torch.testing.assert_close(decode(there, latents, tiled), decoded, **CLOSE)
        assert card.waits == {"read": 2, "write": 2}
        torch.testing.assert_close(latents_of(there, picture, tiled), encoded, **CLOSE)
        assert card.waits == {"read": 3, "write": 3}


def test_vision_tokens_are_the_cpus(model, ar, card):
    picture = fit(ar, pattern(128, 160, 3))
    expected = vision_tokens(ar, picture)
    with placed(model, card, "vision") as there:
        assert torch.equal(vision_tokens(there, picture), expected)


# Placement


def test_what_is_held_is_on_the_card_and_what_leaves_is_gone(folder, dit, card):
    encoder, vae = load_glyph_encoder(folder).model, load_vae(folder).model
    sizes = [model_bytes(model) for model in (dit.model, encoder, vae)]
    card.total = HEADROOM + sum(sizes) - 1  # one byte too little for all three
    residency = Residency(card.device)
    for model, resident in ((dit.model, 1), (encoder, 2), (vae, 2)):
        with residency.hold(model):
            assert all(tensor.device == card.device for tensor in (*model.parameters(), *model.buffers()))
        assert len(residency.resident) == resident
        gc.collect()
        assert card.allocated == sum(map(model_bytes, residency.resident))
        assert free_device_bytes(card.device) == card.total - HEADROOM - card.allocated
    assert residency.resident == [encoder, vae] and dit.model.device.type == "cpu"


def test_a_model_that_does_not_fit_whole_is_streamed(dit, painting, card):
    expected = sample(dit, **painting("text"), steps=2)
    card.total = HEADROOM + model_bytes(dit.model) - 1
    residency = Residency(card.device)
    with residency.hold(dit.model, 0, dit.blocks) as device:
        assert residency.resident == [] and 0 < card.allocated < model_bytes(dit.model)
        torch.testing.assert_close(sample(dit.on(device), **painting("text"), steps=2), expected, **CLOSE)


def test_a_model_that_does_not_fit_leaves_no_part_of_itself(dit, card):
    residency = Residency(card.device, free_bytes=lambda: 10**12)  # as where another program took the rest meanwhile
    card.total = model_bytes(dit.model) - 1
    with pytest.raises(torch.OutOfMemoryError, match="Not enough memory on cuda:0: GlmImageDit takes"), residency.hold(dit.model):
        pass
    gc.collect()
    assert card.allocated == 0 and residency.resident == [] and dit.model.device.type == "cpu"


def test_a_model_that_was_not_moved_is_noticed(folder, model, dit, painting, card):
    for stage in (
        lambda: generate_prior(model.on(card.device), PROMPT, *SIZE, seed=0),
        lambda: sample(dit.on(card.device), **painting("text"), steps=1),
        lambda: encode_glyph_texts(load_glyph_encoder(folder).on(card.device), ["OPEN"]),
        lambda: decode(load_vae(folder).on(card.device), torch.zeros(1, 16, 24, 24)),
        lambda: vision_tokens(model.on(card.device), pattern(128, 160, 3)),
    ):
        with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
            stage()


# Workflows


def run(runner, folders, name: str) -> torch.Tensor:
    """The picture that a shipped workflow saves, [H, W, 3] uint8."""
    folders.written.clear()
    runner.run(shipped(name))
    (path,) = saved(folders)
    return torch.from_numpy(np.array(Image.open(path)))


@pytest.mark.parametrize("name", ["text_to_image", "image_edit"])
def test_a_workflow_draws_the_cpus_picture(folders, quiet_host, card, name):
    expected = run(Runner(ALL_NODES, folders), folders, name)
    quiet_host.residency = Residency(card.device)
    got = run(Runner(ALL_NODES, folders), folders, name)
    assert (got.int() - expected.int()).abs().max() <= 1
    assert card.peak > 0 and card.replays > 0
    gc.collect()
    assert card.allocated == 0  # the runner let the models go


def test_the_command_line_draws_on_the_card_says_in_a_line_that_memory_ran_out_and_draws_again(models, tmp_path, capsys, card):
    small = [f"--set=GLM-Image {key}" for key in ("Generate Prior.width=192", "Generate Prior.height=192", "Sampler.steps=1")]
    workflow = str(ROOT / "workflows" / "api" / "text_to_image.json")

    def render() -> int:
        return main(["render", workflow, f"--models={models}", f"--output={tmp_path}", "--device=cuda", *small])

    assert render() == 0
    card.fail_at = card.allocations + card.allocations // 2
    assert render() == 1
    assert re.fullmatch(r"node \d+ \(GLM-Image .+\): CUDA out of memory\. .+", capsys.readouterr().err.splitlines()[-1])
    assert render() == 0
    first, second = (np.array(Image.open(path)) for path in sorted(tmp_path.rglob("*.png")))
    assert np.array_equal(first, second)


def test_bench_checks_sees_an_operation_of_comfy_kitchen_that_is_wrong(kitchen, card, monkeypatch):
    import comfy_kitchen

    there = SimpleNamespace(device=card.device)
    monkeypatch.setattr(checks, "can_split", lambda cache, scaling: False)
    assert checks._operations(there, 0) is None
    rotate = comfy_kitchen.apply_rope_split_half1_
    monkeypatch.setattr(comfy_kitchen, "apply_rope_split_half1_", lambda x, matrices: rotate(x, matrices.mT))
    assert "rotation: a relative distance" in checks._operations(there, 0)
