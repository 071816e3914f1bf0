"""The VAE as a VAE: stock nodes give what the library gives."""

import pytest
import torch
from glm_image_pack.glmimage_core.vae import decode, encode


@pytest.fixture(scope="module")
def latents(library, picture) -> torch.Tensor:
    return encode(library["vae"], picture)


def test_the_stock_nodes_encode_and_decode_like_the_library(library, vae, picture, latents, run):
    (latent,) = run("VAEEncode", pixels=picture, vae=vae)
    assert torch.allclose(latent["samples"].float(), latents, atol=1e-5)
    (image,) = run("VAEDecode", samples={"samples": latents}, vae=vae)
    assert image.shape == (1, 128, 160, 3)
    assert torch.allclose(image.float(), decode(library["vae"], latents), atol=1e-5)


def test_our_nodes_encode_and_decode_like_the_library(library, vae, picture, latents, run):
    (latent,) = run("GLMImageVAEEncode", vae=vae, image=picture)
    assert torch.equal(latent["samples"], latents)
    for tiling in ("off", "on"):
        (image,) = run("GLMImageVAEDecode", vae=vae, samples=latent, tiling=tiling)
        assert torch.equal(image, decode(library["vae"], latents, tiled=tiling == "on"))


def test_a_batch_is_decoded_like_its_images(vae, latents, run):
    both = torch.cat([latents, latents * 0.5])
    (images,) = run("VAEDecode", samples={"samples": both}, vae=vae)
    (second,) = run("VAEDecode", samples={"samples": both[1:]}, vae=vae)
    assert images.shape[0] == 2 and torch.allclose(images[1:], second, atol=1e-5)


def test_the_stock_tiled_nodes_work(vae, picture, latents, run):
    (image,) = run("VAEDecodeTiled", samples={"samples": latents}, vae=vae, tile_size=128, overlap=32)
    assert image.shape == (1, 128, 160, 3) and torch.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
    (latent,) = run("VAEEncodeTiled", pixels=picture, vae=vae, tile_size=128, overlap=32)
    assert latent["samples"].shape == latents.shape and torch.isfinite(latent["samples"]).all()


def test_our_tiling_does_not_reach_the_stock_nodes(vae, latents, run):
    large = latents.repeat(1, 1, 6, 6)
    (before,) = run("VAEDecode", samples={"samples": large}, vae=vae)
    (tiled,) = run("GLMImageVAEDecode", vae=vae, samples={"samples": large}, tiling="on")
    (after,) = run("VAEDecode", samples={"samples": large}, vae=vae)
    assert torch.equal(before, after) and not torch.allclose(tiled, before.float(), atol=1e-2)


def test_a_picture_whose_sides_are_no_multiples_is_cropped_as_by_other_vaes(vae, picture, run):
    (latent,) = run("VAEEncode", pixels=picture[:, :125, :157], vae=vae)
    assert latent["samples"].shape == (1, 16, 15, 19)


def test_inpainting_latents_can_be_made(vae, picture, run):
    mask = torch.zeros(1, 128, 160)
    mask[:, :64] = 1
    (latent,) = run("VAEEncodeForInpaint", pixels=picture, vae=vae, mask=mask, grow_mask_by=6)
    assert latent["samples"].shape == (1, 16, 16, 20) and "noise_mask" in latent


def test_it_knows_how_much_memory_it_takes(vae):
    assert vae.memory_used_decode((1, 16, 128, 128), torch.bfloat16) > vae.memory_used_decode((1, 16, 64, 64), torch.bfloat16) > 0
    assert vae.memory_used_encode((1, 3, 1024, 1024), torch.bfloat16) > vae.memory_used_encode((1, 3, 512, 512), torch.bfloat16)
    assert vae.model_size() == sum(p.nbytes for p in vae.component.model.parameters()) if hasattr(vae, "model_size") else True


def test_a_vae_of_another_family_is_refused(ar, model, latents, picture, run):
    for wrong in (model, ar, object()):
        with pytest.raises(ValueError, match="connect Load GLM-Image VAE, Load CogView3-Plus or Load CogView3-Base"):
            run("GLMImageVAEDecode", vae=wrong, samples={"samples": latents}, tiling="auto")
        with pytest.raises(ValueError, match="vae is not GLM-Image's"):
            run("GLMImageEncodeReference", ar=ar, vae=wrong, image=picture)
