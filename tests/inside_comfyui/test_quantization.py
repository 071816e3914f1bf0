"""Quantized weights in ComfyUI's memory manager: streamed, patched and given back as others are."""

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.placement import residency
from glm_image_pack.glmimage_core.weights.lora import WeightedLora, applied_loras
from glm_image_pack.nodes.host.comfyui import patchers
from safetensors.torch import save_file

pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
FORMATS = ("int8", "fp8", "nf4")


@pytest.fixture(params=FORMATS)
def quantization(request):
    return request.param


@pytest.fixture
def quantized(folder, run, quantization):
    return run("GLMImageLoadDiT", checkpoint="GLM-Image", dtype="auto", quantization=quantization)[0]


@pytest.fixture
def paint(conditioned, run):
    positive, negative, prior = conditioned(True)

    def with_model(model) -> torch.Tensor:
        settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
        return run("GLMImageSampler", model=model, **settings)[0]["samples"]

    def with_component(dit) -> torch.Tensor:
        glyphs, options = positive[0]
        return sample(dit, prior, glyphs, negative[0][0], seeds=[3], steps=2, references=options["glm_image_references"])

    return with_model, with_component


def test_the_dit_computes_what_the_library_computes_whole_and_streamed(
    folder, quantized, quantization, paint, only_a_part_fits, library
):
    with_model, with_component = paint
    whole = with_model(quantized)
    expected = with_component(checkpoints.load_dit(folder, "auto", quantization=quantization))
    exact = with_component(library["dit"])
    # int8 rounds its inputs too, some of which another order of additions leaves on the other side.
    assert (whole - expected).norm() < 0.2 * (expected - exact).norm()
    only_a_part_fits()
    assert torch.equal(with_model(quantized), whole)
    assert quantized.model.model_lowvram and 0 < quantized.loaded_size() < quantized.model_size()
    layers = [layer for layer in quantized.model.modules() if isinstance(layer, patchers.StreamedQuantizedLinear)]
    assert len(layers) == 12 and any(layer.comfy_cast_weights for layer in layers)
    quantized.detach()


def test_the_ar_model_computes_what_the_library_computes_whole_and_streamed(
    folder, quantization, conditioned, run, only_a_part_fits
):
    (ar,) = run("GLMImageLoadAR", checkpoint="GLM-Image", dtype="auto", quantization=quantization)
    settings = {"batch_size": 1, "seed": 5, "temperature": 0.9, "top_p": 0.75, "top_k": 50}

    def plan() -> torch.Tensor:
        return run("GLMImageGeneratePrior", ar=ar, prompt="a tree", width=256, height=256, **settings)[0].tokens

    component = checkpoints.load_ar(folder, "auto", quantization=quantization)
    expected = generate_prior(component, "a tree", 256, 256, seed=5)
    assert torch.equal(plan(), expected.tokens)
    only_a_part_fits()
    assert torch.equal(plan(), expected.tokens)
    ar.patcher.detach()


def test_comfyui_counts_the_bytes_that_are_there(quantized, model):
    assert quantized.model_size() == residency.model_bytes(quantized.model) < 0.75 * model.model_size()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_lora_is_seen_and_goes_away_bit_for_bit(folder, quantized, quantization, paint, run, only_a_part_fits, streamed):
    with_model, with_component = paint
    dit = checkpoints.load_dit(folder, "auto", quantization=quantization)
    changes = {}
    for layer in ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2"):
        rows, columns = dit.model.get_submodule(layer).weight.shape
        changes |= {f"{layer}.lora_A.weight": torch.randn(4, columns) * 0.3, f"{layer}.lora_B.weight": torch.randn(rows, 4) * 0.3}
    save_file(changes, folder.parents[1] / "loras" / "quantized.safetensors")
    with applied_loras(dit.model, [WeightedLora(changes, 1.0)]):
        expected = with_component(dit)
    before = {key: value.clone() for key, value in quantized.model.state_dict().items()}
    plain = with_model(quantized)
    changed, _ = run("GLMImageLoadLoRA", lora_name="quantized.safetensors", strength_model=1.0, strength_ar=1.0, model=quantized)
    if streamed:
        only_a_part_fits()
    patched = with_model(changed)
    # ComfyUI rounds a patched weight at random, and does not round one that it streams.
    assert (patched - expected).norm() < 0.25 * (plain - expected).norm()
    changed.detach()
    assert torch.equal(with_model(quantized), plain)
    quantized.detach()
    assert all(torch.equal(value, before[key]) for key, value in quantized.model.state_dict().items())


def test_a_second_copy_is_quantized_too(quantized):
    reload, arguments = quantized.cached_patcher_init
    again = reload(*arguments, disable_dynamic=True)
    ours, theirs = quantized.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
