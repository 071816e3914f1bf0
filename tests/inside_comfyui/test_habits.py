"""What people do with other models, done with these: it works, or a word on the node says what to do instead."""

import itertools

import comfy.controlnet
import pytest
import torch
from comfy.cldm.cldm import ControlNet
from comfy_execution.utils import CurrentNodeContext
from glm_image_pack.glmimage_core.glm_image.files.components import NANO
from glm_image_pack.glmimage_core.tiny.cogview3_base import CHECKPOINTS

BASE, RELAY, *_ = CHECKPOINTS
PLUS = "CogView3-Plus-3B"
RUN = {"seed": 3, "steps": 2, "cfg": 1.5, "denoise": 1.0, "sampler_name": "euler"}
RUNS = itertools.count()
EMPTY = {"samples": torch.zeros(1, 16, 36, 32)}


@pytest.fixture
def painted(model, run, texts):
    """painted("Node", positive, negative): the latents of a run by that sampler, and what it says on its node."""

    def paint(name: str, positive, negative, model=model, latent=EMPTY) -> tuple[torch.Tensor, list[str]]:
        texts.clear()
        more = {} if name == "GLMImageSampler" else {"scheduler": "simple", "latent_image": latent}
        with CurrentNodeContext(f"run {next(RUNS)}", "7"):
            (out,) = run(name, model=model, positive=positive, negative=negative, **RUN, **more)
        return out["samples"], [line for _, text in texts for line in text.splitlines()]

    return paint


@pytest.fixture(scope="module")
def encoded(cogview3, run):
    """CogView3's conditioning of a prompt, by family: both sides."""
    return {
        family: run("GLMImageCogView3Encode", text_encoder=cogview3[PLUS][1], prompt="a red cat", family=family)[:2]
        for family in ("CogView3-Plus", "CogView3-Base")
    }


@pytest.fixture
def control_net() -> comfy.controlnet.ControlNet:
    """A tiny ControlNet, as of Stable Diffusion."""
    sizes = {"image_size": 32, "in_channels": 4, "model_channels": 32, "hint_channels": 3, "context_dim": 32, "num_heads": 2}
    depths = {"num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [0], "transformer_depth_middle": 0}
    network = ControlNet(**sizes, **depths, use_spatial_transformer=True, dtype=torch.float32)
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


@pytest.mark.parametrize("sampler", ["KSampler", "GLMImageSampler"])
def test_reference_latents_and_guidance_are_said_and_change_nothing(conditioned, painted, run, sampler):
    positive, negative, _ = conditioned(False)
    plain, said = painted(sampler, positive, negative)
    assert not any("no effect" in line for line in said)
    (habit,) = run("ReferenceLatent", conditioning=positive, latent={"samples": torch.ones(1, 16, 36, 32)})
    (habit,) = run("FluxGuidance", conditioning=habit, guidance=3.5)
    for _ in range(2):  # on the node in every run
        samples, said = painted(sampler, habit, negative)
        assert torch.equal(samples, plain)
        assert any(line == "ReferenceLatent has no effect; use GLM-Image Encode Reference" for line in said)
        assert any("FluxGuidance has no effect; set cfg" in line for line in said)


@pytest.mark.parametrize(
    ("node", "values"),
    [
        ("FreeU", {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}),
        ("FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
    ],
)
def test_patches_for_unets_are_said_and_change_nothing(conditioned, painted, run, model, node, values):
    positive, negative, _ = conditioned(False)
    plain, _ = painted("KSampler", positive, negative)
    (patched,) = run(node, model=model, **values)
    samples, said = painted("KSampler", positive, negative, model=patched)
    assert torch.equal(samples, plain)
    assert any("patches on the MODEL have no effect" in line for line in said)


@pytest.mark.parametrize("sampler", ["KSampler", "GLMImageSampler"])
def test_a_control_net_is_said_and_does_not_run(conditioned, painted, run, picture, control_net, sampler):
    positive, negative, _ = conditioned(False)
    plain, _ = painted(sampler, positive, negative)
    span = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    sides = run("ControlNetApplyAdvanced", positive=positive, negative=negative, control_net=control_net, image=picture, **span)
    samples, said = painted(sampler, *sides)
    assert torch.equal(samples, plain)
    assert [line for line in said if "ControlNet" in line] == ["a ControlNet has no effect"]
    assert "control" in sides[0][0][1]  # the conditioning itself is as it was, for other samplers


@pytest.mark.parametrize(("name", "family", "channels"), [(PLUS, "CogView3-Plus", 16), (BASE, "CogView3-Base", 4)])
def test_a_cogview3_says_that_glm_images_conditioning_is_not_its(cogview3, encoded, painted, run, name, family, channels):
    positive, negative = encoded[family]
    (encoder,) = run("GLMImageLoadGlyphEncoder", checkpoint=NANO, dtype="float32")
    other, unwanted, _ = run("GLMImageEncodePrompt", glyph_encoder=encoder, prompt="a cat", negative_prompt="", glyph_text="")
    latent = {"samples": torch.zeros(1, channels, 64, 64)}
    for sides in ((other, unwanted), (positive, unwanted), (other, negative)):
        with pytest.raises(ValueError, match=f"not for {family}: .* 64 wide, .* reads 32; connect CogView3 Encode Prompt"):
            painted("KSampler", *sides, model=cogview3[name][0], latent=latent)


@pytest.mark.parametrize("sampler", ["KSampler", "GLMImageSampler"])
def test_glm_image_says_that_cogview3s_conditioning_is_not_its(conditioned, encoded, painted, sampler):
    positive, negative, _ = conditioned(False)
    # The tiny T5 is as wide as the tiny glyph encoder; the released one is not.
    other, other_negative = ([[torch.cat([text, text], -1), options]] for ((text, options),) in encoded["CogView3-Plus"])
    for sides in ((other, other_negative), (positive, other_negative), (other, negative)):
        with pytest.raises(ValueError, match="another text encoder than GLM-Image's; connect GLM-Image Encode Prompt"):
            painted(sampler, *sides)


def test_a_distilled_relay_reads_the_guidance_that_the_base_model_does_not(cogview3, encoded, painted, run):
    positive, negative = encoded["CogView3-Base"]
    (guided,) = run("FluxGuidance", conditioning=positive, guidance=3.5)
    latent = {"samples": torch.zeros(1, 4, 64, 64)}
    for name in (BASE, RELAY):
        model = cogview3[name][0]
        _, said = painted("KSampler", guided, negative, model=model, latent=latent)
        assert any("FluxGuidance has no effect" in line for line in said) != model.model.component.is_distilled
