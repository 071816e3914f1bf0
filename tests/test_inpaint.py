"""Inpainting, outpainting and what an edit changed, in the library and through the nodes."""

import asyncio

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.edited import changed_cells, mask_of_cells
from glm_image_pack.glmimage_core.glm_image.inpaint import inpaint_prior, latent_mask, padded, reference_plan, to_be_read
from glm_image_pack.glmimage_core.images import from_picture
from glm_image_pack.glmimage_core.masks import touched
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES

from pictures import pattern

PROMPT = "make it blue"


def hole(height=192, width=256):
    mask = torch.zeros(1, height, width)
    mask[:, 64:128, 40:100] = 1
    return mask


def test_an_inpainting_keeps_the_pictures_own_tokens_outside_the_mask(ar, encode_reference):
    reference = encode_reference(pattern(256, 192, 3))
    prior = inpaint_prior(ar, reference, hole(), PROMPT, seed=2)
    cells = touched(hole(), reference.grid)[0]
    assert torch.equal(prior.tokens[0][~cells], reference.vision_tokens[~cells])
    assert not torch.equal(prior.tokens[0][cells], reference.vision_tokens[cells])
    assert prior.references == (reference.id,)


def test_what_is_under_the_mask_is_shown_or_erased(ar):
    image = from_picture(pattern(256, 192, 3))
    shown, mask = to_be_read(ar, image, hole(), erase=False)
    erased, _ = to_be_read(ar, image, hole(), erase=True)
    changed = (from_picture(shown) - from_picture(erased)).abs().sum(-1) > 0
    assert torch.equal(from_picture(shown), image) and torch.equal(mask, hole())
    assert changed.any() and not changed[hole() == 0].any()


def test_a_picture_of_any_size_is_read_at_the_size_of_its_fit_and_its_mask_with_it(ar):
    picture, mask = to_be_read(ar, torch.rand(1, 203, 301, 4), torch.tensor([[0.0, 1.0]]), erase=False)
    assert mask.shape == (1, picture.height, picture.width)
    assert picture.width % 32 == picture.height % 32 == 0 and mask.mean() == 0.5


def test_room_is_added_on_any_side_and_the_whole_is_a_size_that_can_be_painted():
    image = torch.rand(2, 200, 230, 3)
    whole, mask = padded(image, left=64, bottom=32)
    assert whole.shape == (2, 256, 320, 3) and mask.shape == (1, 256, 320)
    assert torch.equal(whole[:, :200, 64:294], image) and mask[:, :200, 64:294].max() == 0
    assert mask.sum() == 256 * 320 - 200 * 230


def test_the_latents_that_a_mask_touches_may_change():
    assert torch.equal(latent_mask(hole(), 256, 192)[0, 0], hole()[0, ::8, ::8].index_fill(1, torch.tensor([12]), 0) + edge())


def edge():
    """The latent column of which the mask covers only a half."""
    column = torch.zeros(24, 32)
    column[8:16, 12] = 1
    return column


def test_what_an_edit_changed_is_where_its_tokens_differ_from_the_references(ar, encode_reference):
    reference = encode_reference(pattern(256, 192, 3))
    prior = inpaint_prior(ar, reference, hole(), PROMPT, seed=2)
    cells = changed_cells(prior, reference)
    assert cells.any() and not (cells & ~touched(hole(), reference.grid)).any()
    assert changed_cells(prior, reference, grow=1).sum() > cells.sum()
    assert mask_of_cells(cells).shape == (1, 192, 256) and mask_of_cells(cells).sum() == 1024 * cells.sum()
    assert not changed_cells(reference_plan(reference), reference).any()


def test_what_cannot_be_compared_or_padded_is_refused(ar, encode_reference):
    prior = reference_plan(encode_reference(pattern(256, 192, 3)))
    with pytest.raises(ValueError, match="256x256 pixels and the prior plans 256x192"):
        changed_cells(prior, encode_reference(pattern(256, 256, 3)))
    with pytest.raises(ValueError, match="grow is -1"):
        changed_cells(prior, encode_reference(pattern(256, 192, 3)), -1)
    with pytest.raises(ValueError, match="left is -32"):
        padded(torch.zeros(1, 256, 256, 3), left=-32)
    with pytest.raises(ValueError, match="outside 192..4096"):
        padded(torch.zeros(1, 256, 256, 3), left=8000)
    with pytest.raises(ValueError, match="2 pictures were given"):
        to_be_read(ar, torch.zeros(2, 256, 256, 3), hole(), erase=False)


# Nodes


