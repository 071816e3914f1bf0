"""The DiT stage: batches, guidance, latents, masks, reference caches."""

from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core import diffusion
from glm_image_pack.glmimage_core.diffusion import Grid, initial_noise
from glm_image_pack.glmimage_core.glm_image import reference_cache as caching
from glm_image_pack.glmimage_core.glm_image.denoise import Approximations, CfgConditions, check_sample, guided_velocity, sample
from glm_image_pack.glmimage_core.glm_image.dit import encode_conditions
from glm_image_pack.glmimage_core.glm_image.draw import Sampling
from glm_image_pack.glmimage_core.glm_image.glyphs import encode_glyph_texts
from glm_image_pack.glmimage_core.glm_image.prior import Prior
from glm_image_pack.glmimage_core.glm_image.reference_cache import reference_kv_caches

from pictures import pattern
from plans import plan


def test_each_image_of_a_batch_can_be_painted_again_alone(dit, glyphs):
    prior = plan(batch=3)
    batch = sample(dit, prior, *glyphs, seeds=[4, 5, 6], steps=3)
    for i, seed in enumerate([4, 5, 6]):
        alone = Prior(prior.tokens[i : i + 1], None, 256, 256, "", 0, Sampling(), codebook="")
        assert torch.allclose(batch[i : i + 1], sample(dit, alone, *glyphs, seeds=[seed], steps=3), atol=1e-4)
    assert batch.shape == (3, 16, 32, 32)


def test_a_plan_of_another_checkpoint_is_refused_before_the_model_runs(dit, glyphs):
    own = replace(plan(), codebook=dit.codebook)
    check = {"glyphs": glyphs, "batch": 1, "denoise": 1.0, "latents": None, "mask": None}
    check_sample(dit, own, **check)
    check_sample(dit, plan(), **check)  # whose codebook nobody knows
    check_sample(replace(dit, codebook=""), replace(own, codebook="other"), **check)
    with pytest.raises(ValueError, match="another checkpoint's codebook"):
        sample(dit, replace(own, codebook="other"), *glyphs, seeds=[0], steps=1)


def test_one_prior_serves_several_seeds(dit, glyphs):
    both = sample(dit, plan(), *glyphs, seeds=[1, 2], steps=2)
    assert torch.allclose(both[1:], sample(dit, plan(), *glyphs, seeds=[2], steps=2), atol=1e-4)


def test_noise_is_the_first_of_a_generator_of_its_seed():
    state = torch.get_rng_state()
    noise = initial_noise([7, 8], 16, Grid(4, 6))
    assert torch.equal(noise[0], torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(7))[0])
    assert torch.equal(state, torch.get_rng_state())


def passes(dit, monkeypatch) -> list[str]:
    """What goes through the DiT from now on: positive, negative or both sides of the guidance, told by their prior states."""
    seen = []
    forward = dit.model.forward

    def watched(x, *, prior_embeds, **rest):
        dropped = (prior_embeds == prior_embeds[:, :1]).all(dim=(1, 2)).tolist()
        seen.append({(False,): "positive", (True,): "negative", (False, True): "both"}[tuple(dropped)])
        return forward(x, prior_embeds=prior_embeds, **rest)

    monkeypatch.setattr(dit.model, "forward", watched)
    return seen


def test_cfg_one_leaves_the_negative_out(dit, glyphs, monkeypatch):
    seen = passes(dit, monkeypatch)
    sample(dit, plan(), *glyphs, seeds=[0], steps=2, cfg=1)
    assert seen == ["positive", "positive"]
    seen.clear()
    sample(dit, plan(), *glyphs, seeds=[0], steps=2, cfg=1.5)
    assert seen == ["positive", "negative", "positive", "negative"]


def guide_of(dit, glyphs) -> CfgConditions:
    positive = encode_conditions(dit, glyphs[0], 256, 256, batch=1, tokens=plan().tokens)
    return CfgConditions(dit, positive, encode_conditions(dit, glyphs[1], 256, 256, batch=1))


