"""Checkpoints written with quantized weights: what they hold, how they load, and what an interruption leaves behind."""

import json
import shutil

import pytest
import torch
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.glm_image.files import components as folders
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.files import quantize as quantized_checkpoint
from glm_image_pack.glmimage_core.glm_image.files.components import AR, DIT
from glm_image_pack.glmimage_core.glm_image.files.inspect import check_checkpoint, inspect_checkpoint, inspect_component
from glm_image_pack.glmimage_core.placement.residency import model_bytes
from glm_image_pack.glmimage_core.weights import linear as quantizations
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
BOTH = {"vision_language_encoder": "int8", "transformer": "nf4"}


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    """The tiny checkpoint with the AR model in int8 and the DiT in nf4."""
    out = tmp_path_factory.mktemp("quantized") / "out"
    quantized_checkpoint.quantize_checkpoint(folder, out, BOTH)
    return out


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copied")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(quantized_checkpoint, "SHARD_BYTES", 100_000)


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_it_loads_as_what_was_quantized_while_loading(folder, written):
    assert equal(checkpoints.load_ar(written).model, checkpoints.load_ar(folder, "auto", quantization="int8").model)
    assert equal(
        checkpoints.load_dit(written, "bfloat16").model, checkpoints.load_dit(folder, "bfloat16", quantization="nf4").model
    )
    assert equal(checkpoints.load_vae(written).model, checkpoints.load_vae(folder).model)
    assert equal(checkpoints.load_glyph_encoder(written).model, checkpoints.load_glyph_encoder(folder).model)


def test_everything_else_comes_along_and_nothing_unfinished_stays(folder, written):
    def others(root):
        files = (file.relative_to(root) for file in root.rglob("*") if file.is_file())
        return {file for file in files if file.parts[0] not in BOTH}

    assert others(written) == others(folder)
    assert all((written / file).read_bytes() == (folder / file).read_bytes() for file in others(folder))
    assert not list(written.rglob("*.partial"))
    assert (written / "transformer" / "config.json").stat().st_ino != (folder / "transformer" / "config.json").stat().st_ino


def test_its_report_counts_what_is_quantized(folder, written):
    plain, small = ({report.name: report for report in inspect_checkpoint(root)} for root in (folder, written))
    assert [report.problems for report in small.values()] == [[]] * len(small)
    for name, form in BOTH.items():
        assert small[name].parameters == plain[name].parameters
        assert list(small[name].quantized) == [form] and small[name].stored_dtype == torch.float32
        assert small[name].weight_bytes(torch.float32) < small[name].disk_bytes < 0.8 * plain[name].disk_bytes


def test_its_report_counts_each_half_of_the_ar_model(written):
    report = inspect_component(written, AR)
    sizes = {half: AR.part_of(report, half).weight_bytes(torch.float32) for half in ("language", "vision")}
    assert sum(sizes.values()) == report.weight_bytes(torch.float32)
    for half, model in checkpoints.load_ar(written).halves.items():
        buffers = sum(buffer.nbytes for buffer in model.buffers())
        assert sizes[half] == model_bytes(model) - buffers


def test_many_shards_hold_the_same(folder, tmp_path, written, small_shards):
    quantized_checkpoint.quantize_checkpoint(folder, tmp_path / "out", BOTH)
    assert len(list((tmp_path / "out" / "transformer").glob("*.safetensors"))) > 3
    assert equal(checkpoints.load_dit(tmp_path / "out").model, checkpoints.load_dit(written).model)


def test_an_interrupted_run_leaves_no_checkpoint_and_goes_on_where_it_stopped(folder, tmp_path, written, small_shards):
    class Stop(Exception):
        pass

    def stop_late(done, total, preview=None):
        if done > total // 2:
            raise Stop

    out = tmp_path / "out"
    with pytest.raises(Stop):
        quantized_checkpoint.quantize_checkpoint(folder, out, BOTH, stop_late)
    finished = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert finished and not folders.is_checkpoint(out)
    with pytest.raises(ValueError, match="unfinished work of another command"):
        quantized_checkpoint.quantize_checkpoint(folder, out, {"transformer": "nf4"})
    quantized_checkpoint.quantize_checkpoint(folder, out, BOTH)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert equal(checkpoints.load_ar(out).model, checkpoints.load_ar(written).model)
    assert not (out / "quantize.json").exists()