def run(name, **inputs):
    node = NODES[name]
    result = getattr(node(), node.FUNCTION)(**inputs)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def test_inpainting_from_node_to_node_gives_the_old_pixels_outside_the_mask(ar, encoder, dit, vae):
    image = from_picture(pattern(256, 192, 3))
    conditionings = dict(
        zip(("positive", "negative"), run("GLMImageEncodePrompt", glyph_encoder=encoder, prompt=PROMPT)[:2], strict=True)
    )
    prior, references, latent, mask = run(
        "GLMImageInpaint",
        **{"ar": ar, "vae": vae, "image": image, "mask": hole(), "prompt": PROMPT},
        **{"under_mask": "replace it", "batch_size": 2, "seed": 1},
    )
    positive, negative = run("GLMImageApplyPrior", **conditionings, prior=prior, references=references)
    inputs = {"model": dit, "positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
    (painted,) = run("GLMImageSampler", **inputs, latent_image=latent)
    kept = (latent["noise_mask"] == 0).expand_as(painted["samples"])
    assert painted["samples"].shape[0] == 2
    assert torch.allclose(painted["samples"][kept], latent["samples"][kept], atol=1e-4)
    (decoded,) = run("GLMImageVAEDecode", vae=vae, samples=painted)
    (whole,) = run("GLMImageCompositeMasked", original=image, painted=decoded, mask=mask)
    outside = hole()[0] == 0
    assert all(torch.equal(picture[outside], image[0][outside]) for picture in whole)
    assert not torch.equal(whole[0], whole[1])


def test_regions_are_planned_one_after_another(ar):
    (prior,) = run("GLMImageGeneratePrior", ar=ar, prompt="a wood", width=256, height=192, batch_size=1, seed=1)
    left = torch.tensor([[1.0, 0.0]])
    (one,) = run("GLMImageRegrowPrior", ar=ar, prior=prior, mask=left, prompt="a house", seed=2)
    (both,) = run("GLMImageRegrowPrior", ar=ar, prior=one, mask=1 - left, prompt="a lake", seed=3)
    assert torch.equal(one.tokens[..., 4:], prior.tokens[..., 4:]) and torch.equal(both.tokens[..., :4], one.tokens[..., :4])
    assert not torch.equal(both.tokens[..., 4:], one.tokens[..., 4:])


def test_the_changed_mask_comes_with_the_references_latents(ar, encode_reference):
    reference = encode_reference(pattern(256, 192, 3))
    prior = inpaint_prior(ar, reference, hole(), PROMPT, seed=2)
    mask, latent = run("GLMImageChangedMask", prior=prior, references=(reference,))
    assert mask.shape == (1, 192, 256) and latent["samples"] is reference.latents
    assert torch.equal(latent["noise_mask"][0, 0], mask[0, ::8, ::8])
    with pytest.raises(ValueError, match="reference is 2, and 1 are connected"):
        run("GLMImageChangedMask", prior=prior, references=(reference,), reference=2)


def test_a_choice_in_a_prompt_is_drawn_in_no_node_that_shares_it(ar, encoder, vae, caplog):
    prompt, size = "a {red|blue} house", {"width": 256, "height": 192}
    (prior,) = run("GLMImageGeneratePrior", ar=ar, prompt=prompt, **size, batch_size=1, seed=1)
    run("GLMImageEncodePrompt", glyph_encoder=encoder, prompt=prompt)
    run("GLMImageRegrowPrior", ar=ar, prior=prior, mask=hole(), prompt=prompt, seed=2)
    inputs = {"ar": ar, "vae": vae, "image": from_picture(pattern(256, 192, 3)), "mask": hole(), "prompt": prompt}
    run("GLMImageInpaint", **inputs, under_mask="change it", batch_size=1, seed=1)
    assert caplog.text.count("{red|blue} stays as it is here; type the prompt into GLM-Image Prompt") == 4


def test_an_empty_prompt_is_refused_when_the_graph_is_queued_and_a_mask_of_nothing_is_noticed(ar, vae, caplog):
    for name in ("GLMImageRegrowPrior", "GLMImageInpaint"):
        assert "empty" in NODES[name].VALIDATE_INPUTS(" ") and NODES[name].VALIDATE_INPUTS(None) is True
        assert "40001 characters" in NODES[name].VALIDATE_INPUTS("x" * 40001)
    image, nothing = from_picture(pattern(256, 192, 3)), torch.zeros(1, 8, 8)
    inputs = {"ar": ar, "vae": vae, "image": image, "mask": nothing, "prompt": PROMPT, "batch_size": 1, "seed": 1}
    prior, (reference,), _, _ = run("GLMImageInpaint", **inputs, under_mask="change it")
    assert torch.equal(prior.tokens[0], reference.vision_tokens) and prior.references == (reference.id,)
    assert "the mask covers nothing" in caplog.text
