"""GLM-Image Tiles on a MODEL: the tiles of the library, through ComfyUI's samplers, with memory for one tile."""

from dataclasses import replace

import comfy.samplers
import pytest
import torch
from glm_image_pack.glmimage_core.diffusion import Grid, initial_noise
from glm_image_pack.glmimage_core.glm_image.denoise import Approximations, sample
from glm_image_pack.glmimage_core.glm_image.tiles import Tiling

GRID = Grid(36, 32)  # of 256 x 288 pixels
TILES = {"tile": 192, "overlap": 64}


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a - b).abs().max() < 1e-4


def in_tiles(library, conditioned, **settings) -> torch.Tensor:
    """What the library paints in tiles."""
    positive, negative, prior = conditioned
    dit = replace(library["dit"], tiling=Tiling(TILES["tile"], TILES["overlap"]))
    references = positive[0][1]["glm_image_references"]
    return sample(dit, prior, positive[0][0], negative[0][0], seeds=[3], cfg=1.5, references=references, **settings)


@pytest.mark.parametrize("edit", [False, True], ids=["text", "edit"])
def test_our_sampler_paints_the_librarys_tiles(library, model, conditioned, run, edit):
    positive, negative, _ = given = conditioned(edit)
    (tiled,) = run("GLMImageTiles", model=model, **TILES)
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 4, "cfg": 1.5}
    (out,) = run("GLMImageSampler", model=tiled, **settings)
    assert near(out["samples"], in_tiles(library, given, steps=4))
    (whole,) = run("GLMImageSampler", model=model, **settings)
    assert not near(out["samples"], whole["samples"])  # and the given MODEL paints whole pictures as before


def test_approximations_and_a_start_go_with_tiles(library, model, conditioned, run):
    positive, negative, _ = given = conditioned(False)
    latent = library["dit"].space.denormalise(initial_noise([9], 16, GRID))
    (tiled,) = run("GLMImageTiles", model=model, **TILES)
    settings = {"seed": 3, "steps": 6, "cfg": 1.5, "denoise": 0.6, "latent_image": {"samples": latent}}
    faster = {"cfg_start": 0.2, "cfg_end": 0.7, "step_cache": 0.5}
    (out,) = run("GLMImageSampler", model=tiled, positive=positive, negative=negative, **settings, **faster)
    expected = in_tiles(library, given, steps=6, denoise=0.6, latents=latent, approximations=Approximations(**faster))
    assert near(out["samples"], expected)


def test_ksampler_paints_the_librarys_tiles(library, model, conditioned, run):
    positive, negative, _ = given = conditioned(False)
    (sized,) = run("GLMImageModelSampling", model=model, width=192, height=192)
    (tiled,) = run("GLMImageTiles", model=sized, **TILES)
    settings = {"sampler_name": "euler", "scheduler": "simple", "latent_image": {"samples": torch.zeros(1, 16, *GRID)}}
    (out,) = run("KSampler", model=tiled, positive=positive, negative=negative, seed=3, steps=4, cfg=1.5, denoise=1.0, **settings)
    assert near(out["samples"], in_tiles(library, given, steps=4))


def test_memory_is_made_free_for_one_tile(model, conditioned, run, monkeypatch):
    positive, negative, _ = conditioned(False)
    asked, required = [], type(model.model).memory_required

    def watch(this, input_shape, **options):
        asked.append(list(input_shape[2:]))
        return required(this, input_shape, **options)

    monkeypatch.setattr(type(model.model), "memory_required", watch)
    before_sampling = comfy.samplers.CFGGuider.inner_sample
    monkeypatch.setattr(
        comfy.samplers.CFGGuider, "inner_sample", lambda *a, **o: (asked.append("loaded"), before_sampling(*a, **o))[1]
    )
    (tiled,) = run("GLMImageTiles", model=model, **TILES)
    run("GLMImageSampler", model=tiled, positive=positive, negative=negative, seed=3, steps=1, cfg=1.5)
    of_loading = asked[: asked.index("loaded")]
    assert of_loading and all(shape == [24, 24] for shape in of_loading)


def test_ksampler_plans_enlarged_latents_anew(library, model, conditioned, ar, vae, run):
    """As in a graph where KSampler goes on with the enlarged latents of another one."""
    positive, negative, prior = conditioned(False)
    larger = {"samples": library["dit"].space.denormalise(initial_noise([9], 16, Grid(52, 48)))}
    (new,) = run("GLMImagePriorFromLatent", ar=ar, vae=vae, samples=larger)
    sampling = {"model": model, "seed": 3, "steps": 3, "cfg": 1.5, "denoise": 0.5, "latent_image": larger}
    sampling |= {"sampler_name": "euler", "scheduler": "simple"}
    pictures = []
    for plan, readers in ((prior, {"ar": ar, "vae": vae}), (new, {})):
        sides = run("GLMImageApplyPrior", positive=positive, negative=negative, prior=plan, **readers)
        pictures.append(run("KSampler", positive=sides[0], negative=sides[1], **sampling)[0]["samples"])
    assert torch.equal(*pictures)
    with pytest.raises(ValueError, match="connect ar and vae to Apply Prior"):
        run("KSampler", positive=positive, negative=negative, **sampling)
