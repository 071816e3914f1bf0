"""CogView3-Plus and CogView3-Base as a MODEL: what is connected wrongly is named, and what has no effect is said."""

import pytest
import torch
from glm_image_pack.glmimage_core.tiny.cogview3_base import CHECKPOINTS

BASE, RELAY, *_ = CHECKPOINTS
PLUS = "CogView3-Plus-3B"


@pytest.fixture(scope="module")
def encoded(cogview3, run):
    """Positive and negative conditioning by family."""
    text_encoder = cogview3[PLUS][1]
    return {
        family: run("GLMImageCogView3Encode", text_encoder=text_encoder, prompt="a red cat", family=family)[:2]
        for family in ("CogView3-Plus", "CogView3-Base")
    }


@pytest.mark.parametrize("family", ["GLM-Image", "CogView3-Plus"])
def test_the_relay_names_the_vae_to_connect(cogview3, encoded, vae, run, family):
    positive, negative = encoded["CogView3-Base"]
    wrong = vae if family == "GLM-Image" else cogview3[PLUS][2]
    inputs = {"model": cogview3[RELAY][0], "image": torch.rand(1, 256, 256, 3), "positive": positive, "negative": negative}
    with pytest.raises(ValueError, match="vae is not CogView3-Base's; connect Load CogView3-Base"):
        run("GLMImageCogView3Relay", vae=wrong, seed=0, steps=2, relay_steps=1, cfg=7.5, **inputs)


@pytest.mark.parametrize("name", [PLUS, BASE])
def test_encode_reference_names_the_vae_to_connect(cogview3, ar, picture, run, name):
    with pytest.raises(ValueError, match="vae is not GLM-Image's; connect Load GLM-Image VAE"):
        run("GLMImageEncodeReference", ar=ar, vae=cogview3[name][-1], image=picture)


@pytest.mark.parametrize("name", [PLUS, BASE])
def test_the_vae_nodes_take_every_familys_vae(cogview3, picture, run, name):
    (latent,) = run("GLMImageVAEEncode", vae=cogview3[name][-1], image=picture)
    (image,) = run("GLMImageVAEDecode", vae=cogview3[name][-1], samples=latent)
    assert image.shape == picture.shape


@pytest.mark.parametrize(("name", "channels"), [(PLUS, 16), (BASE, 4)])
def test_what_has_no_effect_is_said_once(cogview3, encoded, run, caplog, name, channels):
    """Here patches of attention."""
    positive, negative = encoded["CogView3-Plus" if name == PLUS else "CogView3-Base"]
    model = cogview3[name][0].clone()
    model.set_model_attn1_output_patch(lambda out, options: 0 * out)
    model.set_model_patch_replace(lambda *args: None, "attn1", "middle", 0)
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda function, *args, **options: 0 * args[0]
    settings = {"seed": 0, "steps": 1, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    latent = {"samples": torch.zeros(1, channels, 64, 64)}
    for _ in range(2):
        run("KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **settings)
    said = sorted(record.message for record in caplog.records if "no effect" in record.message)
    title = "CogView3-Plus" if name == PLUS else "CogView3-Base"
    assert said == [
        f"{title}: an attention that a node chose has no effect",
        f"{title}: attn1_output_patch patches on the MODEL have no effect",
        f"{title}: replaced attn1 blocks on the MODEL have no effect",
    ]
