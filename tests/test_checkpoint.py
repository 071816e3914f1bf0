"""Finding, describing and refusing checkpoint folders."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _pack import ROOT
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.checkpoints import report
from glm_image_pack.glmimage_core.glm_image.files import components as folders
from glm_image_pack.glmimage_core.glm_image.files import inspect as description
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.files.components import VAE
from glm_image_pack.glmimage_core.tiny.glm_image import write_checkpoint
from glm_image_pack.glmimage_core.weights.linear import parameter_bytes
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS
from safetensors.torch import load_file, save_file

LOADERS = {
    "vision_language_encoder": checkpoints.load_ar,
    "text_encoder": checkpoints.load_glyph_encoder,
    "transformer": checkpoints.load_dit,
    "vae": checkpoints.load_vae,
}


@pytest.fixture
def broken(folder, tmp_path) -> Path:
    """A copy of the tiny checkpoint to break."""
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def weights_of(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def test_checkpoints_are_found_by_their_path_below_a_root(tmp_path, folder):
    for name in ("GLM-Image", "nested/deeper/copy"):
        (tmp_path / "a" / name).mkdir(parents=True)
        shutil.copy(folder / "model_index.json", tmp_path / "a" / name)
    (tmp_path / "a" / "other").mkdir()
    (tmp_path / "a" / "other" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "a" / "damaged").mkdir()
    (tmp_path / "a" / "damaged" / "model_index.json").write_text("{")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "linked").symlink_to(folder)
    (tmp_path / "b" / "up").symlink_to(tmp_path)  # leads back to where it is
    found = folders.list_checkpoints([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])
    assert list(found) == ["GLM-Image", "linked", "nested/deeper/copy"]
    assert found["linked"] == tmp_path / "b" / "linked"


def test_a_checkpoint_not_found_says_where_it_looked_and_what_a_folder_holds(models):
    with pytest.raises(FileNotFoundError) as error:
        folders.find_checkpoint("nothing", [models / "diffusers", Path("elsewhere")])
    for part in (str(models / "diffusers"), "elsewhere", "GLM-Image", "model_index.json", "vision_language_encoder"):
        assert part in str(error.value)


def test_another_pipelines_folder_says_so(tmp_path):
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(FileNotFoundError, match="does not name a GlmImagePipeline"):
        folders.find_checkpoint("flux", [tmp_path])
    with pytest.raises(ValueError, match="does not name a GlmImagePipeline"):
        checkpoints.load_vae(tmp_path / "flux")


@pytest.mark.parametrize("component", LOADERS)
def test_a_missing_component_is_named(broken, component):
    shutil.rmtree(broken / component)
    with pytest.raises(FileNotFoundError, match=f"{component}.config.json is missing"):
        LOADERS[component](broken)


@pytest.mark.parametrize("component", LOADERS)
def test_missing_weights_are_named(broken, component):
    weights_of(broken / component).unlink()
    with pytest.raises(FileNotFoundError, match=f"{component} is missing its weights"):
        LOADERS[component](broken)


@pytest.mark.parametrize("component", LOADERS)
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.999])
def test_a_truncated_file_is_named_before_it_is_loaded(broken, component, keep):
    file = weights_of(broken / component)
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(ValueError, match=rf"{file.name} is truncated or corrupt"):
        LOADERS[component](broken)


@pytest.mark.parametrize("component", LOADERS)
def test_a_corrupt_header_is_named(broken, component):
    file = weights_of(broken / component)
    content = bytearray(file.read_bytes())
    content[20:60] = b"\xff" * 40
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name} is truncated or corrupt"):
        LOADERS[component](broken)


@pytest.mark.parametrize("component", LOADERS)
def test_a_config_of_another_shape_does_not_match(broken, component):
    file = broken / component / "config.json"
    config = json.loads(file.read_text())
    part = config.get("text_config", config)
    key = {"text_encoder": "d_ff", "vae": "latent_channels", "transformer": "text_embed_dim"}.get(component, "intermediate_size")
    part[key] *= 2
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not match its weights"):
        LOADERS[component](broken)


@pytest.mark.parametrize("component", LOADERS)
def test_a_tensor_that_is_not_there_does_not_match(broken, component):
    file = weights_of(broken / component)
    tensors = load_file(file)
    removed = sorted(key for key in tensors if tensors[key].ndim == 2)[-1]
    del tensors[removed]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 tensors not found") as error:
        LOADERS[component](broken)
    assert removed in str(error.value)


def test_a_tensor_that_an_older_release_named_otherwise_is_left_to_the_library(broken):
    file = weights_of(broken / "vae")
    tensors = load_file(file)
    for side in ("encoder", "decoder"):  # as diffusers saved the VAE's attention until 0.18; its loader still renames it
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
            for part in ("weight", "bias"):
                name = f"{side}.mid_block.attentions.0"
                tensors[f"{name}.{old}.{part}"] = tensors.pop(f"{name}.{new}.{part}")
    save_file(tensors, file, metadata={"format": "pt"})
    assert description.inspect_component(broken, VAE).problems == []
    assert torch.equal(
        checkpoints.load_vae(broken).model.encoder.mid_block.attentions[0].to_q.weight,
        tensors["encoder.mid_block.attentions.0.query.weight"],
    )


def test_a_tensor_of_a_name_that_no_library_knows_is_never_left_random(broken):
    file = weights_of(broken / "transformer")
    tensors = load_file(file)
    tensors["something.else"] = tensors.pop("proj_out.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 tensors not found, such as proj_out.weight"):
        checkpoints.load_dit(broken)


@pytest.mark.parametrize("file", ["transformer/config.json", "vae/config.json", "processor/tokenizer_config.json"])
def test_a_damaged_config_is_named_and_the_rest_is_still_described(broken, file):
    (broken / file).write_text("{")
    reports = description.inspect_checkpoint(broken)
    problems = [problem for report in reports for problem in report.problems]
    assert len(reports) == 6 and len(problems) == 1 and file in str(problems[0]) and "damaged" in str(problems[0])


def test_settings_that_no_loader_could_use_are_problems_too(broken):
    """What `inspect` calls sound is what the loaders take."""
    config = broken / "vae" / "config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps({key: value for key, value in stated.items() if not key.startswith("latents_")}))
    (broken / "scheduler" / "scheduler_config.json").write_text("{")
    for _ in range(2):  # reports are kept; problems do not add up
        problems = {report.name: list(map(str, report.problems)) for report in description.inspect_checkpoint(broken)}
        (vae,), (dit,) = problems.pop("vae"), problems.pop("transformer")
        assert "no latents_mean and latents_std" in vae and "scheduler_config.json is not JSON" in dit
        assert not any(problems.values())


@pytest.mark.parametrize(
    ("component", "change", "message"),
    [
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "is of a FluxTransformer2DModel, not of a GlmImage"),
        ("text_encoder", {"architectures": ["UMT5EncoderModel"]}, "is of a UMT5EncoderModel, not of a T5EncoderModel"),
        ("transformer", {"num_layers": "many"}, "describes no GlmImageTransformer2DModel"),
        ("text_encoder", {"d_model": "wide"}, "describes no T5EncoderModel|does not match"),
    ],
)
def test_a_config_that_is_another_models_or_nonsense_is_named(broken, component, change, message):
    file = broken / component / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        LOADERS[component](broken)


@pytest.mark.parametrize(
    ("stored", "auto"),
    [(torch.float8_e4m3fn, torch.bfloat16), (torch.float8_e5m2, torch.bfloat16), (torch.float64, torch.float32)],
)
def test_a_precision_that_no_model_computes_in_is_widened_by_auto(broken, capsys, stored, auto):
    file = weights_of(broken / "transformer")
    save_file({key: t.to(stored) for key, t in load_file(file).items()}, file, metadata={"format": "pt"})
    assert main(["inspect", str(broken)]) == 0
    assert str(stored).removeprefix("torch.") in capsys.readouterr().out
    model = checkpoints.load_dit(broken).model
    assert model.dtype == auto
    expected = load_file(file)["proj_out.weight"].to(auto)
    assert torch.equal(model.proj_out.weight, expected)


@pytest.mark.parametrize("stored", [torch.int16, torch.bool, torch.uint8])
def test_a_weight_that_is_stored_as_no_weight_can_be_is_named(broken, capsys, stored):
    file = weights_of(broken / "transformer")
    save_file(load_file(file) | {"proj_out.weight": load_file(file)["proj_out.weight"].to(stored)}, file)
    name = str(stored).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"has proj_out.weight as \[.*\] {name}, which no weight can be"):
        checkpoints.load_dit(broken)
    assert main(["inspect", str(broken)]) == 1 and "which no weight can be" in capsys.readouterr().out


def test_the_shift_is_the_checkpoints_own(broken):
    file = broken / "scheduler" / "scheduler_config.json"
    assert checkpoints.load_dit(broken).shift == (0.25, 0.75, 256)
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"max_shift": 0.5}))
    assert checkpoints.load_dit(broken).shift == (0.25, 0.5, 256)
    file.write_text(json.dumps(config | {"time_shift_type": "exponential"}))
    with pytest.raises(ValueError, match="exponential"):
        checkpoints.load_dit(broken)


def test_a_missing_shard_is_named(broken):
    folder = broken / "transformer"
    tensors = load_file(weights_of(folder))
    names = ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"]
    weights_of(folder).unlink()
    halves = [dict(list(tensors.items())[i::2]) for i in (0, 1)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, half in zip(names, halves, strict=True) for key in half}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoints.load_dit(broken).model.config.num_layers == 2
    (folder / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=names[1]):
        checkpoints.load_dit(broken)


@pytest.mark.parametrize(("loader", "side"), [(checkpoints.load_ar, "processor"), (checkpoints.load_glyph_encoder, "tokenizer")])
def test_a_missing_tokenizer_is_named(broken, loader, side):
    shutil.rmtree(broken / side)
    with pytest.raises(FileNotFoundError, match=f"{side}.tokenizer_config.json is missing"):
        loader(broken)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("preprocessor_config.json", "{", "preprocessor_config.json is not JSON"),
        ("chat_template.jinja", None, "has no chat template"),
    ],
)
def test_a_processor_that_is_not_whole_is_named(broken, file, content, message):
    (broken / "processor" / file).unlink()
    if content is not None:
        (broken / "processor" / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        checkpoints.load_ar(broken)


def test_a_vae_without_statistics_is_not_glm_images(broken):
    file = broken / "vae" / "config.json"
    config = json.loads(file.read_text())
    del config["latents_mean"]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="latents_mean"):
        checkpoints.load_dit(broken)


@pytest.mark.parametrize("component", LOADERS)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16", "float32"])
def test_weights_come_in_the_precision_asked_for(folder, component, dtype):
    model = LOADERS[component](folder, dtype).model
    assert model.dtype == (torch.float32 if dtype == "auto" else getattr(torch, dtype))
    assert not model.training


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_weights_that_main_memory_has_no_room_for_are_told_before_they_are_read(folder, monkeypatch, caplog, quantization):
    if quantization != "none":
        pytest.importorskip("comfy_kitchen")
    needed = parameter_bytes(checkpoints.load_dit(folder).model, quantization, 4)
    for free, told in ((sum(needed.values()), False), (sum(needed.values()) - 1, True)):
        caplog.clear()
        monkeypatch.setattr(checkpoints, "free_device_bytes", lambda device, free=free: free)
        checkpoints.load_dit(folder, quantization=quantization)
        assert ["the weights of transformer take" in text for text in caplog.messages] == [True] * told


def test_auto_is_the_stored_precision_where_the_device_computes_in_it_or_float32_would_take_much_memory(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "half", dtype=torch.bfloat16)

    def dtypes(emulated: bool, free: int) -> set[torch.dtype]:
        monkeypatch.setattr(report, "emulates", lambda device, dtype: emulated)
        monkeypatch.setattr(report, "free_device_bytes", lambda device: free)
        loaders = checkpoints.load_ar, checkpoints.load_dit, checkpoints.load_glyph_encoder, checkpoints.load_vae
        return {load(tmp_path / "half").model.dtype for load in loaders}

    assert dtypes(emulated=False, free=10**12) == dtypes(emulated=True, free=0) == {torch.bfloat16}
    assert dtypes(emulated=True, free=10**12) == {torch.float32}
    assert checkpoints.load_dit(tmp_path / "half", "bfloat16").model.dtype == torch.bfloat16
    assert description.inspect_component(tmp_path / "half", VAE).stored_dtype == torch.bfloat16


def test_one_codebook_is_recognised_in_another_precision_and_another_one_is_not(folder, tmp_path):
    write_checkpoint(tmp_path / "half", dtype=torch.bfloat16)
    write_checkpoint(tmp_path / "other", seed=1)
    codebooks = [checkpoints.load_ar(path).codebook for path in (folder, tmp_path / "half", tmp_path / "other")]
    assert codebooks[0] == codebooks[1] != codebooks[2]
    beside = [checkpoints.load_dit(path).codebook for path in (folder, tmp_path / "half", tmp_path / "other")]
    assert beside == codebooks
    shutil.rmtree(tmp_path / "other" / "vision_language_encoder")
    assert checkpoints.load_dit(tmp_path / "other").codebook == ""


def test_a_description_counts_parameters_and_bytes(folder):
    reports = {report.name: report for report in description.inspect_checkpoint(folder)}
    model = checkpoints.load_dit(folder).model
    assert reports["transformer"].parameters == sum(p.numel() for p in model.parameters())
    assert reports["transformer"].disk_bytes == weights_of(folder / "transformer").stat().st_size
    assert not any(report.problems for report in reports.values())


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({"transformers": "5.0.0", "diffusers": "0.40.0"}, "needs transformers 5.1 or newer, not 5.0.0"),
        ({"transformers": "5.1.0", "diffusers": "0.36.1"}, "needs diffusers 0.37 or newer, not 0.36.1"),
        ({"transformers": "5.1.0"}, "needs diffusers 0.37 or newer, which is missing: pip install"),
        ({}, "needs transformers 5.1 or newer, which is missing: pip install"),
    ],
)
def test_a_library_too_old_or_missing_says_what_to_install(folder, tmp_path, monkeypatch, installed, message):
    for name, version in installed.items():
        about = tmp_path / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # nothing else is installed
    with pytest.raises(ImportError, match=message):
        checkpoints.load_vae(folder)


def test_the_pack_imports_quickly_without_transformers_diffusers_or_cuda():
    """In a fresh interpreter in which transformers and diffusers cannot be imported, the nodes are all there."""
    program = (
        "import sys, runpy\n"
        "sys.modules['transformers'] = sys.modules['diffusers'] = None\n"
        f"pack = runpy.run_path({str(ROOT / '__main__.py')!r})['load_pack']('pack')\n"
        "import torch\n"
        "for node in pack.NODE_CLASS_MAPPINGS.values(): node.INPUT_TYPES()\n"
        "print(len(pack.NODE_CLASS_MAPPINGS), torch.cuda.is_initialized(), 'socket' in dir(sys.modules.get('requests')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.stdout.split() == [str(len(NODE_CLASS_MAPPINGS)), "False", "False"], done.stderr
