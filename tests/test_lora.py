"""LoRA without ComfyUI: reading, matching, laying over and taking off. In ComfyUI: tests/inside_comfyui/test_lora.py."""

import asyncio
import json
import time

import pytest
import torch
from glm_image_pack.bench.measure import allocator_peak
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.placement.residency import Residency, model_bytes
from glm_image_pack.glmimage_core.weights.formats import FORMATS, inner_tensors
from glm_image_pack.glmimage_core.weights.linear import quantize
from glm_image_pack.glmimage_core.weights.lora import (
    WeightedLora,
    applied_loras,
    applied_loras_bytes,
    match,
    read_lora,
    states_other_scale,
)
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile

from plans import plan

CPU, OTHER = torch.device("cpu"), torch.device("cpu", 0)  # the second plays a place of its own, in the same memory
LAYER = "transformer_blocks.0.attn1.to_q"
NAME = "a" * 3000 + "b"


def pair(model, layer=LAYER, rank=4, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    module = model.get_submodule(layer)
    return torch.randn(module.out_features, rank, generator=generator), torch.randn(rank, module.in_features, generator=generator)


def written(folder, tensors, name="a.safetensors", metadata=None):
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, metadata)
    return folder / name


def test_a_lora_is_laid_over_and_taken_off_bit_for_bit(dit):
    up, down = pair(dit.model)
    lora = WeightedLora({f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down}, strength=0.5)
    weight = dit.model.get_parameter(f"{LAYER}.weight")
    original = weight.data.clone()
    with applied_loras(dit.model, [lora, lora]):
        assert torch.allclose(weight.data, original + up @ down, atol=1e-4)
    assert torch.equal(weight.data, original)
    with pytest.raises(KeyboardInterrupt), applied_loras(dit.model, [lora]):
        raise KeyboardInterrupt
    assert torch.equal(weight.data, original)


@pytest.mark.parametrize("quantization", ["none", *FORMATS])
@pytest.mark.parametrize("offload_device", [CPU, OTHER], ids=["in place of", "beside"])
def test_weights_come_back_bit_for_bit_from_wherever_they_waited(dit, offload_device, quantization):
    if quantization != "none":
        pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
        quantize(dit.model, quantization)
    up, down = pair(dit.model)
    lora = WeightedLora({f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down}, strength=0.5)
    layer = dit.model.get_submodule(LAYER)

    def content() -> list[bytes]:
        return [inner.flatten().view(torch.uint8).numpy().tobytes() for inner in inner_tensors(layer.weight)]

    def addresses() -> list[int]:
        return [inner.data_ptr() for inner in inner_tensors(layer.weight)]

    original, own, changed = content(), addresses(), []
    for place in (CPU, offload_device):
        with applied_loras(dit.model, [lora, lora], offload_device=place):
            assert (addresses() == own) == (place != CPU)
            changed.append(content())
        assert content() == original and addresses() == own
    assert changed[0] == changed[1] != original
    with pytest.raises(KeyboardInterrupt), applied_loras(dit.model, [lora], offload_device=offload_device):
        raise KeyboardInterrupt
    assert content() == original


