"""Plans cut, moved and put together: which tokens come out, what is refused, and what nano paints of it."""

from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.dit import encode_conditions
from glm_image_pack.glmimage_core.glm_image.files.components import BUILT_IN, NANO
from glm_image_pack.glmimage_core.glm_image.pipeline import GlmImage
from glm_image_pack.glmimage_core.glm_image.plans import kept
from glm_image_pack.glmimage_core.glm_image.plans.mixed import cropped, dropped, mixed, pasted, shifted
from glm_image_pack.glmimage_core.images import to_pictures
from glm_image_pack.training.drawing import draw
from glm_image_pack.training.reading import read
from glm_image_pack.training.world import Scene, Shape

from plans import plan

ONE, OTHER = plan(256, 320, seed=1), plan(256, 320, seed=2)
LEFT = torch.zeros(1, 320, 256)
LEFT[:, :, :128] = 1
LEFT_OF_SQUARE = LEFT[:, :256]


def test_a_mask_chooses_between_the_tokens_of_two_plans():
    tokens = mixed(ONE, OTHER, LEFT).tokens
    assert torch.equal(tokens[..., :4], OTHER.tokens[..., :4]) and torch.equal(tokens[..., 4:], ONE.tokens[..., 4:])
    small = torch.nn.functional.interpolate(LEFT[None], (20, 16))[0]
    assert torch.equal(mixed(ONE, OTHER, small).tokens, tokens)  # masks of another size are stretched
    assert torch.equal(mixed(ONE, OTHER, torch.zeros(1, 8, 8)).tokens, ONE.tokens)
    assert torch.equal(mixed(ONE, OTHER, torch.ones(1, 8, 8)).tokens, OTHER.tokens)


def test_previews_are_mixed_where_both_have_one():
    grids = [replace(prior, preview=torch.full((1, 17, 14), seed)) for seed, prior in enumerate((ONE, OTHER))]
    preview = mixed(*grids, LEFT).preview
    assert preview[0, 0].tolist() == [1] * 7 + [0] * 7
    assert mixed(grids[0], OTHER, LEFT).preview is None


def test_one_plan_is_mixed_into_each_of_several():
    batch = plan(256, 320, batch=3)
    tokens = mixed(batch, OTHER, LEFT).tokens
    assert tokens.shape == (3, 10, 8) and (tokens[:, :, :4] == OTHER.tokens[:, :, :4]).all()
    with pytest.raises(ValueError, match="3 priors, 2 other priors, 1 masks do not go together"):
        mixed(batch, plan(256, 320, batch=2), LEFT)


def test_a_part_is_cut_out_and_put_back():
    part = cropped(ONE, 32, 64, width=192, height=224)
    assert (part.width, part.height) == (192, 224) and torch.equal(part.tokens, ONE.tokens[:, 2:9, 1:7])
    assert torch.equal(pasted(ONE, part, 32, 64).tokens, ONE.tokens)
    moved = pasted(OTHER, part, 64, 96).tokens
    assert torch.equal(moved[:, 3:10, 2:8], part.tokens) and torch.equal(moved[:, :3], OTHER.tokens[:, :3])


def test_what_reaches_over_an_edge_is_cut_off():
    part = cropped(ONE, 0, 0, width=192, height=192)
    tokens = pasted(OTHER, part, -64, 224).tokens
    assert torch.equal(tokens[:, 7:, :4], part.tokens[:, :3, 2:])
    untouched = torch.ones(10, 8, dtype=torch.bool)
    untouched[7:, :4] = False
    assert torch.equal(tokens[0][untouched], OTHER.tokens[0][untouched])
    with pytest.raises(ValueError, match="nothing of the piece lies in the plan of 256x320"):
        pasted(OTHER, part, 256, 0)