def test_what_cannot_be_done_is_told_before_anything_is_written(folder, written, tmp_path, monkeypatch):
    def refused(error, source, out, formats, match):
        with pytest.raises(error, match=match):
            quantized_checkpoint.quantize_checkpoint(source, out, formats)

    refused(ValueError, folder, folder / "small", BOTH, "lies inside the checkpoint")
    refused(ValueError, written, tmp_path / "twice", BOTH, "quantized already, as int8; start from the original")
    refused(ValueError, folder, tmp_path / "none", {"transformer": "none"}, "nothing to quantize")
    refused(ValueError, folder, written, BOTH, "there already and not empty")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "transformer" / "config.json").unlink()
    refused(FileNotFoundError, broken, tmp_path / "x", BOTH, "config.json is missing")
    full = shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000)
    monkeypatch.setattr(quantized_checkpoint.shutil, "disk_usage", lambda path: full)
    refused(OSError, folder, tmp_path / "full", BOTH, "more, and its disk has 1.0 kB free")
    for name in ("twice", "none", "x"):
        assert not (tmp_path / name).exists()
    assert not list((tmp_path / "full").rglob("*.safetensors"))


def rewrite(folder, change) -> None:
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)


TO_Q, FF = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.2"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(f"{TO_Q}.weight_scale"), "weight_scale should be .* missing"),
        (lambda t: t.update({f"{FF}.weight": torch.zeros(64, 64).byte()}), "should be .* for nf4"),
        (lambda t: t.pop(f"{FF}.comfy_quant"), "uint8, which no weight can be"),
        (lambda t: t.update({"proj_out.comfy_quant": t[f"{FF}.comfy_quant"].clone()}), "proj_out.weight should be .* for nf4"),
        (
            lambda t: t.update({"norm_out.comfy_quant": t[f"{FF}.comfy_quant"].clone()}),
            "norm_out as nf4, which is no linear layer",
        ),
        (lambda t: t.update({f"{FF}.comfy_quant": torch.tensor(list(b'{"format": "x"}')).byte()}), "quantized as 'x'"),
        (lambda t: t.update({f"{FF}.comfy_quant": torch.zeros(3).byte()}), "cannot be read"),
    ],
)
def test_a_damaged_one_is_told_before_weights_are_read(copied, change, match):
    rewrite(copied / "transformer", change)
    with pytest.raises(ValueError, match=match):
        check_checkpoint(copied, DIT)


def test_a_truncated_shard_is_told(copied):
    (file,) = (copied / "transformer").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        check_checkpoint(copied, DIT)


def test_what_is_stored_stays_and_another_format_is_refused(written):
    assert quantizations.quantization_of(checkpoints.load_dit(written, "auto", quantization="nf4").model) == "nf4"
    with pytest.raises(ValueError, match="stored as nf4; choose quantization none, which keeps it"):
        checkpoints.load_dit(written, "auto", quantization="int8")


def test_the_files_take_comfyuis_names(written):
    (file,) = (written / "vision_language_encoder").glob("*.safetensors")
    layer = "model.language_model.layers.0.mlp.down_proj"
    with safe_open(file, "pt") as opened:
        assert opened.get_tensor(f"{layer}.weight").dtype == torch.int8
        assert opened.get_tensor(f"{layer}.weight_scale").dtype == torch.float32
        assert json.loads(bytes(opened.get_tensor(f"{layer}.comfy_quant").tolist())) == {"format": "int8_tensorwise"}


