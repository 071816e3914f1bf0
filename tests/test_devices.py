"""That everything reaches the device, without having one: on PyTorch's meta device an operation on a tensor that was left on
the CPU raises. Nothing can come back from there, so a function that ends by fetching its result gets exactly that far.
"""

import copy
from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.ar_model import fit, halves_of, vision_tokens
from glm_image_pack.glmimage_core.glm_image.denoise import CfgConditions, guided_velocity, sample
from glm_image_pack.glmimage_core.glm_image.dit import encode_conditions
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.glm_image.reference_cache import reference_kv_caches
from glm_image_pack.glmimage_core.vae import decode, encode

from pictures import pattern
from plans import plan
from watch import watch_inputs

META = torch.device("meta")


def moved(component, dtype=torch.bfloat16):
    """The component with its weights on the meta device, computing there."""
    return replace(component, model=copy.deepcopy(component.model).to(META, dtype)).on(META)


def half_moved(ar, half):
    """The AR model with the weights of one half on the meta device, computing there."""
    model = copy.deepcopy(ar.model).to(torch.bfloat16)
    halves = halves_of(model)
    halves[half].to(META)
    return replace(ar, model=model, halves=halves).on(META)


def fetching():
    """Raised by the first attempt to read a value, which is the end of the function under test."""
    return pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor")


def last_line(raised) -> str:
    """The line of this pack at which it stopped."""
    return next(str(entry.statement) for entry in reversed(raised.traceback) if "glmimage_core" in str(entry.path))


@pytest.mark.parametrize("edit", [False, True], ids=["text", "edit"])
def test_the_dit(dit, encode_reference, edit):
    references = [encode_reference(pattern(128, 160, 3)), encode_reference(pattern(160, 128, 5))] if edit else []
    with torch.inference_mode():
        reference_kv_caches(dit, references)  # on the CPU, where caches are kept
        there = moved(dit, torch.float32)
        seen = watch_inputs(there.model)
        cache = reference_kv_caches(there, references)
        assert {tensor.device for layer in cache or () for pair in layer.references for tensor in pair} == (
            {META} if edit else set()
        )
        glyphs = torch.zeros(1, 5, dit.model.config.text_embed_dim)
        guide = CfgConditions(
            there,
            encode_conditions(there, glyphs, 256, 256, batch=2, tokens=plan().tokens),
            encode_conditions(there, glyphs[:, :2], 256, 256, batch=2),
            cache,
        )
        x = torch.empty(2, 16, 32, 32, device=META)
        time = there.model.embed_time(torch.tensor([500.0], device=META), 256, 256, there.dtype)
        v = guided_velocity(guide, x, time, 1.5, timestep=torch.tensor(500.0, device=META))
    assert v.device == META and v.dtype == torch.float32 and v.shape == x.shape
    assert seen == {META}


def test_a_new_reference_in_the_dit(dit, encode_reference):
    reference = encode_reference(pattern(128, 160, 3))
    with torch.inference_mode(), fetching() as raised:
        reference_kv_caches(moved(dit), [reference])
    assert "return tensor.cpu()" in last_line(raised)  # _kept


def test_the_ar_model_writes(ar):
    from transformers.utils.generic import maybe_autocast

    try:
        maybe_autocast(device_type="meta", enabled=False)
    except RuntimeError:
        pytest.skip("this transformers asks the meta device for autocast, which it has not")
    there = half_moved(ar, "language")
    with fetching() as raised:
        generate_prior(there, "a red house", 256, 256, seed=0)
    assert "first = draw(" in last_line(raised)  # the first token, and nothing before


def test_the_ar_model_reads_a_reference(ar):
    there = half_moved(ar, "vision")
    seen = watch_inputs(there.model.model.visual)
    # It reads the size of its grid first: by tolist() in today's transformers, by item() in 5.1, which fail in their own words.
    ends = r"Cannot copy out of meta tensor|Tensor\.item\(\) cannot be called on meta tensors"
    with pytest.raises(RuntimeError, match=ends) as raised:
        vision_tokens(there, fit(there, pattern(128, 160, 3)))
    assert "core.visual(" in last_line(raised) and seen == {META}
    assert {weight.device for weight in there.halves["language"].parameters()} == {torch.device("cpu")}


@pytest.mark.parametrize("half", ["language", "vision"])
def test_each_stage_of_the_ar_model_runs_one_half_of_it(ar, half):
    called = set()
    watches = [module.register_forward_pre_hook(lambda module, args: called.add(module)) for module in ar.model.modules()]
    if half == "language":
        generate_prior(ar, "a red house", 256, 256, seed=0)
    else:
        vision_tokens(ar, fit(ar, pattern(128, 160, 3)))
    for watch in watches:
        watch.remove()
    assert called and called <= set(ar.halves[half].modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_vae(vae, dtype):
    there = moved(vae, dtype)
    with fetching() as raised:
        encode(there, torch.zeros(1, 64, 64, 3))
    assert ".float().cpu()" in last_line(raised)
    with fetching() as raised:
        decode(there, torch.zeros(1, 16, 8, 8))
    assert ".float().cpu()" in last_line(raised)


def test_a_whole_run_of_the_sampler(dit):
    glyphs = torch.zeros(1, 5, dit.model.config.text_embed_dim)
    latents, mask = torch.ones(1, 16, 32, 32), torch.ones(1, 1, 32, 32)
    there = moved(dit)
    seen = watch_inputs(there.model)
    with fetching() as raised:
        sample(there, plan(), glyphs, glyphs, seeds=[0], steps=2, denoise=0.5, latents=latents, mask=mask)
    assert "denormalise(x).cpu()" in last_line(raised) and seen == {META}
