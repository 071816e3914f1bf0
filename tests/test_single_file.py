"""One component in one safetensors file: recognised by its header, loaded to the last bit, refused with a reason."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _pack import ROOT
from diffusers import AutoencoderKL
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.checkpoints.header import CONFIG_TENSOR, FileHeader, config_tensor
from glm_image_pack.glmimage_core.glm_image.ar_model import vision_tokens
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.files import identify
from glm_image_pack.glmimage_core.glm_image.files.components import AR, COMPONENTS, DIT, RELEASED_SPACE
from glm_image_pack.glmimage_core.glm_image.files.inspect import inspect_component, latent_space
from glm_image_pack.glmimage_core.glm_image.files.load import load_ar, load_dit, load_vae, load_vae_of, stored_component
from glm_image_pack.glmimage_core.glm_image.files.single_file import (
    _identified_kind,
    config_to_carry,
    find_file,
    inspect_file,
    list_files,
)
from glm_image_pack.glmimage_core.glm_image.schedule import Shift
from glm_image_pack.glmimage_core.tiny.glm_image import write_checkpoint
from glm_image_pack.glmimage_core.vae import decode, encode
from glm_image_pack.glmimage_core.weights.formats import Header
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from PIL import Image
from safetensors.torch import load_file, save_file

from pictures import pattern
from plans import plan
from single_files import write_file

LOADERS = {"vision_language_encoder": load_ar, "transformer": load_dit, "vae": load_vae}
SINGLE = {kind.folder: kind for kind in COMPONENTS.values() if kind.comfy_folder}
PREFIXES = {
    "vision_language_encoder": ["", "-model.", "text_encoders.glm_image.", "text_encoders.glm_image.-model."],
    "transformer": ["", "model.diffusion_model.", "diffusion_model."],
    "vae": ["", "vae.", "first_stage_model."],
}
RUNS = [(component, prefix) for component, prefixes in PREFIXES.items() for prefix in prefixes]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def stored(request, folder, tmp_path_factory):
    """A checkpoint folder in one precision, and that precision."""
    if request.param == torch.float32:
        return folder, request.param
    half = tmp_path_factory.mktemp("half") / "diffusers" / "GLM-Image"
    write_checkpoint(half, dtype=request.param)
    return half, request.param


def output(component) -> torch.Tensor:
    """Something that depends on every weight."""
    kind = type(component).__name__
    if kind == "ArModel":
        with torch.inference_mode():
            hidden = component.model.model.language_model(input_ids=torch.arange(8)[None]).last_hidden_state
            seen = vision_tokens(component, pattern(128, 128, 3))
            return torch.cat([component.model.lm_head(hidden).flatten(), seen.flatten()])
    if kind == "Vae":
        picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        return decode(component, encode(component, picture))
    glyphs = torch.randn(1, 4, component.model.config.text_embed_dim, generator=torch.Generator().manual_seed(0))
    return sample(component, plan(), glyphs, glyphs, seeds=[0], steps=1)


@pytest.mark.parametrize(("component", "prefix"), RUNS)
def test_a_file_gives_the_same_as_the_folder_to_the_last_bit(stored, tmp_path, component, prefix):
    folder, dtype = stored
    file = write_file(folder / component, tmp_path / "one.safetensors", prefix, dtype)
    load = LOADERS[component]
    expected, loaded = load(folder), load(file, roots=[folder.parent])
    assert loaded.model.dtype == dtype and not loaded.model.training
    assert loaded.model.state_dict().keys() == expected.model.state_dict().keys()
    assert all(torch.equal(value, expected.model.state_dict()[key]) for key, value in loaded.model.state_dict().items())
    for parameter in [*loaded.model.parameters(), *expected.model.parameters()]:
        parameter.data = parameter.data.clone()  # kernels round by where weights begin, and both files begin elsewhere
    assert torch.equal(output(loaded), output(expected))
    if component != "vision_language_encoder":
        assert loaded.space == expected.space


@pytest.mark.parametrize("component", LOADERS)
def test_weights_come_in_the_precision_asked_for(folder, tmp_path, component):
    file = write_file(folder / component, tmp_path / "one.safetensors")
    model = LOADERS[component](file, "bfloat16", roots=[folder.parent]).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("component", LOADERS)
def test_weights_stay_in_the_file_until_they_are_read(folder, tmp_path, component):
    """Two models of one file map the same pages, so a file is never held twice in memory."""
    file = write_file(folder / component, tmp_path / "one.safetensors")
    model = LOADERS[component](file, roots=[folder.parent]).model
    assert all(str(file) in _mapped_at(parameter.data_ptr()) for parameter in model.parameters() if parameter.numel() > 4096)


def _mapped_at(address: int) -> str:
    """The line of this process's memory map that an address is in."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("needs /proc/self/maps")
    for line in maps.read_text().splitlines():
        first, last = (int(bound, 16) for bound in line.split()[0].split("-"))
        if first <= address < last:
            return line
    raise AssertionError(hex(address))


