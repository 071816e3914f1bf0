"""Pixels and latents."""

import pytest
import torch
from glm_image_pack.glmimage_core.pixels import from_picture
from glm_image_pack.glmimage_core.vae import decode, encode, needs_tiling

from pictures import pattern


def test_latents_are_the_mode_in_the_vaes_own_space(vae):
    image = torch.cat([from_picture(pattern(64, 96, twist)) for twist in (3, 5)])
    latents = encode(vae, image)
    with torch.inference_mode():
        expected = vae.model.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode()
    assert latents.shape == (2, 16, 12, 8)
    assert torch.allclose(latents, expected, atol=1e-5)


def test_the_dits_space_is_normalised_by_mean_and_deviation(vae):
    latents = torch.randn(2, 16, 4, 4)
    there = vae.space.normalise(latents)
    mean, std = (torch.tensor(vae.model.config[f"latents_{name}"]) for name in ("mean", "std"))
    assert torch.allclose(there[0, 3], (latents[0, 3] - mean[3]) / std[3])
    assert torch.allclose(vae.space.denormalise(there), latents, atol=1e-5)


def test_a_picture_is_decoded_within_0_and_1(vae):
    image = decode(vae, torch.randn(2, 16, 8, 12) * 9)
    assert image.shape == (2, 64, 96, 3) and image.dtype == torch.float32
    assert image.min() == 0 and image.max() == 1


def test_tiles_blend_to_about_the_whole_picture(vae):
    # noise looks alike everywhere, so each tile's norms and attention see what the whole picture's see
    latents = torch.randn(1, 16, 96, 80, generator=torch.Generator().manual_seed(0))
    whole, tiled = decode(vae, latents), decode(vae, latents, tiled=True)
    assert whole.shape == tiled.shape
    assert not torch.equal(whole, tiled)
    assert (whole - tiled).abs().mean() < 0.02 < (whole - tiled.roll(8, dims=2)).abs().mean()
    assert torch.equal(whole, decode(vae, latents))  # tiling does not stick


def test_auto_tiles_large_pictures_and_those_that_do_not_fit():
    assert not needs_tiling("auto", 2048, 2048, 10, None)
    assert needs_tiling("auto", 2080, 2048, 10, None)
    assert needs_tiling("auto", 512, 512, 10, 9) and not needs_tiling("auto", 512, 512, 10, 10)
    assert needs_tiling("on", 512, 512, 1, None) and not needs_tiling("off", 4096, 4096, 10, 1)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.full((1, 16, 4, 4), float("nan")), "not finite"),
        (torch.zeros(1, 4, 4, 4), "another model family"),
        (torch.zeros(16, 4, 4), "another model family"),
    ],
)
def test_latents_that_are_no_picture_are_refused_and_never_drawn_black(vae, latents, message):
    with pytest.raises(ValueError, match=message):
        decode(vae, latents)


def test_an_image_of_odd_size_is_refused(vae):
    with pytest.raises(ValueError, match="100x64 .* multiples of 8"):
        encode(vae, torch.zeros(1, 64, 100, 3))