def test_the_command_writes_and_inspect_describes_it(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["quantize", str(folder), out, "--ar", "nf4", "--dit", "fp8"]) == 0
    assert capsys.readouterr().out.strip() == out
    assert main(["inspect", out]) == 0
    shown = capsys.readouterr().out
    assert "nf4 (98,304 in" in shown and "fp8 (" in shown
    assert main(["quantize", out, str(tmp_path / "again"), "--ar", "int8"]) == 2
    assert "quantized already" in capsys.readouterr().err
    assert main(["quantize", str(folder), str(tmp_path / "again")]) == 2


ROTATED = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}


def with_marks(folder, out, mark):
    """The checkpoint with a DiT of int8 weights that were rotated, as ComfyUI publishes them, and a mark beside each."""
    from comfy_kitchen.tensor import QuantizedTensor

    root, dit = shutil.copytree(folder, out), checkpoints.load_dit(folder).model
    tensors, options = dit.state_dict(), {"per_channel": True, "convrot": True, "convrot_groupsize": 16}
    for name, layer in quantizations.quantizable(dit, "int8").items():
        weight = QuantizedTensor.from_float(layer.weight.detach(), "TensorWiseINT8Layout", **options)
        tensors |= weight.state_dict(f"{name}.weight")
        tensors[f"{name}.comfy_quant"] = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
    for file in (root / "transformer").glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, root / "transformer" / "diffusion_pytorch_model.safetensors")
    return root


@pytest.mark.parametrize("below", [False, True], ids=["", "params"])
def test_rotated_weights_are_read_as_rotated(folder, dit, tmp_path, below):
    """Without undoing the rotation a weight is noise."""
    mark = {"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": 16}} if below else ROTATED
    loaded = checkpoints.load_dit(with_marks(folder, tmp_path / "rotated", mark)).model
    layer, exact = loaded.transformer_blocks[0].ff.net[2], dit.model.transformer_blocks[0].ff.net[2]
    assert (layer.weight.dequantize() - exact.weight).norm() < 0.02 * exact.weight.norm()
    x = torch.randn(5, exact.in_features, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = exact(x)
        assert (layer(x) - expected).norm() < 0.03 * expected.norm()
    changed = layer.requantized(2 * exact.weight.detach())  # as a LoRA does
    assert (changed.dequantize() - 2 * exact.weight).norm() < 0.02 * 2 * exact.weight.norm()


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (ROTATED | {"twisted": 3}, "quantized with 'twisted', which this pack does not understand"),
        ({"format": "int8_tensorwise", "params": {"group_size": 16}}, "quantized with 'group_size'"),
        ({"format": "float8_e4m3fn", "convrot": True}, "'float8_e4m3fn' and rotated in groups of 256"),
        (ROTATED | {"convrot_groupsize": "16"}, "rotated in groups of '16'"),
        ({"format": "int8_tensorwise", "full_precision_matrix_mult": True}, "multiplied in full precision"),
        ({"format": "convrot_w4a4"}, "'convrot_w4a4', which is not one of int8_tensorwise"),
        (["int8_tensorwise"], "cannot be read"),
        ({"format": "int8_tensorwise", "params": []}, "cannot be read"),
    ],
)
def test_a_mark_that_is_not_understood_in_all_is_refused_by_name(folder, tmp_path, mark, message):
    root = with_marks(folder, tmp_path / "rotated", mark)
    with pytest.raises(ValueError, match=message):
        checkpoints.load_dit(root)
    assert any(message in str(problem) for problem in inspect_component(root, DIT).problems)


def test_a_rotation_that_does_not_divide_a_weight_is_refused(folder, tmp_path):
    root = with_marks(folder, tmp_path / "rotated", ROTATED | {"convrot_groupsize": 17})
    with pytest.raises(ValueError, match="columns cannot have been rotated in groups of 17"):
        checkpoints.load_dit(root)


def metadata_of(layers, **more):
    entries = {"format_version": "1.0", "layers": {layer: {"format": "float8_e4m3fn"} for layer in layers}} | more
    return {"_quantization_metadata": json.dumps(entries)}


def with_metadata(tensors, layers):
    for layer in layers:
        del tensors[f"{layer}.comfy_quant"]
    return metadata_of(layers)


