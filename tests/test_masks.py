"""Masks: which cells one touches, pixels put together with a soft edge, and holes filled from around."""

import pytest
import torch
from glm_image_pack.glmimage_core.diffusion import Grid
from glm_image_pack.glmimage_core.masks import as_batch, composite, dilated, filled, soft_inside, touched


def test_a_cell_is_touched_by_a_single_masked_pixel_and_masks_of_other_sizes_are_stretched():
    mask = torch.zeros(1, 64, 96)
    mask[0, 31, 64] = 1
    assert touched(mask, Grid(2, 3)).nonzero().tolist() == [[0, 0, 2]]
    small = torch.tensor([[0.0, 1.0]])  # the right half, whatever the size
    assert touched(small, Grid(2, 4))[0].tolist() == [[False, False, True, True]] * 2
    assert touched(small * 0.49, Grid(2, 4)).sum() == 0  # half grey is not masked


def test_neighbours_in_every_direction_belong_to_dilated_cells():
    cells = torch.zeros(1, 5, 6, dtype=torch.bool)
    cells[0, 2, 2] = True
    assert dilated(cells, 1).nonzero().tolist() == [[0, row, column] for row in (1, 2, 3) for column in (1, 2, 3)]
    assert torch.equal(dilated(cells, 0), cells)


@pytest.mark.parametrize("feather", [0, 1, 5])
def test_outside_the_mask_every_pixel_is_the_old_one_exactly(feather):
    old, new = torch.rand(1, 40, 50, 3), torch.rand(2, 40, 50, 3)
    mask = torch.zeros(1, 40, 50)
    mask[0, 10:30, :20] = 1
    out = composite(old, new, mask, feather)
    outside = mask[0] == 0
    assert out.shape == (2, 40, 50, 3) and all(torch.equal(picture[outside], old[0][outside]) for picture in out)
    assert torch.allclose(out[:, 16:24, :14], new[:, 16:24, :14])  # 6 pixels from every edge but the picture's own


def test_the_edge_lies_inside_and_rises_evenly_and_the_border_of_the_picture_has_none():
    masked = torch.ones(1, 9, 9, dtype=torch.bool)
    masked[:, :, 5:] = False
    assert soft_inside(masked, 3)[0, 4].tolist() == [1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0]


def test_what_was_painted_at_another_size_is_scaled_to_the_original():
    old, new = torch.zeros(1, 50, 70, 3), torch.ones(1, 32, 64, 3)
    out = composite(old, new, torch.tensor([[0.0, 1.0]]))
    assert out.shape == old.shape and out[:, :, :35].max() == 0 and out[:, :, 35:].min() > 0.99


def test_a_hole_takes_the_colours_around_it_and_nothing_else_changes():
    picture = torch.full((1, 33, 47, 3), 0.2)
    picture[:, :, 24:] = 0.8
    masked = torch.zeros(1, 33, 47, dtype=torch.bool)
    masked[:, 10:20, 2:12] = masked[:, 10:20, 34:44] = True
    damaged = torch.where(masked[..., None], 0.0, picture)
    assert (filled(damaged, masked) - picture).abs().max() < 0.12
    assert torch.equal(filled(damaged, masked)[~masked], picture[~masked])
    assert (filled(picture, torch.ones(1, 33, 47, dtype=torch.bool)) - 0.5).abs().max() < 1e-6


def test_room_beside_a_picture_takes_the_colour_next_to_it_and_not_the_mean_of_the_picture():
    picture = torch.zeros(1, 64, 160, 3)
    picture[:, :, :32] = 1
    masked = torch.zeros(1, 64, 160, dtype=torch.bool)
    masked[:, :, 64:] = True
    assert filled(torch.where(masked[..., None], 0.5, picture), masked)[:, :, 64:].max() == 0


@pytest.mark.parametrize("mask", [torch.zeros(4), torch.zeros(2, 3, 4, 4), torch.zeros(1, 0, 4)])
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(ValueError, match="a mask is a tensor"):
        as_batch(mask)


def test_bad_values_are_refused():
    picture, mask = torch.zeros(1, 8, 8, 3), torch.ones(1, 8, 8)
    with pytest.raises(ValueError, match="NaN"):
        as_batch(mask * torch.nan)
    with pytest.raises(ValueError, match="feather is -1"):
        composite(picture, picture, mask, -1)
    with pytest.raises(ValueError, match="2 old pictures, 3 new ones and 1 masks"):
        composite(picture.repeat(2, 1, 1, 1), picture.repeat(3, 1, 1, 1), mask)