@torch.inference_mode()
def test_guidance_is_linear_from_the_negative(dit, glyphs):
    x, time = initial_noise([0], 16, Grid(32, 32)), dit.model.embed_time(torch.tensor([500.0]), 256, 256, dit.dtype)
    v0, v1, v3 = (guided_velocity(guide_of(dit, glyphs), x, time, cfg, timestep=torch.tensor(500.0)) for cfg in (0, 1, 3))
    assert torch.allclose(v3, v0 + 3 * (v1 - v0), atol=1e-4)
    assert (v1 - v0).abs().max() > 0.1


@pytest.mark.parametrize("seeds", [[3], [3, 4]])
def test_both_sides_share_a_pass_where_their_texts_are_of_one_length(dit, glyphs, monkeypatch, seeds):
    same = glyphs[0], glyphs[0].flip(1)
    apart = [sample(dit, plan(), *same, seeds=[seed], steps=3) for seed in seeds]
    monkeypatch.setattr(diffusion, "BATCH_CFG_TOKENS", 0)
    expected = sample(dit, plan(), *same, seeds=seeds, steps=3)
    assert torch.allclose(torch.cat(apart), expected, atol=1e-5)
    monkeypatch.undo()
    if len(seeds) == 1:
        seen = passes(dit, monkeypatch)
        sample(dit, plan(), *same, seeds=seeds, steps=1)
        assert seen == ["both"]


def test_what_stays_the_same_is_computed_once_a_run(dit, glyphs):
    parts = {name: 0 for name in ("prior_projector", "glyph_projector", "time_condition_embed", "image_projector")}

    def count(name):
        parts[name] += 1

    for name in parts:
        dit.model.get_submodule(name).register_forward_pre_hook(lambda module, inputs, name=name: count(name))
    sample(dit, plan(), *glyphs, seeds=[0], steps=7)
    assert parts == {"prior_projector": 2, "glyph_projector": 2, "time_condition_embed": 1, "image_projector": 14}


def test_guidance_in_a_part_of_the_run(dit, glyphs, monkeypatch):
    base = {"seeds": [0], "steps": 10}
    exact = sample(dit, plan(), *glyphs, **base)
    seen = passes(dit, monkeypatch)
    part = sample(dit, plan(), *glyphs, **base, approximations=Approximations(cfg_start=0.2, cfg_end=0.7))
    assert seen == 2 * ["positive"] + 5 * ["positive", "negative"] + 3 * ["positive"]
    assert 1e-3 < (part - exact).norm() / exact.norm() < 0.5
    assert torch.equal(sample(dit, plan(), *glyphs, **base, approximations=Approximations(0.0, 1.0)), exact)
    unguided = sample(dit, plan(), *glyphs, **base, cfg=1)
    assert torch.equal(sample(dit, plan(), *glyphs, **base, approximations=Approximations(0.5, 0.5)), unguided)


def test_a_part_of_the_run_is_meant_also_where_the_run_is_a_part_of_the_schedule(dit, glyphs, monkeypatch):
    seen = passes(dit, monkeypatch)
    repainted = {"seeds": [0], "steps": 10, "denoise": 0.5, "latents": torch.randn(1, 16, 32, 32)}
    sample(dit, plan(), *glyphs, **repainted, approximations=Approximations(cfg_start=0.2, cfg_end=0.4))
    assert seen == 2 * ["positive"] + 2 * ["positive", "negative"] + 6 * ["positive"]


@pytest.mark.parametrize("values", [(0.6, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.0, float("nan")), (0.0, 1.0, -0.1)])
def test_meaningless_shortcuts_are_refused(values):
    with pytest.raises(ValueError, match="cfg_start|step_cache"):
        Approximations(*values)