@pytest.mark.parametrize(("component", "prefix"), [("transformer", "model.diffusion_model."), ("vae", "model."), ("vae", "")])
def test_a_config_may_be_a_tensor_beside_the_weights(folder, tmp_path, component, prefix):
    """As ModelSave and VAESave of ComfyUI write files; see tests/inside_comfyui/test_saving.py."""
    kept = LOADERS[component](folder)
    file, config = tmp_path / "one.safetensors", {prefix + CONFIG_TENSOR: config_tensor(config_to_carry(kept))}
    weights = load_file(write_file(folder / component, file, prefix, config=False))
    with pytest.raises(ValueError, match=r"its metadata has no config|needs its config.json"):
        LOADERS[component](file)
    save_file(weights | config, file)
    loaded = LOADERS[component](file)
    assert loaded.space == kept.space and torch.allclose(output(loaded), output(kept), atol=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.tensor([123], dtype=torch.uint8), "is no config"),
        (torch.tensor([255], dtype=torch.uint8), "is no config"),
        (torch.tensor([300.0]), "is no config"),
        (torch.tensor(list(b"[1]"), dtype=torch.uint8), "is no config but '\\[1\\]'"),
        (torch.zeros(2**20 + 1, dtype=torch.uint8), "is too long to be a config"),
        (config_tensor({"_class_name": "AutoencoderKL"}), "is of a AutoencoderKL"),
    ],
)
def test_a_broken_config_in_a_file_is_named(folder, tmp_path, content, message):
    file = write_file(folder / "transformer", tmp_path / "one.safetensors", "model.diffusion_model.")
    save_file(load_file(file) | {f"model.diffusion_model.{CONFIG_TENSOR}": content}, file)
    with pytest.raises(ValueError, match=message):
        stored_component(file, DIT)


def test_a_dit_in_a_file_may_state_its_schedule(folder, tmp_path):
    dit = replace(load_dit(folder), shift=Shift(0.5, 1.0, 300))
    file = write_file(folder / "transformer", tmp_path / "one.safetensors", config=False)
    save_file(load_file(file) | {CONFIG_TENSOR: config_tensor(config_to_carry(dit))}, file)
    assert load_dit(file, roots=[folder.parent]).shift == dit.shift
    wrong = config_to_carry(dit) | {"scheduler": {"base_shift": "high"}}
    save_file(load_file(file) | {CONFIG_TENSOR: config_tensor(wrong)}, file)
    with pytest.raises(ValueError, match=r"base_shift in .*one.safetensors is high"):
        stored_component(file, DIT)