def test_a_shift_repeats_the_edge_that_it_leaves():
    tokens = shifted(ONE, 64, -32).tokens
    assert torch.equal(tokens[:, :9, 2:], ONE.tokens[:, 1:, :6])
    assert (tokens[:, :9, :2] == ONE.tokens[:, 1:, :1]).all() and torch.equal(tokens[:, 9], tokens[:, 8])
    assert torch.equal(shifted(ONE, 0, 0).tokens, ONE.tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: cropped(ONE, 16, 0, width=192, height=192), "left 16 is not a multiple of 32; use 0 or 32"),
        (lambda: cropped(ONE, 96, 0, width=192, height=192), "192x192 pixels at 96, 0 reach outside the plan of 256x320"),
        (lambda: cropped(ONE, -32, 0, width=192, height=192), "reach outside"),
        (lambda: cropped(ONE, 0, 0, width=64, height=64), "outside 192..4096"),
        (lambda: shifted(ONE, 0, -33), "down -33 is not a multiple of 32; use -64 or -32"),
        (lambda: pasted(ONE, OTHER, 5, 0), "left 5 is not"),
        (lambda: mixed(ONE, plan(256, 256), LEFT), "of 256x320 and 256x256 pixels"),
        (lambda: mixed(ONE, replace(OTHER, codebook="other"), LEFT), "different AR models"),
        (lambda: pasted(ONE, replace(OTHER, codebook="other"), 0, 0), "different AR models"),
        (lambda: dropped(ONE, torch.full((1, 4, 4), torch.nan)), "NaN or infinite"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change()


# Dropped tokens


@pytest.fixture
def glyphs(dit):
    return torch.zeros(1, 3, dit.model.config.text_embed_dim)


def test_a_plan_without_tokens_is_what_the_negative_side_has(dit, glyphs):
    hidden = dropped(plan(256, 256), torch.ones(1, 8, 8))
    embedded, negative, seen = (
        encode_conditions(dit, glyphs, 256, 256, batch=1, **planned).prior_embeds
        for planned in ({"tokens": hidden.tokens, "dropped": hidden.dropped}, {}, {"tokens": hidden.tokens})
    )
    assert torch.equal(embedded, negative) and not torch.equal(embedded, seen)


def test_only_the_dropped_cells_are_hidden(dit, glyphs):
    corner = torch.zeros(1, 8, 8)
    corner[:, 0, 0] = 1
    prior = dropped(plan(256, 256), corner)
    part, whole = (
        encode_conditions(dit, glyphs, 256, 256, batch=1, tokens=prior.tokens, dropped=which).prior_embeds[0].view(16, 16, -1)
        for which in (prior.dropped, None)
    )
    changed = (part != whole).any(dim=-1)
    assert changed[:2, :2].all() and changed.sum() == 4


def test_a_sampler_does_not_see_what_is_dropped(dit, glyphs):
    def painted(prior):
        return sample(dit, prior, glyphs, glyphs, seeds=[0], steps=2)

    hidden = dropped(plan(256, 256), LEFT_OF_SQUARE)
    other = replace(hidden, tokens=mixed(hidden, plan(256, 256, seed=5), LEFT_OF_SQUARE).tokens)  # only hidden ones differ
    assert torch.equal(painted(hidden), painted(other))
    assert not torch.equal(painted(hidden), painted(replace(hidden, dropped=None)))


def test_dropped_tokens_move_with_the_others_and_are_kept(tmp_path):
    hidden = dropped(ONE, LEFT)
    assert cropped(hidden, 64, 0, width=192, height=192).dropped[0, 0].tolist() == [True] * 2 + [False] * 4
    assert shifted(hidden, 32, 0).dropped[0, 0].tolist() == [True] * 5 + [False] * 3
    assert pasted(OTHER, hidden, 0, 0).dropped.sum() == 40
    assert mixed(hidden, OTHER, LEFT).dropped is None  # all of them were replaced
    kept.save_prior(hidden, tmp_path / "plan.safetensors")
    assert torch.equal(kept.load_prior(tmp_path / "plan.safetensors").dropped, hidden.dropped)


# What nano paints

STAR = Scene(8, 8, "blue", (Shape("star", "yellow", "large", 1, 1),))
SQUARE = Scene(8, 8, "blue", (Shape("square", "red", "small", 5, 6),))


@pytest.fixture(scope="module")
def glm() -> GlmImage:
    return GlmImage.load(BUILT_IN[NANO], dtype="float32")


def shown(glm: GlmImage, prior) -> Scene:
    return read(glm.paint_tensor(prior, seed=0, steps=6)[0])


def test_nano_paints_what_two_plans_are_mixed_of(glm):
    plans = [glm.plan_of(to_pictures(draw(scene)[None])[0]) for scene in (STAR, SQUARE)]
    right = torch.zeros(1, 8, 8)
    right[:, :, 5:] = 1
    seen = shown(glm, mixed(*plans, right))
    assert seen.ground == "blue" and set(seen.shapes) == {*STAR.shapes, *SQUARE.shapes}


def test_nano_paints_a_shifted_plan_shifted(glm):
    seen = shown(glm, shifted(glm.plan_of(to_pictures(draw(STAR)[None])[0]), 64, -32))
    assert seen.ground == "blue" and seen.shapes == (Shape("star", "yellow", "large", 0, 3),)