def test_a_swapped_attention_processor_is_refused(dit, glyphs):
    from diffusers.models.attention_processor import AttnProcessor2_0

    dit.model.transformer_blocks[1].attn1.processor = AttnProcessor2_0()
    with pytest.raises(ValueError, match="AttnProcessor2_0, which takes positions and references in another form or not at all"):
        sample(dit, plan(), *glyphs, seeds=[0], steps=1)


def test_what_the_dit_sees_changes_the_picture(dit, glyphs, encoder, encode_reference):
    reference = encode_reference(pattern(128, 160, 3))
    other = encode_reference(pattern(128, 160, 5))
    base = {"positive": glyphs[0], "negative": glyphs[1], "seeds": [0], "steps": 2}
    pictures = [
        sample(dit, plan(), **base),
        sample(dit, plan(seed=1), **base),
        sample(dit, plan(), **base | {"seeds": [1]}),
        sample(dit, plan(), **base | {"positive": encode_glyph_texts(encoder, ["SHUT"])}),
        sample(dit, plan(), **base | {"negative": encode_glyph_texts(encoder, ["SHUT"])}),
        sample(dit, plan(), **base, cfg=3),
        sample(dit, plan(), **base, references=[reference]),
        sample(dit, plan(), **base, references=[other]),
        sample(dit, plan(), **base, references=[reference, other]),
    ]
    for i, one in enumerate(pictures):
        for another in pictures[:i]:
            assert (one - another).abs().max() > 1e-3


def test_denoise_keeps_more_of_a_latent_the_lower_it_is(dit, glyphs):
    latents = dit.space.denormalise(initial_noise([9], 16, Grid(32, 32)))
    distances = [
        (sample(dit, plan(), *glyphs, seeds=[0], steps=4, denoise=d, latents=latents) - latents).norm()
        for d in (1.0, 0.6, 0.2, 0.0)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == 0


def test_full_denoise_ignores_the_latent(dit, glyphs):
    latents = initial_noise([9], 16, Grid(32, 32))
    with_latent = sample(dit, plan(), *glyphs, seeds=[0], steps=2, latents=latents)
    assert torch.equal(with_latent, sample(dit, plan(), *glyphs, seeds=[0], steps=2))


def test_what_is_masked_out_comes_back_unchanged(dit, glyphs):
    latents = dit.space.denormalise(initial_noise([9], 16, Grid(32, 32)))
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    painted = sample(dit, plan(), *glyphs, seeds=[0], steps=3, latents=latents, mask=mask)
    assert torch.allclose(painted[..., :16], latents[..., :16], atol=1e-5)
    assert (painted[..., 16:] - latents[..., 16:]).abs().max() > 0.5


def test_progress_counts_steps_and_an_interruption_leaves_nothing_half_done(dit, glyphs, encode_reference, monkeypatch):
    reference = encode_reference(pattern(128, 160, 3))
    seen = []
    expected = sample(dit, plan(), *glyphs, seeds=[0], steps=3, references=[reference], progress=lambda *step: seen.append(step))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]  # before the first step, so that it can be stopped too

    def stop(done, total):
        raise KeyboardInterrupt

    dit.cached_references.clear()
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(dit.model.transformer_blocks[1], "forward", lambda *args, **kwargs: stop(0, 0))
        sample(dit, plan(), *glyphs, seeds=[0], steps=3, references=[reference])
    assert dit.cached_references == {}  # stopped half way through writing the cache
    with pytest.raises(KeyboardInterrupt):
        sample(dit, plan(), *glyphs, seeds=[0], steps=3, references=[reference], progress=stop)
    assert torch.equal(expected, sample(dit, plan(), *glyphs, seeds=[0], steps=3, references=[reference]))