def test_shapes_say_the_config_where_the_metadata_does_not():
    """At the released widths and a tenth of the depth, on the meta device."""
    from transformers import GlmImageConfig, GlmImageForConditionalGeneration

    released = {
        "transformer": {"num_layers": 3, "num_attention_heads": 32, "attention_head_dim": 128},
        "vae": {
            "block_out_channels": [128, 512, 1024, 1024],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 3,
            "latent_channels": 16,
            "mid_block_add_attention": False,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        "vision_language_encoder": {
            "text_config": {"num_hidden_layers": 4, "rope_parameters": AR.assumed_config["text_config"]["rope_parameters"]},
            "vision_config": {"depth": 4},
        },
    }
    with torch.device("meta"):
        models = {
            "transformer": DIT.model_class(**released["transformer"]),
            "vae": AutoencoderKL(**released["vae"]),
            "vision_language_encoder": GlmImageForConditionalGeneration(GlmImageConfig(**released["vision_language_encoder"])),
        }
    for component, model in models.items():
        headers = {name: Header(torch.bfloat16, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
        header = FileHeader(headers, {}, {}, {})
        part = identify.identify(Path("one.safetensors"), header)
        assert part.kind.folder == component
        built = part.kind.build(part.config, "the header")
        assert _config(built) == _config(model)


def _config(model) -> dict:
    """As it is written to a config.json."""
    return json.loads(model.config.to_json_string() if hasattr(model.config, "to_json_string") else model.to_json_string())


# Refused


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("vision_language_encoder", "model.language_model.layers.1.mlp.down_proj.weight"),
        ("transformer", "transformer_blocks.1.attn1.to_k.weight"),
        ("transformer", "proj_out.weight"),
        ("vae", "decoder.conv_out.bias"),
    ],
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(folder, tmp_path, component, name):
    load = LOADERS[component]
    with pytest.raises(ValueError, match=rf"missing.safetensors.*{name}"):
        load(write_file(folder / component, tmp_path / "missing.safetensors", **{name: None}), roots=[folder.parent])
    tensors = load_file(next((folder / component).glob("*.safetensors")))
    half = tensors[name][: len(tensors[name]) // 2].contiguous()
    with pytest.raises(ValueError, match=r"half.safetensors does not match its weights: .*of another shape|half.*3 tensors"):
        load(write_file(folder / component, tmp_path / "half.safetensors", **{name: half}), roots=[folder.parent])


def test_a_tensor_that_the_model_does_not_have_is_refused_since_it_may_be_a_scale(folder, tmp_path):
    scale = {"transformer_blocks.0.attn1.to_q.weight_scale": torch.ones(1)}
    file = write_file(folder / "transformer", tmp_path / "fp8.safetensors", "diffusion_model.", **scale)
    with pytest.raises(ValueError, match="holds 1 tensors that .* such as transformer_blocks.0.attn1.to_q.weight_scale: .*quant"):
        load_dit(file, roots=[folder.parent])


def test_another_models_file_says_what_it_looks_like(tmp_path):
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, tmp_path / "flux.safetensors")
    with pytest.raises(ValueError, match="no part of GLM-Image: .*prior_token_embedding.*named like .*double_blocks.0.img_attn"):
        load_dit(tmp_path / "flux.safetensors")


def test_a_vae_of_the_same_class_but_another_model_is_refused(folder, tmp_path):
    file = write_file(folder / "vae", tmp_path / "vae.safetensors", config=False)
    with pytest.raises(
        ValueError, match="another model's VAE: its blocks are 16/32/32/32 wide and GLM-Image's 128/512/1024/1024"
    ):
        load_vae(file, roots=[folder.parent])


@pytest.mark.parametrize(("component", "other"), [("transformer", "vae"), ("vae", "vision_language_encoder")])
def test_another_component_says_which_it_is(folder, tmp_path, component, other):
    file = write_file(folder / component, tmp_path / "one.safetensors")
    title, wanted = COMPONENTS[component].title, COMPONENTS[other].title
    with pytest.raises(ValueError, match=f"holds GLM-Image's {title}, and here its {wanted} is wanted"):
        LOADERS[other](file, roots=[folder.parent])


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.999])
def test_a_truncated_file_is_named_before_it_is_loaded(folder, tmp_path, keep):
    file = write_file(folder / "transformer", tmp_path / "cut.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"cut.safetensors is truncated or corrupt"):
        load_dit(file, roots=[folder.parent])


def test_heads_of_another_width_than_released_need_a_config(folder, tmp_path):
    file = write_file(folder / "transformer", tmp_path / "bare.safetensors", config=False)
    with pytest.raises(ValueError, match="bare.safetensors does not match its weights.*needs its config.json there"):
        load_dit(file, roots=[folder.parent])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "has no config .as JSON."),
        ("[1]", "has no config .as JSON."),
        ('{"_class_name": "FluxTransformer2DModel"}', "is of a FluxTransformer2DModel"),
    ],
)
def test_a_config_in_the_metadata_that_is_nonsense_or_another_models_is_named(folder, tmp_path, config, message):
    tensors = load_file(next((folder / "transformer").glob("*.safetensors")))
    save_file(tensors, tmp_path / "one.safetensors", metadata={"config": config})
    with pytest.raises(ValueError, match=message):
        load_dit(tmp_path / "one.safetensors")


# What a file lacks


def test_the_processor_lies_beside_the_file_or_in_any_checkpoint_even_an_incomplete_one(folder, tmp_path):
    file = write_file(folder / "vision_language_encoder", tmp_path / "text_encoders" / "ar.safetensors")
    root = tmp_path / "diffusers"
    with pytest.raises(FileNotFoundError) as error:
        load_ar(file, roots=[root])
    for part in ("tokenizer.json", "preprocessor_config.json", str(file.parent / "processor"), str(root / "GLM-Image")):
        assert part in str(error.value)
    for place in (root / "some" / "part", file.parent):
        shutil.copytree(folder / "processor", place / "processor")
        assert load_ar(file, roots=[root]).tokenizer.chat_template
        shutil.rmtree(place / "processor")


