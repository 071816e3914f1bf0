"""Sizes by aspect and area."""

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.geometry import check_size, size_of
from glm_image_pack.nodes.size import ASPECTS, RECOMMENDED, GLMImageSize


@pytest.mark.parametrize("megapixels", [1.0, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("aspect", ASPECTS)
def test_a_bucket_is_close_to_what_was_asked_for(aspect, megapixels):
    width, height = GLMImageSize().size(aspect, megapixels)
    check_size(width, height)
    assert width * height == pytest.approx(megapixels * 1024 * 1024, rel=0.05)
    assert width / height == pytest.approx(ASPECTS[aspect], rel=0.04)


def test_usual_sizes():
    sizes = {aspect: GLMImageSize().size(aspect, 1.0) for aspect in ASPECTS}
    assert sizes["1:1"] == (1024, 1024)
    assert sizes["16:9"] == (1376, 768) and sizes["9:16"] == (768, 1376)
    assert GLMImageSize().size("1:1", 4.0) == (2048, 2048)
    least = GLMImageSize.INPUT_TYPES()["required"]["megapixels"][1]["min"]
    assert GLMImageSize().size("1:1", least) == (256, 256)  # nano's


def test_portrait_is_landscape_turned_around():
    for aspect in ASPECTS:
        width, height = aspect.split(":")
        assert GLMImageSize().size(f"{height}:{width}", 2.0) == GLMImageSize().size(aspect, 2.0)[::-1]


def test_like_an_image():
    assert GLMImageSize().size("like image", 1.0, torch.zeros(1, 600, 1200, 3)) == size_of(2.0, 1.0)
    with pytest.raises(ValueError, match="no image is connected"):
        GLMImageSize().size("like image", 1.0)
    with pytest.raises(ValueError, match="sides must lie within 192..4096"):
        GLMImageSize().size("like image", 4.0, torch.zeros(1, 10, 1000, 3))


def test_the_size_of_an_image_is_kept_in_whole_tokens_up_to_the_megapixels():
    image = torch.zeros(1, 1000, 1205, 3)
    assert GLMImageSize().size("image size", 1.15, image) == (1216, 992)
    assert GLMImageSize().size("image size", 1.0, image) == GLMImageSize().size("like image", 1.0, image) == (1120, 928)
    with pytest.raises(ValueError, match="'image size', but no image is connected"):
        GLMImageSize().size("image size", 1.0)
    with pytest.raises(ValueError, match="width 6016 is outside 192..4096"):
        GLMImageSize().size("image size", 4.0, torch.zeros(1, 200, 6000, 3))


def test_fit_takes_the_nearest_size_that_the_model_knows_and_says_so(caplog):
    assert GLMImageSize().size("image size", 1.0, torch.zeros(1, 512, 768, 3), fit=True) == (1248, 832)
    assert "768x512 is no size that this model knows; the nearest one is taken: 1248x832" in caplog.text
    caplog.clear()
    assert GLMImageSize().size("3:2", 1.0, fit=True) == GLMImageSize().size("3:2", 1.0)
    assert not caplog.records


@pytest.mark.parametrize("name", RECOMMENDED)
def test_a_recommended_size_is_itself_whatever_the_megapixels(name, caplog):
    width, height = GLMImageSize().size(name, 0.06)
    check_size(width, height)
    assert name == f"{width} x {height}" and f"{height} x {width}" in RECOMMENDED
    assert width * height / 1024**2 == pytest.approx(1.56, abs=0.04)
    assert not caplog.records


def test_a_size_below_the_trained_one_is_said(caplog):
    GLMImageSize().size("1:1", 1.0)
    GLMImageSize().size("4:3", 1.0)
    assert not caplog.records
    GLMImageSize().size("1:1", 0.5)
    assert "736x736 has fewer pixels than 1024x1024" in caplog.text
