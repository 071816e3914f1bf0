"""What ModelSave and VAESave write loads again with our loaders, whatever the sizes of the model."""

from dataclasses import replace

import comfy.model_detection as model_detection
import comfy.sd
import folder_paths
import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.files.components import NANO
from glm_image_pack.glmimage_core.glm_image.schedule import Shift
from glm_image_pack.glmimage_core.placement.compute import emulates
from glm_image_pack.glmimage_core.tiny.cogview3_base import CHECKPOINTS
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nodes as stock

BASE, PLUS = next(iter(CHECKPOINTS)), "CogView3-Plus-3B"
KINDS = {"ModelSave": "diffusion_models", "VAESave": "vae"}
LAYER = "transformer_blocks.0.attn1.to_v"
RUN = {"seed": 3, "steps": 2, "cfg": 1.5}


@pytest.fixture
def saved(tmp_path, run, monkeypatch, caplog):
    """saved("ModelSave", model=...): what our loader makes of the file, with no checkpoint beside it."""

    def save_and_load(name: str, **wire):
        monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
        node = stock.NODE_CLASS_MAPPINGS[name]()
        node.save(**wire, filename_prefix=f"{KINDS[name]}/one", prompt={"1": {}})
        (file,) = (tmp_path / KINDS[name]).iterdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([], set()))
        monkeypatch.setitem(folder_paths.folder_names_and_paths, KINDS[name], ([str(file.parent)], {".safetensors"}))
        caplog.clear()
        if name == "VAESave":
            (loaded,) = run("GLMImageLoadVAE", checkpoint=file.name, dtype="auto")
        else:
            (loaded,) = run("GLMImageLoadDiT", checkpoint=file.name, dtype="auto", quantization="none")
        assert not caplog.messages  # the libraries warn of settings that they do not know
        return loaded

    return save_and_load


@pytest.fixture
def lora(folder, library) -> str:
    """The name of a LoRA of one layer of the DiT."""
    layer = library["dit"].model.get_submodule(LAYER)
    generator = torch.Generator().manual_seed(0)
    halves = {"lora_A": (4, layer.in_features), "lora_B": (layer.out_features, 4)}
    tensors = {f"{LAYER}.{half}.weight": torch.randn(shape, generator=generator) for half, shape in halves.items()}
    save_file(tensors, folder.parents[1] / "loras" / "saved.safetensors")
    return "saved.safetensors"


def settings(config) -> dict:
    return {name: value for name, value in config.items() if not name.startswith("_")}


@pytest.mark.parametrize("checkpoint", ["GLM-Image", NANO])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dit_that_was_saved_is_the_same(folder, run, saved, checkpoint, dtype):
    (model,) = run("GLMImageLoadDiT", checkpoint=checkpoint, dtype=dtype, quantization="none")
    before, after = model.model.component, saved("ModelSave", model=model).model.component
    assert settings(after.model.config) == settings(before.model.config)
    auto = torch.float32 if emulates(torch.device("cpu"), before.model.dtype) else before.model.dtype
    assert (after.space, after.shift, after.model.dtype) == (before.space, before.shift, auto)
    weights = after.model.state_dict()
    assert weights.keys() == before.model.state_dict().keys()
    assert all(torch.equal(weight, weights[key]) for key, weight in before.model.state_dict().items())


def test_the_schedule_of_a_dit_that_was_saved_is_its_own(model, saved):
    model.model.component = replace(model.model.component, shift=Shift(0.5, 1.0, 300))
    assert saved("ModelSave", model=model).model.component.shift == Shift(0.5, 1.0, 300)


def test_a_lora_is_saved_with_the_weights(model, lora, conditioned, run, saved):
    (changed,) = run("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)
    positive, negative, _ = conditioned(False)
    plain, expected = (
        run("GLMImageSampler", model=wire, positive=positive, negative=negative, **RUN)[0]["samples"] for wire in (model, changed)
    )
    (out,) = run("GLMImageSampler", model=saved("ModelSave", model=changed), positive=positive, negative=negative, **RUN)
    assert (out["samples"] - expected).abs().max() < 1e-4 < 1e-2 < (expected - plain).abs().max()


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("quantization", ["int8", "fp8", "nf4"])
def test_a_quantized_dit_that_was_saved_paints_the_same(lora, conditioned, run, saved, quantization, with_lora):
    pytest.importorskip("comfy_kitchen")
    (model,) = run("GLMImageLoadDiT", checkpoint="GLM-Image", dtype="float32", quantization=quantization)
    if with_lora:
        (model,) = run("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)
    positive, negative, _ = conditioned(False)
    expected, out = (
        run("GLMImageSampler", model=wire, positive=positive, negative=negative, **RUN)[0]["samples"]
        for wire in (model, saved("ModelSave", model=model))
    )
    assert (out - expected).abs().max() < 1e-4


def test_weights_that_another_library_quantized_are_not_saved(model, saved):
    model.model.component = replace(model.model.component, quantized_by="gguf")
    with pytest.raises(ValueError, match="weights that gguf quantized cannot be saved; copy the file"):
        saved("ModelSave", model=model)


@pytest.mark.parametrize("checkpoint", ["GLM-Image", NANO])
def test_a_vae_that_was_saved_is_the_same(folder, run, saved, checkpoint):
    (vae,) = run("GLMImageLoadVAE", checkpoint=checkpoint, dtype="float32")
    before, after = vae.component, saved("VAESave", vae=vae).component
    assert settings(after.model.config) == settings(before.model.config)
    assert after.space == before.space
    weights = after.model.state_dict()
    assert weights.keys() == before.model.state_dict().keys()
    assert all(torch.equal(weight, weights[key]) for key, weight in before.model.state_dict().items())


@pytest.mark.parametrize("name", [PLUS, BASE])
def test_the_vae_of_a_cogview3_that_was_saved_loads_and_stays_its(cogview3, ar, picture, run, saved, name):
    vae = saved("VAESave", vae=cogview3[name][-1])
    assert vae.component.space == cogview3[name][-1].component.space
    with pytest.raises(ValueError, match="vae is not GLM-Image's"):
        run("GLMImageEncodeReference", ar=ar, vae=vae, image=picture)


def test_comfyuis_own_loaders_ask_no_list_that_could_be_added_to(folder, run, saved, library):
    """As docs/files.md says: the shapes of a DiT reach no entry of supported_models, and a VAE is built by its names alone."""
    (weights,) = (folder / "transformer").glob("*.safetensors")
    dit = load_file(weights)
    assert model_detection.detect_unet_config(dit, "") is None
    assert model_detection.convert_diffusers_mmdit(dict(dit), "") is None
    with pytest.raises(RuntimeError, match="Could not detect model type"):
        comfy.sd.load_diffusion_model(str(weights))
    with pytest.raises((RuntimeError, ValueError), match="size mismatch|must be divisible"):
        comfy.sd.VAE(sd=dict(library["vae"].model.state_dict()))


def test_the_config_is_written_whatever_comfyui_does_with_metadata(folder, run, saved, tmp_path, monkeypatch):
    """Its flag --disable-metadata."""
    from comfy.cli_args import args

    monkeypatch.setattr(args, "disable_metadata", True)
    (model,) = run("GLMImageLoadDiT", checkpoint=NANO, dtype="float32", quantization="none")
    saved("ModelSave", model=model)
    (file,) = (tmp_path / "diffusion_models").iterdir()
    with safe_open(file, framework="pt") as opened:
        assert not opened.metadata()
        assert "model.diffusion_model.config_json" in opened.keys()  # noqa: SIM118, not a dict