def test_the_processor_of_another_model_or_of_another_size_of_this_one_is_passed_over(folder, tmp_path):
    file = write_file(folder / "vision_language_encoder", tmp_path / "text_encoders" / "ar.safetensors")
    root = tmp_path / "diffusers"
    shutil.copytree(folder / "processor", root / "qwen" / "processor")
    for config in (root / "qwen" / "processor").glob("*config.json"):
        config.write_text(config.read_text().replace("GlmImage", "Qwen2VL"))
    other = Path(shutil.copytree(folder, root / "other"))
    config = json.loads((other / "vision_language_encoder" / "config.json").read_text())
    config["text_config"]["vocab_size"] += 1
    (other / "vision_language_encoder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match="holds weights only"):
        stored_component(file, AR, [root])


def test_a_processor_that_is_not_whole_is_named(folder, tmp_path):
    file = write_file(folder / "vision_language_encoder", tmp_path / "ar.safetensors")
    shutil.copytree(folder / "processor", tmp_path / "processor")
    (tmp_path / "processor" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing"):
        stored_component(file, AR, [])


def test_space_and_shift_come_from_a_checkpoint_else_they_are_the_released_ones(folder, tmp_path):
    file = write_file(folder / "transformer", tmp_path / "dit.safetensors")
    alone = load_dit(file)
    assert (alone.space, alone.shift) == (RELEASED_SPACE, (0.25, 0.75, 256))
    beside = Path(shutil.copytree(folder, tmp_path / "diffusers" / "GLM-Image"))
    scheduler = beside / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.75", "0.5"))
    dit = load_dit(file, roots=[tmp_path / "diffusers"])
    assert dit.space == latent_space(folder) != RELEASED_SPACE
    assert dit.shift == (0.25, 0.5, 256)


def test_a_space_of_another_number_of_channels_says_what_to_add(folder, tmp_path):
    projection = {"image_projector.proj.weight": torch.zeros(64, 32)}
    (tmp_path / "dit").mkdir()
    config = json.loads((folder / "transformer" / "config.json").read_text()) | {"in_channels": 8}
    (tmp_path / "dit" / "config.json").write_text(json.dumps(config))
    shutil.copy(next((folder / "transformer").glob("*.safetensors")), tmp_path / "dit")
    file = write_file(tmp_path / "dit", tmp_path / "dit.safetensors", **projection)
    with pytest.raises(ValueError, match="works on 8 latent channels.* has 16; add latents_mean and latents_std"):
        stored_component(file, DIT, [])


def test_a_vae_of_the_latent_space_is_found_in_a_checkpoint_or_a_file(folder, tmp_path):
    space = latent_space(folder)
    assert load_vae_of(space, "float32", roots=[folder.parent], file_roots=[]).space == space
    with pytest.raises(FileNotFoundError):
        load_vae_of(space, "float32", roots=[], file_roots=[tmp_path])
    write_file(folder / "vae", tmp_path / "vae.safetensors")
    assert load_vae_of(space, "float32", roots=[], file_roots=[tmp_path]).space == space
    with pytest.raises(FileNotFoundError, match="no VAE"):
        load_vae_of(RELEASED_SPACE, "float32", roots=[folder.parent], file_roots=[tmp_path])


def test_vaes_that_cannot_be_used_are_passed_over_when_one_of_a_space_is_looked_for(folder, tmp_path):
    """A checkpoint whose VAE has no statistics, and a file of four channels, come before the one that fits."""
    without = Path(shutil.copytree(folder, tmp_path / "diffusers" / "a"))
    config = without / "vae" / "config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps({key: value for key, value in stated.items() if not key.startswith("latents_")}))
    (tmp_path / "four").mkdir()
    four = AutoencoderKL(**{key: stated[key] for key in stated if not key.startswith(("_", "latents_"))} | {"latent_channels": 4})
    four.save_pretrained(tmp_path / "four")
    write_file(tmp_path / "four", tmp_path / "vae" / "a.safetensors")
    write_file(folder / "vae", tmp_path / "vae" / "b.safetensors")
    space = latent_space(folder)
    found = load_vae_of(space, "float32", roots=[tmp_path / "diffusers"], file_roots=[tmp_path / "vae"])
    assert found.space == space


# Names


def test_files_are_found_by_their_path_below_a_root_and_other_models_are_left_out(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for file in (first / "glm" / "dit.safetensors", second / "dit.safetensors", second / "glm" / "dit.safetensors"):
        write_file(folder / "transformer", file)
    write_file(folder / "vae", first / "vae.safetensors")
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, first / "flux.safetensors")
    (first / "broken.safetensors").write_bytes(b"{")
    (first / "dit.ckpt").write_bytes(b"pickle")
    (first / "nowhere.safetensors").symlink_to(tmp_path / "nowhere")
    found = list_files(DIT, [first, second, tmp_path / "missing"])
    assert found == {"dit.safetensors": second / "dit.safetensors", "glm/dit.safetensors": first / "glm" / "dit.safetensors"}
    assert find_file("flux.safetensors", DIT, [first]) == first / "flux.safetensors"
    for name in ("none.safetensors", "../first/flux.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"there: dit.safetensors, glm/dit.safetensors"):
            find_file(name, DIT, [second])


def test_a_header_is_read_again_when_its_file_has_changed(folder, tmp_path):
    file = write_file(folder / "transformer", tmp_path / "one.safetensors")
    assert list(list_files(DIT, [tmp_path])) == ["one.safetensors"]
    reads = _identified_kind.cache_info().misses
    assert list(list_files(DIT, [tmp_path])) == ["one.safetensors"]
    assert _identified_kind.cache_info().misses == reads
    write_file(folder / "vae", file)
    assert not list_files(DIT, [tmp_path])


# The nodes and the command line


@pytest.fixture
def files(folder, tmp_path) -> Path:
    """A models folder with single files, and of the checkpoint only what they lack and the glyph encoder."""
    models = tmp_path / "models"
    for kind in SINGLE.values():
        write_file(folder / kind.folder, models / kind.comfy_folder / "glm" / f"{kind.comfy_folder}.safetensors")
    rest = Path(shutil.copytree(folder, models / "diffusers" / "GLM-Image"))
    for component in SINGLE:
        next((rest / component).glob("*.safetensors")).unlink()
    return models


NODE_FILES = {
    "GLMImageLoadAR": "glm/text_encoders.safetensors",
    "GLMImageLoadDiT": "glm/diffusion_models.safetensors",
    "GLMImageLoadVAE": "glm/vae.safetensors",
}


def test_loaders_list_files_after_folders_and_check_them(quiet_host, files):
    quiet_host.models = files
    for name, file in NODE_FILES.items():
        node = NODES[name]
        assert node.INPUT_TYPES()["required"]["checkpoint"][0] == ["GLM-Image", file, "nano (built in)"]
        assert node.VALIDATE_INPUTS(file) is True
        assert "no file 'other.safetensors'" in node.VALIDATE_INPUTS("other.safetensors")
        (files / node.COMPONENT.comfy_folder / "bad.safetensors").touch()
        assert "truncated" in node.VALIDATE_INPUTS("bad.safetensors")
    assert NODES["GLMImageLoadGlyphEncoder"].INPUT_TYPES()["required"]["checkpoint"][0] == ["GLM-Image", "nano (built in)"]


def test_a_workflow_that_names_files_paints_the_picture_of_the_folder(files, models, tmp_path):
    workflow = json.loads((ROOT / "workflows" / "api" / "separate_loaders.json").read_text("utf-8"))
    for node in workflow.values():
        small = {"width": 256, "height": 256, "steps": 1}
        if node["class_type"] == "GLMImageGeneratePrior":
            node["inputs"] |= {"width": 256, "height": 256}  # in place of links from GLM-Image Size
        node["inputs"] |= {key: value for key, value in small.items() if not isinstance(node["inputs"].get(key, []), list)}
    pictures = []
    for name, folder in (("folder", models), ("files", files)):
        for node in workflow.values():
            if name == "files" and node["class_type"] in NODE_FILES:
                node["inputs"]["checkpoint"] = NODE_FILES[node["class_type"]]
        (tmp_path / name).mkdir()
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(workflow))
        assert main(["render", str(file), "--models", str(folder), "--output", str(tmp_path / name), "--device", "cpu"]) == 0
        (picture,) = (tmp_path / name).rglob("*.png")
        pictures.append(torch.tensor(list(Image.open(picture).convert("RGB").tobytes())))
    assert (pictures[0].int() - pictures[1].int()).abs().max() <= 1


def test_inspect_describes_a_file(folder, tmp_path, capsys):
    file = write_file(folder / "transformer", tmp_path / "dit.safetensors", "diffusion_model.", torch.bfloat16)
    assert main(["inspect", str(file)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    parameters = inspect_component(folder, DIT).parameters
    assert line.startswith("transformer ") and f"{parameters:,}" in line and line.endswith("bfloat16")
    write_file(folder / "transformer", file, **{"transformer_blocks.1.attn1.to_k.weight": None})
    assert main(["inspect", str(file)]) == 1
    assert "problem: " in capsys.readouterr().out
    save_file({"x": torch.zeros(1)}, file)
    assert main(["inspect", str(file)]) == 2
    assert "no part of GLM-Image" in capsys.readouterr().err


# Quantized


@pytest.mark.parametrize("component", ["vision_language_encoder", "transformer"])
@pytest.mark.parametrize("quantization", ["int8", "fp8", "nf4"])
def test_a_quantized_single_file_is_the_quantized_folder(folder, tmp_path, component, quantization):
    """Stored so, and quantized as it is loaded."""
    pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
    from glm_image_pack.glmimage_core.glm_image.files.quantize import quantize_checkpoint
    from glm_image_pack.glmimage_core.weights.formats import inner_tensors

    quantize_checkpoint(folder, tmp_path / "quantized", {component: quantization})
    stored = load_file(next((tmp_path / "quantized" / component).glob("*.safetensors")))
    prefix = "model.diffusion_model." if component == "transformer" else ""
    config = (folder / component / "config.json").read_text("utf-8")
    file = tmp_path / "one.safetensors"
    save_file({prefix + key: tensor for key, tensor in stored.items()}, file, {"config": config})
    assert inspect_file(file)[1].quantized.keys() == {quantization}

    load = LOADERS[component]
    plain = write_file(folder / component, tmp_path / "plain.safetensors")
    expected = load(tmp_path / "quantized").model
    for model in (
        load(file, roots=[folder.parent]).model,
        load(plain, "auto", roots=[folder.parent], quantization=quantization).model,
    ):
        for (name, theirs), (_, ours) in zip(expected.named_parameters(), model.named_parameters(), strict=True):
            for one, other in zip(inner_tensors(theirs), inner_tensors(ours), strict=True):
                assert one.dtype == other.dtype and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (one, other))), name


def test_a_model_of_other_sizes_is_told_what_it_needs(folder, tmp_path, capsys):
    for component in ("vision_language_encoder", "transformer"):
        file = write_file(folder / component, tmp_path / f"{component}.safetensors", config=False)
        assert main(["inspect", str(file)]) == 1
        assert "its metadata has no config" in capsys.readouterr().out


DEEP = "[" * 100_000
BYSTANDERS = {
    "a mark of floats": lambda t: t.update({"zz.comfy_quant": torch.ones(3)}) or {},
    "a mark that is nested too deep": lambda t: t.update({"zz.comfy_quant": torch.tensor(list(DEEP.encode())).byte()}) or {},
    "a mark without its weight": lambda t: (
        t.update({"zz.comfy_quant": torch.tensor(list(b'{"format": "nf4"}')).byte(), "zz": torch.ones(1)}) or {}
    ),
    "a config that is nested too deep": lambda t: {"config": DEEP},
    "architectures that are no list": lambda t: {"config": '{"architectures": 5}'},
    "a mean that is no list": lambda t: {"config": '{"latents_mean": 5, "latents_std": 5, "block_out_channels": [1]}'},
    "layers that are nested too deep": lambda t: {"_quantization_metadata": DEEP},
}


@pytest.mark.parametrize("component", ["transformer", "vae"])
@pytest.mark.parametrize("fault", BYSTANDERS)
def test_a_bystander_is_left_out_and_the_others_are_listed(folder, tmp_path, component, fault):
    """Of a foreign model, and like one of ours."""
    kind = COMPONENTS[component]
    write_file(folder / component, tmp_path / "good.safetensors")
    for name, tensors in (("foreign", {"x": torch.ones(2)}), ("alike", load_file(tmp_path / "good.safetensors"))):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata=BYSTANDERS[fault](tensors) or None)
    listed = list_files(kind, [tmp_path])
    assert "good.safetensors" in listed and "foreign.safetensors" not in listed
    for file in tmp_path.iterdir():
        with suppress(ValueError):  # nothing else
            inspect_file(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(folder, tmp_path):
    write_file(folder / "vae", tmp_path / "good.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert list(list_files(COMPONENTS["vae"], [tmp_path])) == ["good.safetensors"]
