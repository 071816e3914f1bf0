"""The DiT cut in parts against diffusers' own forward over the same weights."""

import shutil
import sys
from importlib.util import find_spec

import pytest
import torch
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache
from glm_image_pack.bench.libraries import diffusers_transformer
from glm_image_pack.glmimage_core.diffusion import Grid, initial_noise
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.dit import Conditions, encode_conditions, rope, velocity
from glm_image_pack.glmimage_core.glm_image.files.load import load_dit
from glm_image_pack.glmimage_core.glm_image.geometry import prior_for_dit
from glm_image_pack.glmimage_core.glm_image.glyphs import encode_glyph_texts
from glm_image_pack.glmimage_core.glm_image.reference_cache import reference_keys_values
from glm_image_pack.glmimage_core.placement.compute import ATTENTION_BACKENDS, compile_blocks, use_attention_backend
from glm_image_pack.glmimage_core.placement.streaming import streamed
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from glm_image_pack.nodes.host import host

from pictures import pattern
from plans import plan

WIDTH, HEIGHT = 320, 256


def noise_and_glyphs(dit, batch: int):
    generator = torch.Generator().manual_seed(1)
    x = initial_noise(range(batch), 16, Grid(HEIGHT // 8, WIDTH // 8))
    return x, torch.randn(1, 5, dit.model.config.text_embed_dim, generator=generator)


def theirs(dit, x, glyphs, tokens, drop, timestep, size, cache=None):
    """diffusers' forward, as its pipeline calls it."""
    return diffusers_transformer(dit.model)(
        hidden_states=x,
        encoder_hidden_states=glyphs.expand(len(x), -1, -1),
        prior_token_id=tokens,
        prior_token_drop=torch.full_like(tokens, drop, dtype=torch.bool),
        timestep=torch.full((len(x),), timestep),
        target_size=torch.tensor([size], dtype=torch.float32).expand(len(x), -1),
        crop_coords=torch.zeros(len(x), 2),
        kv_caches=cache,
        return_dict=False,
    )[0]


@torch.inference_mode()
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("timestep", [999.0, 499.0, 0.0])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_pass_is_diffusers_pass(dit, drop, timestep, batch):
    prior = plan(WIDTH, HEIGHT, batch)
    x, glyphs = noise_and_glyphs(dit, batch)
    conditions = encode_conditions(dit, glyphs, WIDTH, HEIGHT, batch=batch, tokens=None if drop else prior.tokens)
    time = dit.model.embed_time(torch.tensor([timestep]), WIDTH, HEIGHT, dit.dtype)
    expected = theirs(dit, x, glyphs, prior_for_dit(prior.tokens), drop, timestep, (HEIGHT, WIDTH))
    torch.testing.assert_close(velocity(dit, x, time, conditions), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_reference_pass_writes_what_diffusers_pass_writes(dit, encode_reference):
    reference = encode_reference(pattern(128, 160, 3))
    cache = GlmImageKVCache(dit.model.config.num_layers)
    cache.set_mode("write")
    latents, tokens = dit.space.normalise(reference.latents), prior_for_dit(reference.vision_tokens[None])
    theirs(dit, latents, torch.empty(1, 0, dit.model.config.text_embed_dim), tokens, False, 0.0, (160, 128), cache)
    for (keys, values), layer in zip(reference_keys_values(dit, reference), cache.caches, strict=True):
        torch.testing.assert_close(keys, layer.k_caches[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(values, layer.v_caches[0], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_every_input_reaches_the_output(dit):
    x, glyphs = noise_and_glyphs(dit, 1)
    base = encode_conditions(dit, glyphs, WIDTH, HEIGHT, batch=1, tokens=plan(WIDTH, HEIGHT).tokens)
    time, later = (dit.model.embed_time(torch.tensor([t]), WIDTH, HEIGHT, dit.dtype) for t in (500.0, 400.0))
    other_size = dit.model.embed_time(torch.tensor([500.0]), HEIGHT, WIDTH, dit.dtype)
    turned = Conditions(base.prior_embeds, base.glyph_embeds, rope(dit, HEIGHT, WIDTH))
    outputs = [
        velocity(dit, x, time, base),
        velocity(dit, x + 1, time, base),
        velocity(dit, x, later, base),
        velocity(dit, x, other_size, base),
        velocity(dit, x, time, turned),
        velocity(dit, x, time, Conditions(base.prior_embeds, -base.glyph_embeds, base.image_rotary_emb)),
        velocity(dit, x, time, Conditions(base.prior_embeds.flip(1), base.glyph_embeds, base.image_rotary_emb)),
    ]
    for i, one in enumerate(outputs):
        for another in outputs[:i]:
            assert (one - another).abs().max() > 1e-4


@pytest.mark.parametrize("edit", [False, True])
def test_sdpa_by_name_is_what_auto_takes_and_nobody_elses_attention_changes(dit, encoder, encode_reference, edit):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    references = [encode_reference(pattern(128, 160, 3))] if edit else []
    glyphs = encode_glyph_texts(encoder, ["OPEN"]), encode_glyph_texts(encoder, [])
    expected = sample(dit, plan(), *glyphs, seeds=[0], steps=2, references=references)
    before = _AttentionBackendRegistry.get_active_backend()
    use_attention_backend(dit.model, "sdpa", dit.device)
    assert dit.model.transformer_blocks[0].attn1.processor._attention_backend.value == "native"
    assert _AttentionBackendRegistry.get_active_backend() == before
    assert torch.equal(sample(dit, plan(), *glyphs, seeds=[0], steps=2, references=references), expected)


def test_the_loader_offers_every_backend_that_diffusers_knows_by_these_names():
    from diffusers.models.attention_dispatch import AttentionBackendName
    from glm_image_pack.nodes.widgets import ATTENTION

    assert ATTENTION[0] == ["auto", *ATTENTION_BACKENDS]
    assert {AttentionBackendName(name).value for name in ATTENTION_BACKENDS.values()} == set(ATTENTION_BACKENDS.values())


@pytest.mark.parametrize("attention", ["flash", "sage"])
def test_a_backend_that_is_not_installed_is_told_before_anything_runs(models, quiet_host, attention):
    if find_spec({"flash": "flash_attn", "sage": "sageattention"}[attention]):
        pytest.skip(f"{attention} is installed")
    loader = NODES["GLMImageLoadDiT"]
    assert f"attention {attention} needs" in loader.VALIDATE_INPUTS("GLM-Image", attention=attention)
    quiet_host.models = models / "nowhere"  # as it is told in ComfyUI, when the loader runs: before weights are looked for
    with pytest.raises(ImportError, match=f"attention {attention} needs"):
        loader().load("GLM-Image", "auto", "none", attention)


def test_a_missing_compiler_is_told_before_anything_runs(models, quiet_host, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert NODES["GLMImageLoadDiT"].VALIDATE_INPUTS("GLM-Image") is True
    assert "C++ compiler" in NODES["GLMImageLoadDiT"].VALIDATE_INPUTS("GLM-Image", compile=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", None)  # which find_spec takes for a module that is not there
    assert "Triton" in NODES["GLMImageLoadDiT"].VALIDATE_INPUTS("GLM-Image", compile=True)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="needs a C++ compiler")
def test_compiled_blocks_paint_the_same_picture(folder, encoder, encode_reference):
    from torch._dynamo.utils import counters

    glyphs = encode_glyph_texts(encoder, ["OPEN"]), encode_glyph_texts(encoder, [])
    references = [encode_reference(pattern(128, 160, 3))]
    plain, compiled = load_dit(folder), load_dit(folder)
    compile_blocks(compiled.model)
    counters.clear()
    for given in ([], references):
        expected = sample(plain, plan(), *glyphs, seeds=[0], steps=2, references=given)
        assert torch.allclose(sample(compiled, plan(), *glyphs, seeds=[0], steps=2, references=given), expected, atol=1e-4)
        graphs = counters["stats"]["unique_graphs"]
        with streamed(compiled.model, compiled.blocks, resident=0, device=compiled.device):  # runs what was compiled
            assert torch.allclose(sample(compiled, plan(), *glyphs, seeds=[0], steps=2, references=given), expected, atol=1e-4)
        assert counters["stats"]["unique_graphs"] == graphs > 0


def test_attention_that_the_device_cannot_compute_is_told_before_anything_runs(models, quiet_host):
    loader = NODES["GLMImageLoadDiT"]
    assert "is not one of auto, sdpa" in loader.VALIDATE_INPUTS("GLM-Image", attention="bogus")
    if host.device().type != "cuda":
        assert "attention cudnn runs on CUDA, not on cpu" in loader.VALIDATE_INPUTS("GLM-Image", attention="cudnn")
    assert loader.VALIDATE_INPUTS("GLM-Image", attention="sdpa") is True
