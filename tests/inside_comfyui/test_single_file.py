"""Single files in ComfyUI's own folders: listed, loaded, painted with, copied and previewed."""

import logging
import shutil

import folder_paths
import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES

from single_files import write_file

FILES = {
    "GLMImageLoadAR": ("vision_language_encoder", "text_encoders", "text_encoders.glm_image."),
    "GLMImageLoadDiT": ("transformer", "diffusion_models", "model.diffusion_model."),
    "GLMImageLoadVAE": ("vae", "vae", "first_stage_model."),
}


@pytest.fixture(scope="module")
def files(folder):
    """The tiny checkpoint's components as single files below a folder of each kind, and not its folder."""
    models = folder.parents[1]
    for component, kind, prefix in FILES.values():
        write_file(folder / component, models / kind / "glm" / "one.safetensors", prefix)
        folder_paths.add_model_folder_path(kind, str(models / kind))
    yield models
    for _, kind, _ in FILES.values():
        folder_paths.folder_names_and_paths[kind][0].remove(str(models / kind))


@pytest.fixture
def model(files, run):
    return run("GLMImageLoadDiT", checkpoint="glm/one.safetensors", dtype="auto", quantization="none")[0]


def test_files_are_listed_after_folders_and_checked(files):
    for name in FILES:
        assert NODES[name].INPUT_TYPES()["required"]["checkpoint"][0][:-1][-2:] == ["GLM-Image", "glm/one.safetensors"]
        assert NODES[name].VALIDATE_INPUTS("glm/one.safetensors") is True
        assert "no file 'none.safetensors'" in NODES[name].VALIDATE_INPUTS("none.safetensors")


def test_a_dit_from_a_file_paints_what_the_folders_paints_and_so_does_its_copy(library, model, conditioned, run):
    positive, negative, prior = conditioned(False)
    (glyphs, _), (unwanted, _) = positive[0], negative[0]
    expected = sample(library["dit"], prior, glyphs, unwanted, seeds=[3], steps=2)
    reload, arguments = model.cached_patcher_init
    for patcher in (model, reload(*arguments, disable_dynamic=True)):
        settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
        (out,) = run("GLMImageSampler", model=patcher, **settings)
        assert (out["samples"] - expected).abs().max() < 1e-4


def test_ar_model_and_vae_from_files_do_what_the_folders_do(files, ar, vae, picture, run):
    from_files = (
        run("GLMImageLoadAR", checkpoint="glm/one.safetensors", dtype="auto", quantization="none")[0],
        run("GLMImageLoadVAE", checkpoint="glm/one.safetensors", dtype="auto")[0],
    )
    (expected,), (references,) = (
        run("GLMImageEncodeReference", ar=pair[0], vae=pair[1], image=picture)[0] for pair in ((ar, vae), from_files)
    )
    assert torch.equal(references.vision_tokens, expected.vision_tokens)
    assert (references.latents - expected.latents).abs().max() < 1e-4


def test_previews_take_the_vae_of_a_checkpoint_or_of_a_file_and_are_off_without(files, folder, model, caplog):
    latent_format = model.model.latent_format
    expected = latent_format.latent_rgb_factors
    assert expected is not None
    weights = next((folder / "vae").glob("*.safetensors"))
    shutil.move(weights, files / "away")
    try:
        del latent_format._colours
        assert torch.allclose(torch.tensor(latent_format.latent_rgb_factors), torch.tensor(expected), atol=1e-4)
        del latent_format._colours
        (files / "vae" / "glm" / "one.safetensors").rename(files / "vae" / "glm" / "one")
        with caplog.at_level(logging.WARNING):
            assert latent_format.latent_rgb_factors is None
        assert "no previews" in caplog.text and "no VAE" in caplog.text
    finally:
        shutil.move(files / "away", weights)
        (files / "vae" / "glm" / "one").rename(files / "vae" / "glm" / "one.safetensors")
