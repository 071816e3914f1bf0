"""Pixels and latents."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from glm_image_pack.glmimage_core.images import from_picture
from glm_image_pack.glmimage_core.placement.residency import HEADROOM
from glm_image_pack.glmimage_core.vae import decode, encode, tiles_by_size, vae_decode_bytes
from glm_image_pack.nodes.host import host
from glm_image_pack.nodes.vae import placed_vae

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


def test_auto_tiles_large_pictures(monkeypatch):
    cpu, card, apples = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))
    assert tiles_by_size("auto", 2080, 2048, device=cpu) and not tiles_by_size("auto", 2048, 2048, device=cpu)
    assert tiles_by_size("on", 512, 512, device=cpu) and not tiles_by_size("off", 4096, 4096, device=cpu)
    assert tiles_by_size("auto", 2048, 2048, device=apples) and not tiles_by_size("auto", 2048, 2016, device=apples)
    for version, tiled in ((91002, False), (90300, False), (90100, True), (None, True)):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        assert tiles_by_size("auto", 2048, 2048, device=card) == tiled


@pytest.mark.parametrize(("free", "tiled"), [(None, False), (10**9, False), (10**5, True)])
def test_auto_tiles_what_does_not_fit_and_asks_for_no_more_room_than_it_uses(vae, monkeypatch, free, tiled):
    asked = []
    monkeypatch.setattr(host, "free_bytes", lambda vae: free)
    monkeypatch.setattr(host, "placed", lambda model, working: asked.append(working) or nullcontext())
    with placed_vae(vae, "auto", vae_decode_bytes, width=1024, height=1024) as decided:
        assert decided == (None, tiled)
    with placed_vae(vae, "auto", vae_decode_bytes, width=4096, height=4096) as decided:
        assert decided
    tiles, whole = (vae_decode_bytes(vae.model.config, 4, side, side, on_cpu=True) for side in (512, 1024))
    assert asked == [tiles if tiled else whole, tiles]


def test_a_vae_on_the_cpu_knows_how_much_memory_is_free(vae, monkeypatch):
    whole = vae_decode_bytes(vae.model.config, 4, 1024, 1024, on_cpu=True)
    for free, tiled in ((whole + 2**20, False), (whole - 2**20, True)):
        memory = SimpleNamespace(available=free + HEADROOM)
        monkeypatch.setattr("psutil.virtual_memory", lambda memory=memory: memory)
        with placed_vae(vae, "auto", vae_decode_bytes, width=1024, height=1024) as (_, decided):
            assert decided == tiled
        with placed_vae(vae, "off", vae_decode_bytes, width=1024, height=1024) as (_, decided):
            assert not decided


def test_memory_that_will_not_suffice_is_told_before_a_stage_works(vae, monkeypatch, caplog):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=HEADROOM + 10**9))
    with host.placed(vae, 10**9):
        assert caplog.records == []
    with host.placed(vae, 2 * 10**9):
        assert "works with about 2.00 GB of memory and 1.00 GB are free" in caplog.text


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
