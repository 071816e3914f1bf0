"""Sizes and grids: arithmetic, so tested against the numbers in the model's documentation and against transformers."""

import pytest
import torch
from glm_image_pack.glmimage_core.diffusion import Grid, dit_token_count
from glm_image_pack.glmimage_core.glm_image.geometry import check_size, preview_grid, prior_for_dit, prior_grid, reference_grid


@pytest.mark.parametrize(
    ("width", "height", "large", "preview", "total"),
    [
        (1024, 1024, (32, 32), (16, 16), 1280),
        (2048, 2048, (64, 64), (16, 16), 4352),
        (1152, 768, (24, 36), (13, 19), 864 + 247),
        (256, 4096, (128, 8), (64, 4), 1024 + 256),
    ],
)
def test_a_picture_is_planned_by_a_large_grid_and_a_preview_of_its_aspect(width, height, large, preview, total):
    grid = prior_grid(width, height)
    assert grid == large
    assert preview_grid(grid) == preview
    assert grid.tokens + preview_grid(grid).tokens == total


def test_the_preview_is_the_processors_for_every_allowed_size(folder):
    from transformers import GlmImageProcessor

    reference = getattr(GlmImageProcessor, "_get_target_shape", None)
    for rows in range(8, 129):
        for columns in range(8, 129):
            h, w = preview_grid(Grid(rows, columns))
            if reference:
                assert reference(None, rows * 32, columns * 32) == (rows, columns, h, w)
            assert h >= 1 and w >= 1


@pytest.mark.parametrize(("width", "height"), [(1000, 1024), (1024, 1001), (160, 1024), (1024, 4128)])
def test_a_size_the_model_cannot_paint_is_refused_with_the_number_in_the_message(width, height):
    bad = width if width != 1024 else height
    with pytest.raises(ValueError, match=str(bad)):
        check_size(width, height)


def test_the_message_for_a_side_between_two_grids_names_both():
    with pytest.raises(ValueError, match="992 or 1024"):
        check_size(1000, 1024)


def test_a_prior_token_covers_two_by_two_dit_tokens():
    tokens = torch.tensor([[[1, 2, 3], [4, 5, 6]]])
    expected = [1, 1, 2, 2, 3, 3] * 2 + [4, 4, 5, 5, 6, 6] * 2
    assert prior_for_dit(tokens).tolist() == [expected]
    assert prior_for_dit(tokens).shape[1] == dit_token_count(96, 64)


def _smart_resize():
    try:
        from transformers.models.glm_image.image_processing_pil_glm_image import smart_resize
    except ModuleNotFoundError:
        from transformers.models.glm_image.image_processing_glm_image import smart_resize
    return smart_resize


def test_a_reference_has_the_grid_that_transformers_gives_it_at_every_size_it_accepts():
    smart_resize = _smart_resize()
    sizes = [33, 47, 64, 100, 321, 512, 513, 719, 720, 1000, 1080, 1279, 1280, 1920, 2047, 2048, 3000, 4032, 4096]
    checked = 0
    for width in sizes:
        for height in sizes:
            if max(width, height) / min(width, height) > 4:
                continue
            rows, columns = (side // 16 for side in smart_resize(height, width))
            assert reference_grid(width, height, 512, 2048) == (rows, columns)
            checked += 1
    assert checked > 150


def test_a_fitted_reference_is_its_own_fit_so_both_models_see_one_size():
    for width in range(33, 4097, 61):
        for height in (33, 64, 200, 333, 512, 777, 1080, 2048, 4096):
            if max(width, height) / min(width, height) > 8:
                continue
            grid = reference_grid(width, height, 512, 2048)
            assert reference_grid(grid.width * 32, grid.height * 32, 512, 2048) == grid
            assert max(grid) <= 64 and min(grid) >= 8


def test_a_fitted_reference_keeps_the_aspect():
    for width, height in [(1920, 1080), (1280, 720), (4032, 3024), (3024, 4032), (1000, 333), (640, 81)]:
        grid = reference_grid(width, height, 512, 2048)
        assert grid.width / grid.height == pytest.approx(width / height, rel=0.07)
