"""Checkpoints that other libraries quantized, as far as those libraries run on a CPU."""

import json
import shutil

import pytest
import torch
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.files import inspect as description
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.files.components import DIT
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.placement.residency import model_bytes
from glm_image_pack.glmimage_core.weights import external
from glm_image_pack.glmimage_core.weights.linear import quantization_of
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from safetensors.torch import save_file

from plans import plan


@pytest.fixture
def root(folder, tmp_path):
    """A copy of the tiny checkpoint, to put other components in."""
    return shutil.copytree(folder, tmp_path / "models" / "diffusers" / "GLM-Image")


def claim(component, method: str) -> None:
    """Have a config say that a library quantized its component."""
    config = json.loads((component / "config.json").read_text())
    (component / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))


def configuration(method: str, half: str):
    """What the libraries are asked to quantize with, and the class that does it."""
    import diffusers
    import transformers

    pytest.importorskip(external.LIBRARY_MODULES[method], reason=f"{method} is not installed")
    library = transformers if half == "ar" else diffusers
    if method == "bitsandbytes":
        return library.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    if method == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return library.TorchAoConfig(Int8WeightOnlyConfig())
    from sdnq import SDNQConfig

    return SDNQConfig(weights_dtype="int8", minimum_allowed_numel=1024)


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "sdnq"])
def test_an_ar_model_of_another_library_plans(folder, root, method):
    config = configuration(method, "ar")
    from transformers import GlmImageForConditionalGeneration

    name = "vision_language_encoder"
    model = GlmImageForConditionalGeneration.from_pretrained(folder / name, quantization_config=config, dtype=torch.bfloat16)
    shutil.rmtree(root / name)
    model.save_pretrained(root / name)
    report = description.check_checkpoint(root, name)
    assert list(report.quantized) == [method] and report.quantized[method].parameters > 50_000
    ar = checkpoints.load_ar(root)
    assert ar.quantized_by == method and ar.dtype == torch.bfloat16
    assert model_bytes(ar.model) < 0.9 * model_bytes(checkpoints.load_ar(folder, "bfloat16").model)
    assert generate_prior(ar, "a tree", 256, 256, seed=1).tokens.shape == (1, 8, 8)
    with pytest.raises(ValueError, match=f"stored as {method}; choose quantization none"):
        checkpoints.load_ar(root, "auto", quantization="int8")


@pytest.mark.parametrize("method", ["torchao", "sdnq"])
def test_a_dit_of_another_library_paints_nearly_the_same(folder, root, dit, method):
    config = configuration(method, "dit")
    from diffusers import GlmImageTransformer2DModel

    model = GlmImageTransformer2DModel.from_pretrained(
        folder / "transformer", quantization_config=config, torch_dtype=torch.float32
    )
    shutil.rmtree(root / "transformer")
    model.save_pretrained(root / "transformer", safe_serialization=True)
    assert list(description.check_checkpoint(root, DIT).quantized) == [method]
    paints_nearly_the_same(checkpoints.load_dit(root, "float32"), dit)


def paints_nearly_the_same(quantized, dit) -> None:
    glyphs = torch.randn(1, 5, dit.model.config.text_embed_dim, generator=torch.Generator().manual_seed(0))
    exact = sample(dit, plan(), glyphs, glyphs, seeds=[3], steps=2)
    near = sample(quantized, plan(), glyphs.to(quantized.dtype), glyphs.to(quantized.dtype), seeds=[3], steps=2)
    assert 0 < (near - exact).norm() < 0.1 * exact.norm()


