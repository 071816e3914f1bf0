"""Weights in fewer bits, without ComfyUI. In ComfyUI: tests/inside_comfyui/test_quantization.py."""

import shutil

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.placement.residency import model_bytes
from glm_image_pack.glmimage_core.weights import formats as weights_formats
from glm_image_pack.glmimage_core.weights.formats import check_format, dequantized, inner_tensors
from glm_image_pack.glmimage_core.weights.linear import QuantizedLinear, quantizable, quantization_of, quantize, quantize_weight
from glm_image_pack.glmimage_core.weights.lora import WeightedLora, applied_loras
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from safetensors.torch import load_file, save_file

from plans import plan

FORMATS = tuple(weights_formats.FORMATS)
CPU = torch.device("cpu")
LAYER = "transformer_blocks.0.attn1.to_q"


@pytest.fixture
def kitchen():
    return pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")


def quantized_names(model: torch.nn.Module) -> set[str]:
    return {name for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}


@pytest.mark.parametrize(("quantization", "error"), [("int8", 0.01), ("fp8", 0.03), ("nf4", 0.1)])
def test_a_weight_comes_back_nearly_and_a_product_is_nearly_the_same(kitchen, quantization, error):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(192, 128)
    model = torch.nn.Module()
    model.transformer_blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"ff": torch.nn.Sequential(layer)})])
    weight = layer.weight.detach().clone().normal_(generator=generator)
    layer.weight.data = weight.clone()
    x = torch.randn(3, 192, generator=generator)
    expected = layer(x)
    quantize(model, quantization)
    assert quantized_names(model) == {"transformer_blocks.0.ff.0"}
    assert layer.weight.shape == weight.shape and layer.weight.dtype == weight.dtype
    assert (dequantized(layer.weight) - weight).norm() < error * weight.norm()
    with torch.inference_mode():
        difference = layer(x) - expected
        assert 0 < difference.norm() < 2 * error * expected.norm()
        assert layer(x[:0]).shape == (0, 128)
        assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_nf4_has_the_codes_and_scales_of_bitsandbytes_and_can_compute_by_it(kitchen):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="compares with bitsandbytes")
    from glm_image_pack.glmimage_core.weights import nf4

    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours = quantize_weight(weight, "nf4")
    codes, scale = nf4.NF4Layout.get_plain_tensors(ours)
    theirs, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    assert torch.equal(codes.view(-1), theirs.view(-1)) and torch.equal(scale.view(-1), state.absmax)
    assert torch.equal(ours.dequantize(), bitsandbytes.functional.dequantize_4bit(theirs, state))
    x = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = torch.nn.functional.linear(x, ours.dequantize())
    assert (nf4.one_row(x, ours, None) - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("quantization", FORMATS)
def test_quantized_while_loading_is_quantized_afterwards(kitchen, folder, quantization):
    """The streaming load gives every tensor and buffer that the libraries' own load gives."""
    for load in (checkpoints.load_ar, checkpoints.load_dit):
        there = quantize(load(folder).model, quantization)
        model = load(folder, "auto", quantization).model
        expected, loaded = there.state_dict(), model.state_dict()
        assert expected.keys() == loaded.keys() and all(torch.equal(expected[key], loaded[key]) for key in expected)
        assert sum(key.endswith(".weight_scale") for key in loaded) == 12
        assert all(torch.equal(*pair) for pair in zip(there.buffers(), model.buffers(), strict=True))
        assert not model.training and quantization_of(model) == quantization
        assert {parameter.dtype for parameter in load(folder, "bfloat16", quantization).model.parameters()} == {torch.bfloat16}


def test_only_attention_and_feed_forward_of_the_big_models_are_quantized(kitchen, folder):
    ar = quantized_names(checkpoints.load_ar(folder, quantization="nf4").model)
    kinds = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"}
    assert ar == {f"model.language_model.layers.{layer}.{kind}" for layer in range(2) for kind in kinds}
    dit = quantized_names(checkpoints.load_dit(folder, quantization="nf4").model)
    kinds = {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"}
    assert dit == {f"transformer_blocks.{block}.{kind}" for block in range(2) for kind in kinds}


def test_the_more_bits_the_nearer_the_picture(kitchen, folder, dit):
    generator = torch.Generator().manual_seed(0)
    glyphs = torch.randn(1, 5, dit.model.config.text_embed_dim, generator=generator)

    def paint(dit):
        return sample(dit, plan(), glyphs, glyphs, seeds=[3], steps=2)

    exact = paint(dit)
    errors = [(paint(checkpoints.load_dit(folder, "auto", form)) - exact).norm() / exact.norm() for form in FORMATS]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.5


@pytest.mark.parametrize("quantization", FORMATS)
def test_a_prior_is_whole_and_the_same_every_time(kitchen, folder, quantization):
    ar = checkpoints.load_ar(folder, "auto", quantization)
    first, again = (generate_prior(ar, "a tree", 256, 256, seed=1) for _ in range(2))
    assert first.tokens.shape == (1, 8, 8) and torch.equal(first.tokens, again.tokens)


@pytest.mark.parametrize("quantization", FORMATS)
def test_a_lora_is_laid_over_quantized_weights_and_taken_off_bit_for_bit(kitchen, folder, quantization):
    model = checkpoints.load_dit(folder, "auto", quantization).model
    layer = model.get_submodule(LAYER)
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(64, 4, generator=generator), torch.randn(4, 64, generator=generator)
    lora = WeightedLora({f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down}, strength=0.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = dequantized(layer.weight) + up @ down
    with applied_loras(model, [lora, lora]):
        laid = dequantized(layer.weight)
        assert (laid - expected).norm() < 0.1 * expected.norm()
        assert quantization_of(model) == quantization
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("fp8", 8), ("nf4", 4)])
def test_the_bytes_that_are_there_are_counted_and_moved(kitchen, folder, quantization, bits):
    plain = checkpoints.load_dit(folder, "bfloat16").model
    model = checkpoints.load_dit(folder, "bfloat16", quantization).model
    layers = quantizable(model)
    weights = sum(layer.weight.numel() for layer in layers.values())
    codes = sum(parts[0].nbytes for parts in (inner_tensors(layer.weight) for layer in layers.values()))
    assert codes == weights * bits // 8
    assert 0 < model_bytes(model) - (model_bytes(plain) - weights * 2 + codes) < 0.3 * codes  # and the scales
    model.to("meta")
    assert {part.device.type for parameter in model.parameters() for part in inner_tensors(parameter)} == {"meta"}


@pytest.mark.parametrize(
    ("quantization", "device", "expected"),
    [("int8", "mps", "choose nf4"), ("fp8", "mps", "choose nf4"), ("int4", "cpu", "not one of none, int8, fp8, nf4")],
)
def test_a_device_that_cannot_is_told_with_what_can(quantization, device, expected):
    with pytest.raises(ValueError, match=expected):
        check_format(quantization, torch.device(device))


def test_without_comfy_kitchen_the_loader_says_what_to_install(quiet_host, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "comfy_kitchen.tensor", None)
    for node in ("GLMImageLoadAR", "GLMImageLoadDiT"):
        assert NODES[node].VALIDATE_INPUTS("GLM-Image", "none") is True
        assert "pip install -U comfy-kitchen" in NODES[node].VALIDATE_INPUTS("GLM-Image", "int8")


def test_the_loaders_take_a_quantization(kitchen, quiet_host):
    for node, wire in (("GLMImageLoadAR", 0), ("GLMImageLoadDiT", 0)):
        assert NODES[node].VALIDATE_INPUTS("GLM-Image", "fp8") is True
        assert "int4" in NODES[node].VALIDATE_INPUTS("GLM-Image", "int4")
        assert quantization_of(NODES[node]().load("GLM-Image", "auto", "fp8")[wire].model) == "fp8"


def test_a_tensor_that_is_not_found_is_told(folder, tmp_path, kitchen):
    """The libraries know some tensors by older names; here a name must be the model's."""
    shutil.copytree(folder, tmp_path / "GLM-Image")
    file = next((tmp_path / "GLM-Image" / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    tensors["renamed.weight"] = tensors.pop("proj_out.weight")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"proj_out\.weight"):
        checkpoints.load_dit(tmp_path / "GLM-Image", quantization="int8")
