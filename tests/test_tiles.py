"""Painting in tiles: where they lie, how they are blended, and that each has its own part of the plan."""

import itertools
from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.ar_model import vision_tokens
from glm_image_pack.glmimage_core.glm_image.denoise import Approximations, sample
from glm_image_pack.glmimage_core.glm_image.dit import encode_conditions, of_tile, rope
from glm_image_pack.glmimage_core.glm_image.plans.from_picture import prior_from_pictures
from glm_image_pack.glmimage_core.glm_image.plans.mixed import cropped
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.glm_image.tiles import Tile, Tiling, blended, tiles_of
from hypothesis import given
from hypothesis import strategies as st

from pictures import pattern

SIZE = (320, 256)
SIDES = st.integers(6, 128).map(lambda cells: 32 * cells)


@given(width=SIDES, height=SIDES, side=SIDES, data=st.data())
def test_tiles_cover_the_picture_and_overlap(width, height, side, data):
    tiling = Tiling(side, 32 * data.draw(st.integers(0, side // 64)))
    tiles = tiles_of(width, height, tiling)
    assert {tile[2:] for tile in tiles} == {(min(width, side), min(height, side))}
    assert all(value % 32 == 0 for tile in tiles for value in tile)
    for starts, length in (({tile.left for tile in tiles}, width), ({tile.top for tile in tiles}, height)):
        starts, tile = sorted(starts), min(side, length)
        assert starts[0] == 0 and starts[-1] + tile == length
        assert all(one + tile - other >= tiling.overlap for one, other in itertools.pairwise(starts))
    assert len(tiles) == len({tile.left for tile in tiles}) * len({tile.top for tile in tiles})


@pytest.mark.parametrize(
    ("side", "overlap", "message"),
    [
        (100, 0, "multiple of 32"),
        (256, 20, "multiple of 32"),
        (160, 0, "192..4096"),
        (4128, 0, "192..4096"),
        (256, 160, "0..128"),
    ],
)
def test_a_tiling_that_cannot_be_is_refused(side, overlap, message):
    with pytest.raises(ValueError, match=message):
        Tiling(side, overlap)


def test_a_blend_of_what_is_the_same_everywhere_is_that():
    tiles, x = tiles_of(*SIZE, Tiling(192, 64)), torch.randn(2, 3, 32, 40, dtype=torch.float64)
    assert torch.allclose(blended(tiles, x, lambda tile, part: 2 * part), (2 * x).float(), atol=1e-6)


def test_a_blend_passes_from_one_tile_to_the_next_without_a_step():
    tiles, x = tiles_of(320, 192, Tiling(192, 64)), torch.zeros(1, 1, 24, 40)
    row = blended(tiles, x, lambda tile, part: part + tile.left)[0, 0, 5]
    assert (row[:16] == 0).all() and (row[24:] == 128).all()
    steps = row.diff()
    assert (steps >= 0).all() and steps.max() < 128 / 4


@torch.inference_mode()
def test_a_tile_has_its_part_of_the_plan_as_if_it_were_a_picture(ar, dit, glyphs):
    plan = generate_prior(ar, "a red house", *SIZE, seed=3)
    whole = encode_conditions(dit, glyphs[0], *SIZE, batch=1, tokens=plan.tokens)
    part = cropped(plan, 128, 64, width=192, height=192)
    expected = encode_conditions(dit, glyphs[0], 192, 192, batch=1, tokens=part.tokens)
    conditions = of_tile(dit, whole, Tile(128, 64, 192, 192), SIZE[0])
    assert torch.equal(conditions.prior_embeds, expected.prior_embeds)
    assert all(map(torch.equal, conditions.image_rotary_emb, rope(dit, 192, 192)))


@pytest.mark.parametrize("step_cache", [0.0, 0.05])
def test_what_fits_into_one_tile_is_painted_as_without_tiles(ar, dit, glyphs, step_cache):
    plan = generate_prior(ar, "a red house", *SIZE, seed=3)
    settings = {"seeds": [7], "steps": 3, "approximations": Approximations(step_cache=step_cache)}
    whole = sample(dit, plan, *glyphs, **settings)
    assert torch.equal(sample(replace(dit, tiling=Tiling(320, 64)), plan, *glyphs, **settings), whole)
    tiled = sample(replace(dit, tiling=Tiling(192, 64)), plan, *glyphs, **settings)
    assert tiled.shape == whole.shape and not torch.allclose(tiled, whole, atol=1e-3)


def test_a_tile_that_shares_nothing_paints_its_own_plan_alone(ar, dit, glyphs):
    plan, apart = generate_prior(ar, "a red house", 384, 192, seed=3), replace(dit, tiling=Tiling(192, 0))
    changed = replace(plan, tokens=plan.tokens.clone())
    changed.tokens[:, :, 6:] = (changed.tokens[:, :, 6:] + 1) % dit.model.config.prior_vq_quantizer_codebook_size
    one, other = (sample(apart, of_both, *glyphs, seeds=[7], steps=2) for of_both in (plan, changed))
    assert torch.equal(other[..., :24], one[..., :24]) and not torch.equal(other[..., 24:], one[..., 24:])


def test_a_mask_keeps_what_it_hides_in_tiles_too(ar, dit, glyphs):
    plan = generate_prior(ar, "a red house", *SIZE, seed=3)
    start, mask = torch.randn(1, len(dit.space.mean), 32, 40), torch.zeros(1, 1, 32, 40)
    mask[..., 10:20, 15:30] = 1
    painted = sample(replace(dit, tiling=Tiling(192, 64)), plan, *glyphs, seeds=[7], steps=3, latents=start, mask=mask)
    kept = mask.expand_as(start) == 0
    assert torch.allclose(painted[kept], start[kept], atol=1e-4) and not torch.allclose(painted[~kept], start[~kept], atol=0.1)


def test_a_picture_larger_than_a_reference_may_be_is_read_in_tiles(ar):
    small = replace(ar, longest_edge=224)
    picture = pattern(320, 256, twist=2)
    tokens = prior_from_pictures(small, [picture], 320, 256).tokens[0]
    assert tokens.shape == (8, 10)
    corner = vision_tokens(ar, picture.crop((0, 0, 224, 224)))
    assert torch.equal(tokens[:3, :3], corner[:3, :3])
    far = vision_tokens(ar, picture.crop((96, 32, 320, 256)))
    assert torch.equal(tokens[-3:, -3:], far[-3:, -3:])
    assert torch.equal(prior_from_pictures(ar, [picture], 320, 256).tokens[0], vision_tokens(ar, picture))
