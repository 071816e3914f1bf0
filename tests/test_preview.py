"""Colours for codebooks and latents."""

import subprocess
import sys

import pytest
import torch
from _pack import ROOT
from glm_image_pack.glmimage_core.diffusion import Grid
from glm_image_pack.glmimage_core.glm_image.token_preview import codebook_palette, token_picture
from glm_image_pack.glmimage_core.latent_preview import colour_chart, fit_latent_colours
from glm_image_pack.glmimage_core.vae import decode, encode


def test_rows_that_are_alike_have_colours_that_are_alike_and_the_palette_is_spread_out():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 64, generator=generator) * 5
    rows = centres.repeat_interleave(32, 0) + 0.1 * torch.randn(256, 64, generator=generator)
    state = torch.get_rng_state()
    palette = codebook_palette(rows).float()
    assert torch.equal(state, torch.get_rng_state())
    assert palette.shape == (256, 3) and torch.equal(palette, codebook_palette(rows).float())
    groups = palette.reshape(8, 32, 3)
    assert groups.std(dim=1).max() < 10 < groups.mean(dim=1).std(dim=0).min()
    assert palette.min() < 30 and palette.max() > 220


def test_the_palette_shows_the_directions_in_which_a_codebook_varies_most():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(512, 16, generator=generator) * torch.tensor([9.0, 7, 5] + [0.1] * 13)
    palette = codebook_palette(rows.to(torch.bfloat16)).float()
    for axis in range(3):
        correlations = [abs(torch.corrcoef(torch.stack([palette[:, colour], rows[:, axis]]))[0, 1]) for colour in range(3)]
        assert max(correlations) > 0.9


def test_a_codebook_of_equal_rows_has_a_palette():
    assert codebook_palette(torch.ones(16, 8)).shape == (16, 3)


def test_the_grid_being_filled_is_drawn():
    palette = torch.arange(12, dtype=torch.uint8).reshape(4, 3) * 20
    grids = [Grid(1, 2), Grid(2, 2)]
    first = token_picture(palette, torch.tensor([[1]]), grids)
    assert first.size == (16, 8)
    assert first.getpixel((0, 0)) == (60, 80, 100) and first.getpixel((8, 0)) == (32, 32, 32)
    second = token_picture(palette, torch.tensor([[1, 1, 3]]), grids)
    assert second.size == (16, 16) and second.getpixel((0, 0)) == (180, 200, 220)
    assert token_picture(palette, torch.tensor([[1, 1]]), grids).size == (16, 8)
    whole = token_picture(palette, torch.tensor([[1, 1, 3, 2, 1, 0]]), grids)
    assert [whole.getpixel((x, y))[0] for y in (0, 8) for x in (0, 8)] == [180, 120, 60, 0]


def test_fitted_colours_guess_what_the_vae_decodes(vae):
    latents = encode(vae, colour_chart())
    before = {name: parameter.clone() for name, parameter in vae.model.named_parameters()}
    factors, bias = fit_latent_colours(vae)
    assert all(torch.equal(parameter, before[name]) for name, parameter in vae.model.named_parameters())
    assert factors.shape == (16, 3) and bias.shape == (3,)
    truth = torch.nn.functional.avg_pool2d(decode(vae, latents).movedim(-1, 1) * 2 - 1, 8).movedim(1, -1)
    guess = vae.space.normalise(latents).movedim(1, -1) @ factors + bias
    unexplained = (guess - truth).pow(2).mean() / (truth - truth.mean(dim=(0, 1, 2))).pow(2).mean()
    assert unexplained < 0.8  # a random VAE is far from linear
    raw = latents.movedim(1, -1) @ factors + bias  # had the latents not been normalised
    assert (raw - truth).pow(2).mean() > (guess - truth).pow(2).mean()


@pytest.mark.slow
def test_the_script_that_fits_them(folder, tmp_path):
    picture = ROOT / "workflows" / "input" / "glm-image-scene.png"
    command = [sys.executable, str(ROOT / "scripts" / "fit_latent_colours.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    factors = [line.split() for line in done.stdout.splitlines() if line.startswith("    ")]
    assert [len(row) for row in factors] == [3] * 16, done.stderr
    explained = float(done.stdout.rsplit("explains ", 1)[1].split("%")[0])
    assert 20 < explained <= 100
    assert not (tmp_path / "latent-colours.png").exists()
    subprocess.run([*command, str(picture)], check=True, cwd=tmp_path)
    assert (tmp_path / "latent-colours.png").is_file()
