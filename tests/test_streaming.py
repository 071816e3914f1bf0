"""A model that does not fit: block by block, with the same result, and its weights untouched.

The meta device plays a device of its own: what is copied there has no values, and what was left behind raises.
"""

from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.dit import encode_conditions, velocity
from glm_image_pack.glmimage_core.glm_image.files.load import load_dit
from glm_image_pack.glmimage_core.glm_image.glyphs import encode_glyph_texts
from glm_image_pack.glmimage_core.placement import streaming
from glm_image_pack.glmimage_core.placement.residency import Residency, model_bytes
from glm_image_pack.glmimage_core.placement.streaming import resident_blocks, streamed
from glm_image_pack.glmimage_core.weights.linear import quantize
from glm_image_pack.glmimage_core.weights.lora import WeightedLora, applied_loras

from deep import deepened
from pictures import pattern
from plans import plan

META = torch.device("meta")
GIB = 2**30


@pytest.fixture
def dit(dit):
    return deepened(dit, 5)


@pytest.fixture
def deep(dit):
    return dit.model


def rooms(model) -> tuple[int, int]:
    """Bytes of a block, and of all that is no block."""
    block = model_bytes(model.transformer_blocks[0])
    return block, model_bytes(model) - len(model.transformer_blocks) * block


@pytest.mark.parametrize(
    ("room", "count"), [(19, None), (20, 0), (29, 0), (30, 1), (45, 2), (1000, 3)], ids=lambda value: str(value)
)
def test_as_many_blocks_stay_as_fit_beside_two_that_come_and_go(room, count):
    assert resident_blocks(0, [10] * 5, room) == count
    assert resident_blocks(7, [10] * 5, room + 7) == count


@pytest.mark.parametrize("resident", [0, 2])
def test_two_blocks_at_most_are_there_beside_the_resident_ones(deep, dit, resident):
    before = {name: tensor.clone() for name, tensor in deep.state_dict().items()}
    there = replace(dit, model=deep).on(META)
    blocks, seen = deep.transformer_blocks, []
    for index, block in enumerate(blocks):
        block.attn1.register_forward_pre_hook(
            lambda *_, index=index: seen.append((index, [p.device == META for b in blocks for p in b.ff.parameters()]))
        )
    with streamed(deep, blocks, resident=resident, device=META):
        glyphs = torch.zeros(1, 5, deep.config.text_embed_dim)
        conditions = encode_conditions(there, glyphs, 256, 256, batch=1, tokens=plan().tokens)
        time = deep.embed_time(torch.zeros(1, device=META), 256, 256, there.dtype)
        for _ in range(2):
            assert velocity(there, torch.empty(1, 16, 32, 32, device=META), time, conditions).device == META
    each = len(list(blocks[0].ff.parameters()))
    for index, here in seen:
        present = {number for number in range(5) if all(here[number * each : (number + 1) * each])}
        assert present == set(range(resident)) | ({index} if index >= resident else set())
    assert [index for index, _ in seen] == [0, 1, 2, 3, 4] * 2
    after = deep.state_dict()
    assert all(after[name].device.type == "cpu" and torch.equal(after[name], before[name]) for name in before)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


def test_a_block_is_on_its_way_while_the_one_before_computes(deep, dit, monkeypatch):
    from glm_image_pack.glmimage_core.placement import streaming

    events = []
    prefetch = streaming._StreamedModules.prefetch

    def watched(self):
        if self._copies is None and len(self.slots) < 40:
            events.append("copy")
        prefetch(self)

    monkeypatch.setattr(streaming._StreamedModules, "prefetch", watched)
    for block in deep.transformer_blocks:
        block.attn1.register_forward_pre_hook(lambda *_: events.append("compute"))
    with streamed(deep, deep.transformer_blocks, resident=2, device=META):
        there = replace(dit, model=deep).on(META)
        conditions = encode_conditions(there, torch.zeros(1, 5, deep.config.text_embed_dim), 256, 256, batch=1)
        time = deep.embed_time(torch.zeros(1, device=META), 256, 256, there.dtype)
        for _ in range(2):
            velocity(there, torch.empty(1, 16, 32, 32, device=META), time, conditions)
    first = ["compute", "compute", "copy", "copy", "compute", "copy", "compute", "copy", "compute"]
    assert events == [*first, "compute", "compute", "copy", "compute", "copy", "compute", "copy", "compute"]


def test_an_error_leaves_the_model_as_it_was(deep):
    before = dict(deep.named_parameters())
    with pytest.raises(KeyError), streamed(deep, deep.transformer_blocks, resident=1, device=META):
        assert deep.proj_out.weight.device == META
        raise KeyError
    assert all(before[name] is parameter for name, parameter in deep.named_parameters())


