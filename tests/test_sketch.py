"""Sketch, choose, expand, and variations: the tokens are those of whole plans."""

from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.draw import Noise, Sampling, Variation
from glm_image_pack.glmimage_core.glm_image.plans.choose import best, chosen, found_share, numbers_in
from glm_image_pack.glmimage_core.glm_image.plans.entropy import token_entropies
from glm_image_pack.glmimage_core.glm_image.plans.kept import from_bytes, to_bytes
from glm_image_pack.glmimage_core.glm_image.plans.look import contact_sheet
from glm_image_pack.glmimage_core.glm_image.plans.mixed import cropped
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.glm_image.sketch import expand_sketches, sketch_of, sketch_priors

from plans import plan

PROMPT = "a red house"
SIZE = (320, 192)


@pytest.fixture(scope="module")
def whole(ar):
    return generate_prior(ar, PROMPT, *SIZE, seed=5, batch=3)


@pytest.fixture(scope="module")
def sketches(ar):
    return sketch_priors(ar, PROMPT, *SIZE, seed=5, batch=3)


def test_sketches_are_the_previews_of_whole_plans(whole, sketches):
    assert torch.equal(sketches.tokens, whole.preview)
    assert sketches.expands_to == SIZE and (sketches.width, sketches.height) == (20 * 32, 12 * 32)
    assert sketches.passes < whole.passes


@pytest.mark.parametrize("lookahead", [0, 1, 16])
def test_expanded_with_its_own_seed_a_sketch_is_the_whole_plan(ar, whole, sketches, lookahead):
    expanded = expand_sketches(ar, sketches, seed=5, lookahead=lookahead)
    assert torch.equal(expanded.tokens, whole.tokens) and torch.equal(expanded.preview, whole.preview)
    alone = expand_sketches(ar, chosen(sketches, [2]), seed=7, lookahead=lookahead)
    assert torch.equal(alone.tokens, whole.tokens[2:])


def test_copies_share_the_preview_and_differ_in_their_details(ar, sketches):
    expanded = expand_sketches(ar, chosen(sketches, [2, 0]), seed=50, copies=2)
    assert torch.equal(expanded.preview, sketches.tokens[[2, 2, 0, 0]])
    assert not torch.equal(expanded.tokens[0], expanded.tokens[1])


def test_a_plan_is_expanded_from_its_preview(ar, whole):
    assert torch.equal(expand_sketches(ar, whole, seed=5).tokens, whole.tokens)
    other = expand_sketches(ar, whole, seed=50)
    assert torch.equal(other.preview, whole.preview) and not torch.equal(other.tokens, whole.tokens)


def test_what_cannot_be_expanded_is_told(ar, whole, sketches):
    with pytest.raises(ValueError, match="has no preview"):
        sketch_of(cropped(whole, 0, 0, width=192, height=192))
    with pytest.raises(ValueError, match="has no preview"):
        sketch_of(cropped(sketches, 0, 0, width=192, height=192))
    with pytest.raises(ValueError, match="expand it before it is cut"):
        expand_sketches(ar, replace(sketches, tokens=sketches.tokens[:, 1:]), seed=0)
    with pytest.raises(ValueError, match="codebook"):
        expand_sketches(ar, replace(sketches, codebook="another"), seed=0)
    with pytest.raises(ValueError, match="0 copies"):
        expand_sketches(ar, sketches, seed=0, copies=0)
    with pytest.raises(ValueError, match="0 plans were asked for"):
        sketch_priors(ar, PROMPT, *SIZE, seed=0, batch=0)


def test_a_sketch_is_kept_with_what_it_expands_to(ar, sketches):
    again = from_bytes(to_bytes(sketches), "a file")
    assert again.expands_to == SIZE and torch.equal(again.tokens, sketches.tokens)
    assert from_bytes(to_bytes(plan()), "a file").expands_to is None


