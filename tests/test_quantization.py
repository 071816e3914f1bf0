"""Weights in fewer bits, without ComfyUI. In ComfyUI: tests/inside_comfyui/test_quantization.py."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import which

import pytest
import torch
from glm_image_pack.bench.measure import allocator_peak
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.files.quantize import quantize_checkpoint
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.language import vlm as vlms
from glm_image_pack.glmimage_core.placement.residency import model_bytes
from glm_image_pack.glmimage_core.tiny.weights import randomize
from glm_image_pack.glmimage_core.weights import compiled
from glm_image_pack.glmimage_core.weights import formats as weights_formats
from glm_image_pack.glmimage_core.weights.formats import check_format, dequantized, inner_tensors
from glm_image_pack.glmimage_core.weights.linear import (
    QuantizedLinear,
    parameter_bytes,
    product_bytes,
    quantizable,
    quantization_of,
    quantize,
    quantize_weight,
)
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
    bias = torch.randn(96, generator=torch.Generator().manual_seed(2)).bfloat16()
    for rows in (1, nf4.SINGLE_ROWS, nf4.SINGLE_ROWS + 1):
        x = torch.randn(rows, 1, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
        expected = torch.nn.functional.linear(x, ours.dequantize(), bias)
        product = nf4.by_bitsandbytes(x, ours, bias)
        assert product.shape == expected.shape and (product - expected).norm() < 0.01 * expected.norm()


@pytest.fixture
def compiles_here(kitchen, monkeypatch):
    """Kernels are compiled for the CPU, as on CUDA."""
    monkeypatch.setattr(compiled, "COMPILED_ON", ("cpu",))
    monkeypatch.setattr(compiled, "_cannot_compile", set())


needs_compiler = pytest.mark.skipif(which("g++") is None, reason="needs a C++ compiler")


@needs_compiler
@pytest.mark.parametrize("quantization", ["fp8", "nf4"])
def test_compiled_kernels_compute_what_widened_weights_do(compiles_here, monkeypatch, quantization):
    asked, compile_ = [], compiled.compiled
    monkeypatch.setattr(compiled, "compiled", lambda function: asked.append(function) or compile_(function))
    bias = torch.randn(256, generator=torch.Generator().manual_seed(2)).bfloat16()
    for rows, columns in ((256, 128), (256, 256), (192, 320)):
        weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).bfloat16()
        quantized = quantize_weight(weight, quantization)
        for count, added in ((1, bias[:rows]), (1, None), (3, bias[:rows]), (compiled.FEW_ROWS, None), (9, bias[:rows])):
            x = torch.randn(count, 1, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
            expected = torch.nn.functional.linear(x, quantized.dequantize(), added)
            asked.clear()
            product = compiled.product(x, quantized, added)
            assert len(asked) == 1 and not compiled._cannot_compile
            assert product.dtype == torch.bfloat16 and product.shape == expected.shape
            assert (product - expected).norm() < 0.005 * expected.norm()


@needs_compiler
def test_a_compiled_product_reads_its_weight_once_for_all_rows(compiles_here):
    from torch._inductor.utils import run_and_get_code

    quantized = quantize_weight(torch.randn(256, 128), "nf4")
    _, (code,) = run_and_get_code(compiled.product, torch.randn(5, 128), quantized, None)
    (kernel,) = (kernel for kernel in code.split('extern "C"')[1:] if "uint8_t" in kernel.split("{")[0])
    assert all(f"tmp_acc{row}" in kernel for row in range(5)) and kernel.count("for(") <= 3


@pytest.mark.parametrize("quantization", ["fp8", "nf4"])
def test_where_no_kernel_can_be_compiled_weights_are_widened_and_that_is_said_once(
    compiles_here, monkeypatch, caplog, quantization
):
    asked = []

    def has_no_compiler(function):
        asked.append(function)
        raise RuntimeError("Cannot find a working triton installation.\nand more")

    monkeypatch.setattr(compiled, "compiled", has_no_compiler)
    quantized, x = quantize_weight(torch.randn(64, 128), quantization), torch.randn(2, 128)
    products = [compiled.product(x, quantized, None) for _ in range(2)]
    expected = torch.nn.functional.linear(x, quantized.dequantize())
    assert all(torch.allclose(product, expected, atol=1e-5) for product in products) and len(asked) == 1
    assert caplog.messages == [
        "fp8 and nf4 are slow here, since no kernel can be compiled: Cannot find a working triton installation."
    ]


def test_nf4_needs_no_check_before_it_quantizes(kitchen):
    """In a process of its own: in this one another test may have registered the layout."""
    program = (
        "import sys; sys.path.insert(0, 'scripts'); import _pack, torch\n"
        "from glm_image_pack.glmimage_core.weights.linear import quantize_weight\n"
        "print(quantize_weight(torch.ones(2, 64), 'nf4').dequantize().sum().item())"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "128.0", done.stderr


def test_nf4s_blocks_are_as_long_as_its_format_says(kitchen):
    from glm_image_pack.glmimage_core.weights import nf4

    assert nf4.BLOCK == weights_formats.NF4_BLOCK


@pytest.fixture(scope="module")
def odd(folder, tmp_path_factory):
    """The tiny checkpoint with a DiT 96 wide, which is no multiple of 64; its feed-forward, four times as wide, is one."""
    pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
    root = shutil.copytree(folder, tmp_path_factory.mktemp("odd") / "GLM-Image")
    tiny = checkpoints.load_dit(root).model
    config = {key: value for key, value in tiny.config.items() if not key.startswith("_")}
    model = type(tiny).from_config(config | {"attention_head_dim": 48})
    randomize(model, "odd")
    shutil.rmtree(root / "transformer")
    model.save_pretrained(root / "transformer")
    file = root / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "GlmImageTransformer2DModel"}))
    return root


@pytest.mark.parametrize("quantization", FORMATS)
def test_layers_of_a_width_that_a_format_cannot_divide_stay_as_they_are(odd, tmp_path, quantization):
    plain = checkpoints.load_dit(odd)
    narrow = {"ff.net.0.proj", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"}
    kinds = {"ff.net.2"} if quantization == "nf4" else {"ff.net.2", *narrow}
    expected = {f"transformer_blocks.{block}.{kind}" for block in range(2) for kind in kinds}
    predicted = sum(parameter_bytes(plain.model, quantization, 4).values())
    assert product_bytes(plain.model, quantization) == weights_formats.FORMATS[quantization].working * 96 * 384
    quantize_checkpoint(odd, tmp_path / "out", {"transformer": quantization})
    glyphs = torch.randn(1, 5, plain.model.config.text_embed_dim, generator=torch.Generator().manual_seed(0))
    exact = sample(plain, plan(), glyphs, glyphs, seeds=[3], steps=2)
    for dit in (
        replace(plain, model=quantize(plain.model, quantization)),
        checkpoints.load_dit(odd, "auto", quantization=quantization),
        checkpoints.load_dit(tmp_path / "out"),
    ):
        assert quantized_names(dit.model) == expected
        assert predicted == sum(inner.nbytes for tensor in dit.model.parameters() for inner in inner_tensors(tensor))
        assert 0 < (sample(dit, plan(), glyphs, glyphs, seeds=[3], steps=2) - exact).norm() < 0.5 * exact.norm()


def test_a_language_model_of_such_a_width_is_told_how_much_nf4_would_reach(models, tmp_path, kitchen):
    import transformers

    if not (models / "LLM" / "Glmga").is_dir():
        pytest.skip("this transformers has no Glmga")
    folder = shutil.copytree(models / "LLM" / "Glmga", tmp_path / "Odd")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = config["vision_config"]["out_hidden_size"] = 96
    model = transformers.Glm46VForConditionalGeneration(transformers.GlmgaConfig.from_dict(config))
    model.save_pretrained(folder)
    assert quantization_of(vlms.load_vlm(folder, quantization="int8").model) == "int8"
    with pytest.raises(ValueError, match="quantization nf4 would reach .*% of the language half's weights in Odd"):
        vlms.load_vlm(folder, quantization="nf4")


@pytest.mark.parametrize("quantization", FORMATS)
def test_a_product_needs_the_bytes_that_its_format_says(kitchen, quantization):
    """For a weight with as many rows as a feed-forward's; nf4 works on some rows at a time."""
    layer = torch.nn.Linear(256, 16384, bias=False, dtype=torch.bfloat16)
    model = torch.nn.Module()
    model.transformer_blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"ff": torch.nn.Sequential(layer)})])
    quantize(model, quantization)
    x = torch.randn(1, 256, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert allocator_peak(lambda: layer(x)) == pytest.approx(product_bytes(model, quantization, on_cpu=True), rel=0.15)


@pytest.mark.parametrize("quantization", FORMATS)
def test_quantized_while_loading_is_quantized_afterwards(kitchen, folder, quantization):
    """The streaming load gives every tensor and buffer that the libraries' own load gives."""
    for load in (checkpoints.load_ar, checkpoints.load_dit):
        there = quantize(load(folder).model, quantization)
        model = load(folder, "auto", quantization=quantization).model
        expected, loaded = there.state_dict(), model.state_dict()
        assert expected.keys() == loaded.keys() and all(torch.equal(expected[key], loaded[key]) for key in expected)
        assert sum(key.endswith(".weight_scale") for key in loaded) == 12
        assert all(torch.equal(*pair) for pair in zip(there.buffers(), model.buffers(), strict=True))
        assert not model.training and quantization_of(model) == quantization
        assert {parameter.dtype for parameter in load(folder, "bfloat16", quantization=quantization).model.parameters()} == {
            torch.bfloat16
        }


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
    errors = [(paint(checkpoints.load_dit(folder, "auto", quantization=form)) - exact).norm() / exact.norm() for form in FORMATS]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.5


@pytest.mark.parametrize("quantization", FORMATS)
def test_a_prior_is_whole_and_the_same_every_time(kitchen, folder, quantization):
    ar = checkpoints.load_ar(folder, "auto", quantization=quantization)
    first, again = (generate_prior(ar, "a tree", 256, 256, seed=1) for _ in range(2))
    assert first.tokens.shape == (1, 8, 8) and torch.equal(first.tokens, again.tokens)


@pytest.mark.parametrize("quantization", FORMATS)
def test_a_lora_is_laid_over_quantized_weights_and_taken_off_bit_for_bit(kitchen, folder, quantization):
    model = checkpoints.load_dit(folder, "auto", quantization=quantization).model
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
    model = checkpoints.load_dit(folder, "bfloat16", quantization=quantization).model
    layers = quantizable(model, quantization)
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
        assert NODES[node].VALIDATE_INPUTS("GLM-Image", quantization="none") is True
        assert "pip install -U comfy-kitchen" in NODES[node].VALIDATE_INPUTS("GLM-Image", quantization="int8")


def test_the_loaders_take_a_quantization(kitchen, quiet_host):
    for node, wire in (("GLMImageLoadAR", 0), ("GLMImageLoadDiT", 0)):
        assert NODES[node].VALIDATE_INPUTS("GLM-Image", quantization="fp8") is True
        assert "int4" in NODES[node].VALIDATE_INPUTS("GLM-Image", quantization="int4")
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