@pytest.mark.parametrize("quantization", ["none", "int8", "fp8", "nf4"])
@pytest.mark.parametrize("edit", [False, True])
def test_a_streamed_dit_paints_the_same_picture_with_a_lora_over_it(dit, encoder, encode_reference, edit, quantization):
    if quantization != "none":
        pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
        quantize(dit.model, quantization)
    glyphs = encode_glyph_texts(encoder, ["OPEN"]), encode_glyph_texts(encoder, [])
    references = [encode_reference(pattern(128, 160, 3))] if edit else []
    pairs, width = {}, dit.model.config.num_attention_heads * dit.model.config.attention_head_dim
    for layer in ("transformer_blocks.0.attn1.to_q", "transformer_blocks.4.attn1.to_q"):
        pairs |= {f"{layer}.lora_up.weight": torch.randn(width, 2), f"{layer}.lora_down.weight": torch.randn(2, width)}
    lora = WeightedLora(pairs, 0.5)

    def paint(placed):
        dit.cached_references.clear()
        return sample(placed, plan(), *glyphs, seeds=[0], steps=2, references=references)

    without = paint(dit)
    with applied_loras(dit.model, [lora]):
        expected = paint(dit)
    block, others = rooms(dit.model)
    residency = Residency(torch.device("cpu", 0), lambda: others + 3 * block + 100)
    with residency.hold(dit.model, 100, dit.blocks) as device, applied_loras(dit.model, [lora]):
        assert residency.resident == []
        assert torch.allclose(paint(dit.on(device)), expected, atol=1e-5)
    assert not torch.allclose(expected, without, atol=1e-3)
    assert torch.allclose(paint(dit), without, atol=1e-5)


def test_a_model_that_fits_is_not_streamed_and_one_that_fits_nowhere_is_told(dit):
    block, others = rooms(dit.model)
    sizes = {"free": model_bytes(dit.model) + 100}
    residency = Residency(torch.device("cpu", 0), lambda: sizes["free"])
    with residency.hold(dit.model, 100, dit.blocks):
        assert residency.resident == [dit.model]
    residency.release(dit.model)
    sizes["free"] = others + 2 * block + 99
    held = residency.hold(dit.model, 100, dit.blocks)
    with (
        pytest.raises(
            torch.OutOfMemoryError,
            match=r"Not enough memory on cpu:0: .* even when streamed block by block, plus 100 B for activations",
        ),
        held,
    ):
        pass


def test_a_resident_model_makes_room_for_its_own_work(dit):
    block, others = rooms(dit.model)
    residency = Residency(torch.device("cpu", 0), lambda: others + 2 * block + 500 - sum(map(model_bytes, residency.resident)))
    residency.free_bytes = lambda: 10**9
    with residency.hold(dit.model, 0, dit.blocks):
        assert residency.resident == [dit.model]
    residency.free_bytes = lambda: others + 2 * block + 500 - sum(map(model_bytes, residency.resident))
    with residency.hold(dit.model, 500, dit.blocks):
        assert residency.resident == []  # streamed


def test_caches_that_do_not_fit_beside_the_weights_come_layer_by_layer(
    quiet_host, encoder, encode_reference, folder, monkeypatch
):
    from glm_image_pack.glmimage_core.glm_image import denoise
    from glm_image_pack.glmimage_core.glm_image.memory import dit_bytes
    from glm_image_pack.glmimage_core.placement.prediction import Job
    from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES

    dit = load_dit(folder)
    reference = encode_reference(pattern(256, 256, 3))
    prior = replace(plan(), codebook=reference.codebook, references=(reference.id,))
    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(encoder, 'a sign "OPEN"')
    positive, negative = NODES["GLMImageApplyPrior"]().apply(positive, negative, prior, (reference,))
    (expected,) = NODES["GLMImageSampler"]().sample(dit, positive, negative, 0, 2, 1.5)
    asked = []
    kv_caches = denoise.reference_kv_caches
    monkeypatch.setattr(denoise, "reference_kv_caches", lambda *inputs: asked.append(inputs[2]) or kv_caches(*inputs))
    job = Job(256, 256, references=((256, 256),), glyph_tokens=positive[0][0].shape[1])
    room = model_bytes(dit.model) + dit_bytes(dit.model.config, 4, job)
    for free in (room, room - 1):
        residency = Residency(torch.device("cpu", 0), lambda: free - sum(map(model_bytes, residency.resident)))  # noqa: B023
        quiet_host.residency = residency
        (out,) = NODES["GLMImageSampler"]().sample(dit, positive, negative, 0, 2, 1.5)
        assert torch.allclose(out["samples"], expected["samples"], atol=1e-5)
        residency.release(dit.model)
    assert asked == [True, False]


def test_weights_that_cannot_be_pinned_stay_where_they_are(monkeypatch, caplog):
    """As on a system that lets a process pin half of its memory."""
    pinned = []

    def pin(tensor):
        if len(pinned) == 2:
            raise RuntimeError("CUDA error: out of memory")
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    blocks = [torch.nn.Linear(3, 3) for _ in range(3)]
    before = [parameter.detach().clone() for block in blocks for parameter in block.parameters()]
    streaming._pin(blocks)
    after = [parameter for block in blocks for parameter in block.parameters()]
    assert all(map(torch.equal, before, after)) and "not all weights can be pinned (CUDA error: out of memory)" in caplog.text
    assert caplog.text.count("pinned") == 1