def write_gguf(file, tensors: dict[str, torch.Tensor], kind: str = "Q8_0", prefix: str = "", config: str = "") -> None:
    """Write tensors as GGUF, in place of the safetensors in the folder: all in one kind, or the largest in 8 bits."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    for weights in file.parent.glob("*.safetensors"):
        weights.unlink()
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, "glm_image")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if config:
        writer.add_string("config", config)
    for key, tensor in tensors.items():
        in_kind = kind != "Q8_0" or (tensor.ndim == 2 and (".ff." in key or "embedding.weight" in key))
        stored = gguf.GGMLQuantizationType[kind if in_kind else "F32"]
        writer.add_tensor(prefix + key, gguf.quants.quantize(tensor.float().numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


WIDE = [("F16", ""), ("BF16", ""), ("F32", "model.diffusion_model."), ("Q8_0", "model.diffusion_model."), ("BF16", "x.")]


@pytest.mark.parametrize(("kind", "prefix"), WIDE)
def test_a_gguf_in_a_folder_loads_in_any_precision_and_under_any_prefix(root, dit, capsys, kind, prefix):
    write_gguf(root / "transformer" / "dit.gguf", dit.model.state_dict(), kind, prefix)
    assert main(["inspect", str(root)]) == 0
    same_as(checkpoints.load_dit(root, "float32"), dit, kind)


@pytest.mark.parametrize("models_folder", ["diffusion_models", "unet"])
@pytest.mark.parametrize(("kind", "prefix"), WIDE)
def test_a_lone_gguf_is_listed_and_loads(quiet_host, root, dit, capsys, models_folder, kind, prefix):
    quiet_host.models = root.parents[1]
    file = quiet_host.models / models_folder / "sub" / "dit.gguf"
    config = (root / "transformer" / "config.json").read_text()
    write_gguf(file, dit.model.state_dict(), kind, prefix, config)
    loader = NODES["GLMImageLoadDiT"]
    assert "sub/dit.gguf" in loader.names() and loader.VALIDATE_INPUTS("sub/dit.gguf") is True
    same_as(checkpoints.load_dit(loader.find("sub/dit.gguf"), "float32", roots=quiet_host.checkpoint_roots()), dit, kind)
    assert main(["inspect", str(file)]) == 0


def test_a_wide_gguf_is_quantized_and_takes_loras(root, dit):
    pytest.importorskip("comfy_kitchen")
    write_gguf(root / "transformer" / "dit.gguf", dit.model.state_dict(), "F32")
    assert quantization_of(checkpoints.load_dit(root, quantization="int8").model) == "int8"
    assert checkpoints.load_dit(root).quantized_by == ""


def test_a_gguf_of_other_sizes_is_refused_by_its_header(root, dit):
    wrong = dit.model.state_dict() | {"proj_out.weight": torch.zeros(32, 64)}
    write_gguf(root / "transformer" / "dit.gguf", wrong, "F16")
    with pytest.raises(ValueError, match=r"proj_out.weight is \[32, 64\] in the file"):
        description.check_checkpoint(root, DIT)


def same_as(loaded, dit, kind: str) -> None:
    """Weights and pictures of another precision."""
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor  # needs gguf

    tolerance = {"F32": 0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 2e-2}[kind]
    ours, theirs = loaded.model, dit.model
    for name, weight in theirs.named_parameters():
        stored = ours.get_parameter(name)
        plain = dequantize_gguf_tensor(stored) if hasattr(stored, "quant_type") else stored
        assert plain.shape == weight.shape and (plain.float() - weight).abs().max() <= tolerance * weight.abs().max(), name
    glyphs = torch.randn(1, 5, dit.model.config.text_embed_dim, generator=torch.Generator().manual_seed(0))
    exact, near = (sample(one, plan(), glyphs, glyphs, seeds=[3], steps=2) for one in (dit, loaded))
    assert (near - exact).norm() < 0.1 * exact.norm()


@pytest.fixture
def gguf_dit(root, dit):
    """The tiny checkpoint with its DiT as a GGUF file."""
    write_gguf(root / "transformer" / "dit.gguf", dit.model.state_dict())
    return root


def test_a_gguf_of_the_dit_paints_nearly_the_same(gguf_dit, dit, capsys):
    loaded = checkpoints.load_dit(gguf_dit, "float32")
    assert loaded.quantized_by == "gguf"
    paints_nearly_the_same(loaded, dit)
    assert checkpoints.load_dit(gguf_dit).dtype == torch.bfloat16
    assert main(["inspect", str(gguf_dit)]) == 0
    assert "gguf (81,920 in" in capsys.readouterr().out


def test_a_damaged_gguf_is_told(gguf_dit):
    file = gguf_dit / "transformer" / "dit.gguf"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="dit.gguf is truncated or corrupt"):
        description.check_checkpoint(gguf_dit, DIT)


def test_a_gguf_that_is_not_of_the_component_is_told_by_the_components_class(root):
    write_gguf(root / "vision_language_encoder" / "model.gguf", {"blk.0.attn_q.weight": torch.zeros(64, 64)})
    expected = r"vision_language_encoder does not hold a whole GlmImageForConditionalGeneration: \d+ tensors not found, such as"
    with pytest.raises(ValueError, match=expected):
        checkpoints.load_ar(root)


def test_a_lora_over_such_weights_is_refused(quiet_host, gguf_dit):
    quiet_host.models = gguf_dit.parents[1]
    (quiet_host.models / "loras").mkdir()
    save_file({"x": torch.zeros(1)}, quiet_host.models / "loras" / "a.safetensors")
    (model,) = NODES["GLMImageLoadDiT"]().load("GLM-Image", "auto", "none")
    with pytest.raises(ValueError, match="cannot be applied to weights that gguf quantized"):
        NODES["GLMImageLoadLoRA"]().load("a.safetensors", 1.0, 1.0, model)


@pytest.mark.parametrize("method", list(external.LIBRARY_MODULES))
def test_a_missing_library_is_named_before_anything_is_read(quiet_host, root, method, monkeypatch):
    monkeypatch.setitem(external.LIBRARY_MODULES, method, "no_such_module")
    claim(root / "transformer", method)
    quiet_host.models = root.parents[1]
    assert NODES["GLMImageLoadDiT"].VALIDATE_INPUTS("GLM-Image").endswith(f"pip install {method}")
    with pytest.raises(ImportError, match=f"quantized by {method}, which is missing"):
        checkpoints.load_dit(root)


def test_an_unknown_method_is_refused(root):
    claim(root / "vision_language_encoder", "magic")
    with pytest.raises(ValueError, match="quantized by 'magic', which is unknown here"):
        checkpoints.load_ar(root)


def test_a_dit_of_bitsandbytes_without_cuda_is_told_what_to_do_instead():
    external.check_library_device("bitsandbytes", "transformers", torch.device("cpu"))
    external.check_library_device("bitsandbytes", "diffusers", torch.device("cuda"))
    with pytest.raises(ValueError, match="the original checkpoint and quantization nf4"):
        external.check_library_device("bitsandbytes", "diffusers", torch.device("cpu"))