def test_a_sketch_is_asked_about_as_the_beginning_of_its_plan(ar, whole, sketches):
    asked = token_entropies(ar, sketches)
    assert asked.shape == sketches.tokens.shape
    of_whole = token_entropies(ar, whole) - token_entropies(ar, replace(whole, preview=sketches.tokens))
    assert torch.equal(of_whole, torch.zeros_like(of_whole))
    shared = torch.nn.functional.interpolate(asked[:, None], whole.tokens.shape[1:], mode="area")[:, 0] * 240 / 60
    large = token_entropies(ar, whole) - shared
    assert (large > -1e-3).all() and large.mean() > 0


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=1, top_k=0)], ids=str)
def test_variations_begin_at_one_seed_and_end_at_another(ar, sampling):
    def plans(seed, batch, variation=None):
        return generate_prior(ar, PROMPT, 192, 192, seed=seed, batch=batch, sampling=sampling, variation=variation)

    own, other = plans(5, 1), plans(40, 2)
    none, all_of_it = plans(5, 2, Variation(40, 0.0)), plans(5, 2, Variation(40, 1.0))
    assert torch.equal(none.tokens, own.tokens.expand(2, -1, -1)) and torch.equal(none.preview, own.preview.expand(2, -1, -1))
    assert torch.equal(all_of_it.tokens, other.tokens) and torch.equal(all_of_it.preview, other.preview)
    between = plans(5, 2, Variation(40, 0.5))
    assert not torch.equal(between.preview, none.preview) and not torch.equal(between.preview, all_of_it.preview)


def test_a_stronger_variation_keeps_what_a_weaker_one_has_varied():
    own, other = (Noise([seed], places=200, width=5, kept=5).windows([0], 200)[0] for seed in (1, 9))
    before, shares = torch.zeros(200, dtype=torch.bool), (0.0, 0.1, 0.5, 0.9, 1.0)
    for share in shares:
        noise = Noise([1], places=200, width=5, kept=5, variations=[Variation(9, share)]).windows([0], 200)[0]
        varied = (noise == other).all(dim=1)
        assert torch.equal(varied, ~(noise == own).all(dim=1))
        assert (varied | ~before).all() and abs(varied.float().mean() - share) < 0.1
        before = varied


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_its_range_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        Variation(0, strength)


def test_plans_are_chosen_by_number_and_by_score(sketches):
    two = chosen(sketches, [2, 0])
    assert torch.equal(two.tokens, sketches.tokens[[2, 0]]) and two.seed == 7
    assert numbers_in("2") == [2] and numbers_in(" 0, 3 ,1") == [0, 3, 1]
    assert best([0.5, 0.9, 0.9, 0.1], 3) == [1, 2, 0]
    for images, message in (([], "no plan is chosen"), ([3], "no plan 3"), ([-1], "no plan -1")):
        with pytest.raises(ValueError, match=message):
            chosen(sketches, images)
    for text, message in (("0, a", "'a' is no number"), ("", "no plan is chosen"), (" , ", "no plan is chosen")):
        with pytest.raises(ValueError, match=message):
            numbers_in(text)
    with pytest.raises(ValueError, match="5 of 2 plans"):
        best([0, 1], 5)


def test_the_share_of_a_text_that_a_reader_found():
    assert found_share(["OPEN DAILY"], "It says:\nOPEN\n DAILY, in red.") == 1
    assert found_share(["OPEN"], "OPAN") == 0.5
    assert found_share(["OPEN"], "open") == 0
    assert found_share(["OPEN", "SHUT"], "OPEN") == 0.5


def test_a_contact_sheet_shows_each_picture_with_its_number():
    pictures = torch.stack([torch.full((96, 128, 3), value) for value in (0.2, 0.4, 0.6, 0.8, 1.0)])
    sheet = contact_sheet(pictures)
    assert sheet.shape == (1, 2 * 96, 3 * 128, 3)
    for number, value in enumerate((0.2, 0.4, 0.6, 0.8, 1.0)):
        row, column = divmod(number, 3)
        cell = sheet[0, row * 96 : (row + 1) * 96, column * 128 : (column + 1) * 128]
        assert abs(cell[-1, -1, 0] - value) < 0.01 and cell[:24, :24].std() > 0.1
    labels = [sheet[0, row * 96 : row * 96 + 20, column * 128 : column * 128 + 20] for row, column in ((0, 0), (0, 1))]
    assert not torch.equal(*(label == 1 for label in labels))
    assert contact_sheet(pictures, 5).shape == (1, 96, 5 * 128, 3)
    assert contact_sheet(pictures[:2], 9).shape == (1, 96, 2 * 128, 3)