def wide_model(quantization: str = "none", layers: int = 3) -> tuple[torch.nn.Module, list[WeightedLora]]:
    """Feed-forwards in bfloat16, tall ones as nf4 needs them, and a LoRA for all of them."""
    blocks = [torch.nn.ModuleDict({"ff": torch.nn.Sequential(torch.nn.Linear(128, 16384, bias=False))}) for _ in range(layers)]
    model = torch.nn.ModuleDict({"transformer_blocks": torch.nn.ModuleList(blocks)}).bfloat16()
    tensors = {}
    for index in range(layers):
        name = f"transformer_blocks.{index}.ff.0"
        up, down = pair(model, name)
        tensors |= {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
    if quantization != "none":
        pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
        quantize(model, quantization)
    return model, [WeightedLora(tensors, 1.0)]


@pytest.mark.parametrize("quantization", ["none", *FORMATS])
@pytest.mark.parametrize("offload_device", [CPU, OTHER], ids=["on the CPU", "on a device"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_memory_that_loras_need_is_predicted(quantization, offload_device, count):
    model, loras = wide_model(quantization)
    loras *= count

    def run():
        with applied_loras(model, loras, offload_device=offload_device):
            pass

    waiting = 0 if offload_device == CPU else model_bytes(model)  # the originals, which the allocator counts here too
    predicted = applied_loras_bytes(model, loras, CPU, offload_device=offload_device)
    # How much of a temporary is in memory depends on the format; too much is asked for rather than too little.
    assert 0.6 * predicted <= allocator_peak(run) - waiting <= 1.02 * predicted


def allocated(run) -> int:
    """The bytes that are in memory after run() and were not before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("offload_device", [CPU, OTHER], ids=["on the CPU", "on a device"])
def test_while_loras_are_applied_each_weight_is_held_once_on_a_device_and_nothing_else(offload_device):
    """On a device the originals wait elsewhere; on the CPU there is no elsewhere. Either way they are all that is added."""
    model, loras = wide_model()
    applied = applied_loras(model, loras, offload_device=offload_device)
    assert allocated(applied.__enter__) == pytest.approx(model_bytes(model), rel=0.01)
    applied.__exit__(None, None, None)


def test_a_device_is_asked_for_the_memory_that_loras_need(quiet_host, dit):
    tensors = {}
    for layer in (LAYER, "transformer_blocks.1.ff.net.2"):
        up, down = pair(dit.model, layer)
        tensors |= {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down}
    wire = quiet_host.with_lora(dit, tensors, 1.0)
    needed = applied_loras_bytes(dit.model, wire.loras, OTHER)
    assert needed == 2 * 4 * dit.model.get_parameter("transformer_blocks.1.ff.net.2.weight").numel()
    free = model_bytes(dit.model) + needed
    residency = quiet_host.residency = Residency(OTHER, lambda: free - sum(map(model_bytes, residency.resident)))
    with quiet_host.placed(wire):
        assert residency.resident == [dit.model]
    residency.release(dit.model)
    free -= 1
    with pytest.raises(torch.OutOfMemoryError, match="plus 131.1 kB for"), quiet_host.placed(wire):
        pass


def test_a_lora_is_laid_over_the_half_of_the_ar_model_that_is_there(quiet_host, ar):
    layers = {"language": "model.language_model.layers.0.mlp.down_proj", "vision": "model.visual.blocks.0.attn.proj"}
    lora = {}
    for layer in layers.values():
        up, down = pair(ar.model, layer)
        lora |= {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down}
    wire = quiet_host.with_lora(ar, match(lora, ar.model).tensors, 1.0)
    before = {half: ar.model.get_parameter(f"{layer}.weight").data.clone() for half, layer in layers.items()}

    def changed() -> set[str]:
        weights = {half: ar.model.get_parameter(f"{layer}.weight") for half, layer in layers.items()}
        return {half for half, weight in weights.items() if not torch.equal(weight, before[half])}

    for half in layers:
        with quiet_host.placed(wire, part=half):
            assert changed() == {half}
        assert changed() == set()


def test_alpha_over_rank_scales_it(dit):
    up, down = pair(dit.model)
    plain = {f"{LAYER}.lora_up.weight": up, f"{LAYER}.lora_down.weight": down}
    scaled = WeightedLora(plain | {f"{LAYER}.alpha": torch.tensor(1.0)}, strength=1.0)
    assert torch.allclose(scaled.delta(LAYER), (up @ down) / 4)
    assert torch.allclose(WeightedLora(plain, strength=2.0).delta(LAYER), 2 * (up @ down))


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),  # alpha / sqrt(rank)
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"o_q": 2, "attn[23].*": 2}}, 2.0),  # matches whole names only
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {r"transformer_blocks\.\d+\.attn1\..*": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"^transformer_blocks.0.attn1.to_q": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"^attn1.to_q": 2}}, 2.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_k": 1, "to_(q|k)": 2, "attn1.to_q": 4}}, 0.5),  # the first that matches
        ({"r": 4, "lora_alpha": None}, 1.0),
    ],
)
def test_alphas_are_taken_from_where_their_makers_keep_them(dit, tmp_path, config, scale):
    up, down = pair(dit.model)
    peft = {f"base_model.model.{LAYER}.lora_B.weight": up, f"base_model.model.{LAYER}.lora_A.weight": down}
    file = written(tmp_path / "peft", peft, "adapter_model.safetensors")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    stated = {f"transformer.{key}": value for key, value in config.items()}
    diffusers = {f"transformer.{LAYER}.lora_B.weight": up, f"transformer.{LAYER}.lora_A.weight": down}
    other = written(tmp_path / "diffusers", diffusers, metadata={"lora_adapter_metadata": json.dumps(stated)})
    for path in (file, other):
        matched = match(read_lora(path), dit.model)
        assert matched.weights == 1 and matched.unmatched == []
        assert torch.allclose(WeightedLora(matched.tensors, 1.0).delta(LAYER), scale * (up @ down), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "other"),
    [
        ({"transformer.r": 8, "transformer.lora_alpha": 8}, False),
        ({"transformer.r": 8, "transformer.lora_alpha": 16}, True),
        ({"r": 8, "lora_alpha": 8, "use_rslora": True}, True),
        ({"r": 8, "lora_alpha": 8, "alpha_pattern": {"to_q": 4}}, True),
        ({"r": 8, "lora_alpha": 8, "rank_pattern": {"to_q": 4}}, True),
        ({"r": 8}, False),
        ([], False),
        (None, False),
    ],
)
def test_metadata_says_whether_it_scales_the_weights(config, other):
    metadata = {"format": "pt"} if config is None else {"lora_adapter_metadata": json.dumps(config)}
    assert states_other_scale(metadata) == other
    assert not states_other_scale({"lora_adapter_metadata": "{"})


def test_the_nodes_lay_it_over_both_halves_and_leave_the_loaded_ones_alone(quiet_host, models, folder, dit, ar, tmp_path):
    up, down = pair(dit.model)
    language = "model.language_model.layers.0.self_attn.q_proj"
    ar_up, ar_down = pair(ar.model, language)
    tensors = {
        f"transformer.{LAYER}.lora_B.weight": up,
        f"transformer.{LAYER}.lora_A.weight": down,
        f"base_model.model.{language}.lora_B.weight": ar_up,
        f"base_model.model.{language}.lora_A.weight": ar_down,
    }
    written(models / "loras", tensors, "both.safetensors")
    node = NODES["GLMImageLoadLoRA"]
    assert "both.safetensors" in node.INPUT_TYPES()["required"]["lora_name"][0]
    model, writer = node().load("both.safetensors", 0.5, -0.5, dit, ar)

    merged = checkpoints.load_dit(folder)
    merged.model.get_parameter(f"{LAYER}.weight").data += 0.5 * (up @ down)
    glyphs = torch.randn(1, 5, dit.model.config.text_embed_dim, generator=torch.Generator().manual_seed(0))
    conditioning = [[glyphs, {"glm_image_prior": plan()}]]
    inputs = {"positive": conditioning, "negative": conditioning, "seed": 3, "steps": 2, "cfg": 1.5}
    painted = NODES["GLMImageSampler"]().sample(model, **inputs)[0]["samples"]
    assert torch.allclose(painted, sample(merged, plan(), glyphs, glyphs, seeds=[3], steps=2), atol=1e-4)
    plain = NODES["GLMImageSampler"]().sample(dit, **inputs)[0]["samples"]
    assert torch.allclose(plain, sample(checkpoints.load_dit(folder), plan(), glyphs, glyphs, seeds=[3], steps=2), atol=1e-5)
    assert not torch.allclose(painted, plain, atol=1e-2)

    tokens = [
        asyncio.run(NODES["GLMImageGeneratePrior"]().generate(wire, "a tree", 256, 256, 1, 0))[0].tokens
        for wire in (ar, writer, ar)
    ]
    assert torch.equal(tokens[0], tokens[2]) and not torch.equal(tokens[0], tokens[1])


def test_references_are_run_again_with_other_weights(quiet_host, dit, encode_reference):
    from pictures import pattern

    up, down = pair(dit.model)
    lora = {f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down}
    changed = quiet_host.with_lora(dit, lora, 1.0)
    glyphs = torch.zeros(1, 1, dit.model.config.text_embed_dim)
    references = (encode_reference(pattern(128, 128, 3)),)
    positive = [[glyphs, {"glm_image_prior": plan(), "glm_image_references": references}]]
    for wire, kept in ((dit, 1), (changed, 2), (dit, 2), (changed, 2)):
        NODES["GLMImageSampler"]().sample(wire, positive, positive, 0, 1, 1.5)
        assert len(dit.cached_references) == kept


def test_other_kinds_of_change_are_for_comfyui(dit):
    tensors = {f"diffusion_model.{LAYER}.lokr_w1": torch.ones(2, 2), f"diffusion_model.{LAYER}.lokr_w2": torch.ones(2, 2)}
    matched = match(tensors, dit.model)
    assert matched.weights == 1 and matched.unmatched == []
    with pytest.raises(ValueError, match="lokr_w1, a kind of change that only ComfyUI applies"):
        WeightedLora(matched.tensors, 1.0)


SPELLED = [
    *(f"{prefix}{LAYER}.lora_{{AB}}.weight" for prefix in ("", "transformer.", "diffusion_model.", "base_model.model.")),
    *(f"{prefix}{LAYER}.lora_{{AB}}.weight" for prefix in ("transformer.base_model.model.", "base_model.model.transformer.")),
    *(f"{prefix}{LAYER}.lora_{{AB}}.weight" for prefix in ("diffusion_model.base_model.model.", "model.diffusion_model.")),
    *(f"{prefix}{LAYER}.lora_{{AB}}.weight" for prefix in ("unet.", "dit.", "pipe.dit.", "module.", "_orig_mod.")),
    f"_fsdp_wrapped_module.{LAYER.replace('.attn1', '._fsdp_wrapped_module.attn1')}.lora_{{AB}}.weight",
    *(f"{LAYER}.lora_{{AB}}.{adapter}.weight" for adapter in ("default", "default_0", "style")),
    f"{LAYER}.lora_{{AB}}",
    *(f"{LAYER}.{suffix}" for suffix in ("lora_{updown}.weight", "lora.{updown}.weight", "lora_linear_layer.{updown}.weight")),
    f"{LAYER.removesuffix('.to_q')}.processor.to_q_lora.{{updown}}.weight",
    *(f"{prefix}{LAYER.replace('.', '_')}.lora_{{updown}}.weight" for prefix in ("lora_unet_", "lora_transformer_", "lycoris_")),
]


def spelled(name, half):
    return name.format(AB={"up": "B", "down": "A"}[half], updown=half)


@pytest.mark.parametrize("name", SPELLED)
def test_a_layer_is_found_whatever_a_tool_puts_around_its_name(dit, tmp_path, name):
    up, down = pair(dit.model)
    file = written(tmp_path / "x", {spelled(name, "up"): up, spelled(name, "down"): down})
    tensors, weights, unmatched = match(read_lora(file), dit.model)
    assert weights == 1 and not unmatched
    assert torch.equal(WeightedLora(tensors, 1.0).delta(LAYER), up @ down)


@pytest.mark.parametrize(
    "prefix", ["", "model.", "text_encoder.model.", "language_model.model.", "vision_language_encoder.model."]
)
def test_a_layer_of_the_ar_model_is_found_by_its_shorter_names(ar, tmp_path, prefix):
    up, down = pair(ar.model, "model.language_model.layers.0.self_attn.q_proj")
    name = f"{prefix}layers.0.self_attn.q_proj"
    matched = match(read_lora(written(tmp_path / "x", {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down})), ar.model)
    assert matched.weights == 1 and not matched.unmatched


@pytest.mark.parametrize(
    "fused", ["transformer.transformer_blocks.0.attn1.to_qkv", "lora_unet_transformer_blocks_0_attn1_to_qkv"]
)
def test_queries_keys_and_values_that_were_trained_as_one_are_taken_apart(dit, tmp_path, fused):
    layers = [LAYER.replace("to_q", f"to_{kind}") for kind in "qkv"]
    up, down = pair(dit.model)
    ups = [up, *(up * factor for factor in (2, 3))]
    tensors = {f"{fused}.lora_up.weight": torch.cat(ups), f"{fused}.lora_down.weight": down, f"{fused}.alpha": torch.tensor(2.0)}
    matched = match(read_lora(written(tmp_path / "x", tensors)), dit.model)
    assert matched.weights == 3 and not matched.unmatched
    lora = WeightedLora(matched.tensors, 1.0)
    for layer, its_up in zip(layers, ups, strict=True):
        assert torch.allclose(lora.delta(layer), 2.0 / down.shape[0] * its_up @ down)
    tensors[f"{fused}.lora_up.weight"] = torch.cat(ups)[:-1]
    with pytest.raises(ValueError, match=r"for another model: it changes transformer_blocks.0.attn1.to_v"):
        match(read_lora(written(tmp_path / "y", tensors)), dit.model)


def test_another_models_layer_is_not_taken_for_one(dit, tmp_path):
    up, down = pair(dit.model)
    for name in (f"controlnet.{LAYER}", LAYER.replace("transformer_blocks", "single_transformer_blocks"), f"{LAYER}.to_q"):
        file = written(tmp_path / "x", {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down})
        assert match(read_lora(file), dit.model).weights == 0


def test_convolutions_of_one_pixel_are_matrices(dit, tmp_path):
    up, down = pair(dit.model)
    tensors = {f"{LAYER}.lora_up.weight": up[..., None, None], f"{LAYER}.lora_down.weight": down[..., None, None]}
    matched = match(read_lora(written(tmp_path / "x", tensors)), dit.model)
    assert torch.equal(WeightedLora(matched.tensors, 1.0).delta(LAYER), up @ down)


@pytest.mark.parametrize("change", [lambda up: up.int(), lambda up: up[:, :0]])
def test_halves_that_are_codes_or_hold_nothing_are_refused(dit, tmp_path, change):
    up, down = pair(dit.model)
    file = written(tmp_path / "x", {f"{LAYER}.lora_B.weight": change(up), f"{LAYER}.lora_A.weight": down})
    with pytest.raises(ValueError, match=r"is not understood: .*lora_B\.weight has the shape .* and is (int32|float32)"):
        read_lora(file)


def test_several_adapters_in_a_file_are_refused(dit, tmp_path):
    up, down = pair(dit.model)
    halves = (("B", up), ("A", down))
    tensors = {f"{LAYER}.lora_{half}.{name}.weight": value.clone() for name in "xy" for half, value in halves}
    with pytest.raises(ValueError, match="holds several adapters"):
        read_lora(written(tmp_path / "x", tensors))


@pytest.mark.parametrize(("metadata", "beside"), [("{", None), ("null", None), ("{}", "{"), ("{}", "[1]")])
def test_settings_that_cannot_be_read_are_refused(dit, tmp_path, metadata, beside):
    up, down = pair(dit.model)
    tensors = {f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down}
    given = None if beside else {"lora_adapter_metadata": metadata}
    file = written(tmp_path / "x", tensors, "adapter_model.safetensors", given)
    if beside:
        (tmp_path / "x" / "adapter_config.json").write_text(beside)
    with pytest.raises(
        ValueError, match=r"settings that come with adapter_model.safetensors cannot be read .* save the LoRA again"
    ):
        read_lora(file)


@pytest.mark.parametrize(
    "config",
    [
        {"alpha_pattern": {"(": 2}},
        {"alpha_pattern": {"(a|aa)+$": 2}},
        {"alpha_pattern": {"(" * 2000 + ")" * 2000: 2}},
        {"alpha_pattern": {"(a|b)" * 10_000: 2}},
        {"alpha_pattern": {f"(a{n}|a)*": 2 for n in range(20_000)}},
        {"alpha_pattern": {NAME: "x"}},
        {"alpha_pattern": [2]},
        {"lora_alpha": [8]},
        {"lora_alpha": 10**400},
    ],
    ids=["unbalanced", "endless", "deep", "long", "many", "no number", "no mapping", "no alpha", "huge"],
)
def test_settings_that_are_wrong_are_refused_at_once(tmp_path, config):
    """A pattern is a regular expression from a stranger, matched against names from the same stranger."""
    tensors = {f"transformer.{NAME}.lora_B.weight": torch.ones(4, 2), f"transformer.{NAME}.lora_A.weight": torch.ones(2, 4)}
    file = written(tmp_path / "x", tensors, metadata={"lora_adapter_metadata": json.dumps({"lora_alpha": 8, **config})})
    start = time.process_time()
    with pytest.raises(ValueError, match=r"settings that come with a.safetensors cannot be read"):
        read_lora(file)
    assert time.process_time() - start < 2


def test_a_pattern_that_re_would_never_finish_is_matched(tmp_path):
    tensors = {f"transformer.{NAME}.lora_B.weight": torch.ones(4, 2), f"transformer.{NAME}.lora_A.weight": torch.ones(2, 4)}
    config = {"lora_alpha": 8, "alpha_pattern": {"(a+)+$": 2}}
    file = written(tmp_path / "x", tensors, metadata={"lora_adapter_metadata": json.dumps(config)})
    start = time.process_time()
    assert read_lora(file)[f"transformer.{NAME}.alpha"] == 8
    assert time.process_time() - start < 1


def test_an_alpha_that_is_no_number_is_refused(tmp_path):
    tensors = {f"{LAYER}.lora_B.weight": torch.ones(4, 2), f"{LAYER}.lora_A.weight": torch.ones(2, 4)}
    file = written(tmp_path / "x", tensors, metadata={"lora_adapter_metadata": json.dumps({"lora_alpha": float("nan")})})
    with pytest.raises(ValueError, match=r"numbers that are not finite \(transformer_blocks.0.attn1.to_q.alpha\)"):
        read_lora(file)


@pytest.mark.parametrize(("key", "tensor"), [("lora_A.weight", torch.ones(4)), ("alpha", torch.ones(2))])
def test_a_tensor_of_a_wrong_shape_is_refused(dit, tmp_path, key, tensor):
    up, down = pair(dit.model)
    tensors = {f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down, f"{LAYER}.{key}": tensor}
    with pytest.raises(ValueError, match=rf"a.safetensors is not understood: {LAYER}.{key} has the shape"):
        read_lora(written(tmp_path / "x", tensors))


def test_halves_of_different_ranks_are_refused(dit):
    up, down = pair(dit.model)
    with pytest.raises(ValueError, match=f"does not fit together: of {LAYER}, one half has rank 4 and the other 3"):
        match({f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down[:3]}, dit.model)


def test_a_lora_of_a_convolution_is_left_to_comfyui(ar):
    layer = "model.visual.patch_embed.proj"
    rows, *columns = ar.model.get_parameter(f"{layer}.weight").shape
    tensors = {f"{layer}.lora_up.weight": torch.ones(rows, 2, 1, 1), f"{layer}.lora_down.weight": torch.ones(2, *columns)}
    matched = match(tensors, ar.model)
    assert matched.weights == 1
    with pytest.raises(ValueError, match=r"patch_embed.proj.lora_down.weight, a kind of change that only ComfyUI applies"):
        WeightedLora(matched.tensors, 1.0)


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_half_a_pair_is_refused(dit, half):
    up, down = pair(dit.model)
    tensors = {f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down}
    other = "lora_B" if half == "lora_A" else "lora_A"
    with pytest.raises(ValueError, match=rf"not whole: it has .*{half}.weight, but not its {other}.weight"):
        match({key: tensor for key, tensor in tensors.items() if half in key}, dit.model)


def test_a_lora_with_broken_numbers_is_refused(dit, tmp_path):
    up, down = pair(dit.model)
    up[0, 0] = torch.nan
    with pytest.raises(ValueError, match="a.safetensors has numbers that are not finite"):
        read_lora(written(tmp_path / "x", {f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down}))


@pytest.mark.parametrize("prefix", ["model.layers", "language_model.layers", "model.language_model.layers"])
def test_the_language_model_may_have_been_trained_on_its_own(ar, prefix):
    layer = "model.language_model.layers.0.self_attn.q_proj"
    up, down = pair(ar.model, layer)
    name = f"base_model.model.{prefix}.0.self_attn.q_proj"
    matched = match({f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}, ar.model)
    assert set(matched.tensors) == {f"{layer}.lora_B.weight", f"{layer}.lora_A.weight"}
    flat = f"lora_te1_{prefix.replace('.', '_')}_0_self_attn_q_proj"
    assert match({f"{flat}.lora_up.weight": up, f"{flat}.lora_down.weight": down}, ar.model).weights == 1


def test_pefts_dora_is_refused(dit, tmp_path):
    up, down = pair(dit.model)
    tensors = {f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_magnitude_vector": up[:, 0]}
    with pytest.raises(ValueError, match=r"a DoRA of PEFT's kind .* use a plain LoRA"):
        read_lora(written(tmp_path / "x", tensors))