def with_scales_of_inputs(tensors, layers):
    tensors.update({f"{layer}.input_scale": torch.tensor(1.0) for layer in layers})


def with_bfloat16_scales(tensors, layers):
    tensors.update({f"{layer}.weight_scale": tensors[f"{layer}.weight_scale"].bfloat16().reshape(1) for layer in layers})


def with_older_names(tensors, layers):
    for layer in layers:
        del tensors[f"{layer}.comfy_quant"]
        tensors |= {f"{layer}.scale_weight": tensors.pop(f"{layer}.weight_scale"), f"{layer}.scale_input": torch.tensor(1.0)}
    tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)


def spelled(folder, out, spell):
    """The checkpoint with a DiT in fp8, as others spell it."""
    quantized_checkpoint.quantize_checkpoint(folder, out, {"transformer": "fp8"})
    (file,) = (out / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    metadata = spell(tensors, [key.removesuffix(".comfy_quant") for key in tensors if key.endswith(".comfy_quant")])
    file.unlink()
    save_file(tensors, file, metadata)
    return out


@pytest.mark.parametrize("spell", [with_metadata, with_scales_of_inputs, with_bfloat16_scales, with_older_names])
def test_fp8_loads_however_it_is_spelled(folder, tmp_path, spell):
    ours = checkpoints.load_dit(folder, quantization="fp8").model
    root = spelled(folder, tmp_path / "out", spell)
    (file,) = (root / "transformer").glob("*.safetensors")
    with safe_open(file, framework="pt") as opened:
        metadata = (opened.metadata() or {}) | {"config": (folder / "transformer" / "config.json").read_text()}
    save_file(load_file(file), single := tmp_path / "single.safetensors", metadata)
    for theirs in (checkpoints.load_dit(root).model, checkpoints.load_dit(single, roots=[folder]).model):
        for name, layer in quantizations.quantizable(ours, "fp8").items():
            weight, expected = theirs.get_submodule(name).weight, layer.weight.dequantize()
            assert weight._params.scale.dtype == torch.float32
            rounded = 2**-8 if spell is with_bfloat16_scales else 0
            torch.testing.assert_close(weight.dequantize(), expected, rtol=rounded, atol=0)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (metadata_of([FF], twist=1), "says 'twist', which is not understood"),
        ({"_quantization_metadata": "{"}, "is not understood"),
        ({"_quantization_metadata": "[]"}, "is not understood"),
        ({"_quantization_metadata": json.dumps({"layers": {FF: {"format": "float8_e5m2"}}})}, "quantized as 'float8_e5m2'"),
    ],
)
def test_metadata_that_is_not_understood_in_all_is_refused_by_name(folder, tmp_path, metadata, message):
    root = shutil.copytree(folder, tmp_path / "out")
    (file,) = (root / "transformer").glob("*.safetensors")
    save_file(load_file(file), file, metadata)
    with pytest.raises(ValueError, match=message):
        checkpoints.load_dit(root)


@pytest.mark.parametrize("scales", ["rows", "one"])
def test_layers_that_are_computed_at_full_width_are_widened(folder, tmp_path, scales):
    """Converters without a preset for GLM-Image quantize them too, and some with one scale for all rows."""
    name, root = "transformer_blocks.1.norm1.linear", shutil.copytree(folder, tmp_path / "out")
    (file,) = (root / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    exact = tensors[f"{name}.weight"]
    scale = exact.abs().amax(dim=1, keepdim=True) / 127 if scales == "rows" else exact.abs().max() / 127
    mark = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
    codes = (exact / scale).round().to(torch.int8)
    save_file(tensors | {f"{name}.weight": codes, f"{name}.weight_scale": scale, f"{name}.comfy_quant": mark}, file)
    loaded = checkpoints.load_dit(root).model.get_submodule(name)
    assert type(loaded) is torch.nn.Linear and loaded.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.weight.detach(), codes * scale)
    assert 0 < (loaded.weight - exact).norm() < 0.02 * exact.norm()