def test_a_reference_is_run_once_and_what_was_used_longest_ago_is_forgotten_first(dit, glyphs, encode_reference, monkeypatch):
    first, second = encode_reference(pattern(128, 160, 3)), encode_reference(pattern(160, 128, 5))
    runs = []
    original = caching.reference_keys_values
    monkeypatch.setattr(caching, "reference_keys_values", lambda d, r: runs.append(r.id) or original(d, r))
    again = encode_reference(pattern(128, 160, 3))
    for references in ([first], [first], [again], [second], [], [first], [second, first], [second]):
        sample(dit, plan(), *glyphs, seeds=[len(runs)], steps=1, references=references)
    assert runs == [first.id, second.id]
    third = encode_reference(pattern(160, 192, 7))
    room = sum(t.numel() * 4 for name in (second.id, first.id) for pair in dit.cached_references[name] for t in pair)
    monkeypatch.setattr(caching, "REFERENCE_CACHE_BYTES", room)
    sample(dit, plan(), *glyphs, seeds=[0], steps=1, references=[third])
    assert list(dit.cached_references) == [third.id] or list(dit.cached_references) == [second.id, third.id]
    assert first.id not in dit.cached_references


@torch.inference_mode()
@pytest.mark.parametrize("on_device", [True, False])
def test_caches_of_several_references_are_joined_in_order_before_the_pictures_own(dit, encode_reference, on_device):
    first, second = encode_reference(pattern(128, 160, 3)), encode_reference(pattern(160, 192, 5))
    cache = reference_kv_caches(dit, [first, second], on_device)
    own = torch.randn(2, 2, 7, *dit.cached_references[first.id][0][0].shape[2:])  # keys and values of a batch of 2, 7 tokens
    for index, layer in enumerate(cache):
        for side, joined in enumerate(layer.get(*own)):
            kept = [dit.cached_references[reference.id][index][side].expand(2, -1, -1, -1) for reference in (first, second)]
            assert torch.equal(joined, torch.cat([*kept, own[side]], dim=1))
    assert len(cache) == 2


def test_caches_that_come_layer_by_layer_paint_the_same_picture(dit, glyphs, encode_reference):
    references = [encode_reference(pattern(128, 160, 3)), encode_reference(pattern(160, 192, 5))]
    pictures = [
        sample(dit, plan(), *glyphs, seeds=[0], steps=2, references=references, caches_on_device=there) for there in (True, False)
    ]
    assert torch.equal(*pictures)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(1, 16, 40, 32)}, "prior plans 256x256 pixels, but the latent image is of 256x320"),
        ({"denoise": 0.5}, "denoise is 0.5, which starts from a latent image"),
        ({"denoise": -0.5}, "denoise is -0.5; it must lie in 0..1"),
        ({"denoise": 1.5}, "denoise is 1.5; it must lie in 0..1"),
        ({"steps": 0}, "steps is 0"),
        ({"denoise": 0.5, "latents": torch.zeros(1, 16, 32, 32)}, "latent image is an empty one"),
        ({"mask": torch.ones(1, 1, 32, 32), "latents": torch.zeros(1, 16, 32, 32)}, "latent image is an empty one"),
        ({"prior": plan(batch=3)}, "plans 3 images and 2"),
        ({"latents": torch.zeros(3, 16, 32, 32)}, "3 latent images do not go with 2"),
        ({"prior": plan(rows=2000)}, "another model"),
        ({"latents": torch.zeros(1, 4, 32, 32)}, "another model family"),
        ({"latents": torch.zeros(1, 16, 1, 32, 32)}, "another model family"),
        ({"negative": torch.zeros(1, 7, 768)}, "768 wide and this DiT takes 32"),
        ({"latents": torch.ones(1, 16, 32, 32), "mask": torch.zeros(3, 1, 32, 32)}, "3 masks do not go with 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_runs(dit, glyphs, monkeypatch, change, message):
    monkeypatch.setattr(dit.model, "forward", lambda **inputs: pytest.fail("the model ran"))
    arguments = {"prior": plan(), "positive": glyphs[0], "negative": glyphs[1], "seeds": [0, 1]} | change
    with pytest.raises(ValueError, match=message):
        sample(dit, **arguments)
