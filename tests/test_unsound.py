"""Checkpoints that no loader could use: check, `inspect` and loader say the same, before weights are read."""

import json
import shutil
import time

import pytest
import torch
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.checkpoints.header import read_header
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.files.components import AR, COMPONENTS, DIT, GLYPH_ENCODER, VAE
from glm_image_pack.glmimage_core.glm_image.files.load import stored_component
from glm_image_pack.glmimage_core.glm_image.files.single_file import list_files
from safetensors.torch import load_file, save_file

LOADERS = {
    AR: checkpoints.load_ar,
    GLYPH_ENCODER: checkpoints.load_glyph_encoder,
    DIT: checkpoints.load_dit,
    VAE: checkpoints.load_vae,
}
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
MANY = 10**6
PROCESSOR, TOKENIZER = "processor/preprocessor_config.json", "processor/tokenizer_config.json"


@pytest.fixture
def broken(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "broken")


def setting(**changes):
    return lambda text: json.dumps(json.loads(text) | changes)


def below(key, **changes):
    return lambda text: json.dumps(json.loads(text) | {key: json.loads(text)[key] | changes})


def instead(content):
    return lambda _: content


FAULTS = [
    (AR, PROCESSOR, None, "preprocessor_config.json is missing"),
    (AR, "processor/chat_template.jinja", None, "has no chat template"),
    (AR, "processor/chat_template.jinja", instead("{{ raise_exception('no') }}"), "chat template in .* cannot be used: .*: no"),
    (AR, "processor/chat_template.jinja", instead("{% for %}"), "chat template in .* cannot be used"),
    (AR, "processor/chat_template.jinja", instead("text"), "does not put a reference into a prompt"),
    (AR, "processor/tokenizer.json", instead("{}"), "tokenizer in .* cannot be read: KeyError"),
    (AR, "processor/tokenizer.json", instead("[]"), "tokenizer.json is not understood"),
    (AR, TOKENIZER, setting(extra_special_tokens={}, image_token=None), "has no image_token"),
    (AR, TOKENIZER, setting(added_tokens_decoder=5), "tokenizer in .* cannot be read"),
    (AR, PROCESSOR, setting(patch_size=0), "patch_size of the image processor in .* is 0"),
    (AR, PROCESSOR, setting(patch_size=10**30), "must be a whole number"),
    (AR, PROCESSOR, setting(merge_size="2"), "merge_size .* must be a whole number"),
    (AR, PROCESSOR, setting(image_mean=[float("nan")] * 3), "image_mean .* is nan, which is no finite number"),
    (AR, PROCESSOR, setting(image_std=[0, 1, 1]), "image_std .* must be above 0"),
    (AR, PROCESSOR, setting(image_std=[1]), "has not 3 numbers"),
    (AR, PROCESSOR, setting(size={"shortest_edge": 10**12, "longest_edge": 10**12}), "shortest_edge .* must be a whole number"),
    (AR, PROCESSOR, setting(size=5), "image processor"),
    (AR, PROCESSOR, setting(resample=77), "resample .* is 77"),
    (AR, PROCESSOR, setting(rescale_factor=float("inf")), "rescale_factor .* is inf"),
    (GLYPH_ENCODER, "tokenizer/tokenizer_config.json", instead("[]"), "is not understood: it holds no object"),
    (
        GLYPH_ENCODER,
        "tokenizer/tokenizer_config.json",
        setting(extra_ids=10**7, added_tokens_decoder=5),
        "tokenizer in .* cannot be read",
    ),
    (DIT, "scheduler/scheduler_config.json", setting(base_image_seq_len=0), "base_image_seq_len in .* must be above 0"),
    (DIT, "scheduler/scheduler_config.json", setting(max_shift=float("nan")), "max_shift in .* is nan"),
    (DIT, "scheduler/scheduler_config.json", setting(base_shift="1"), "base_shift in .* is 1, which is no finite number"),
    (VAE, "vae/config.json", setting(latents_mean=[0.0] * 3), "latents_mean of 3 channels and latents_std of 16"),
    (VAE, "vae/config.json", setting(latents_mean=[0.0] * 3, latents_std=[1.0] * 3), "its latents have 16"),
    (VAE, "vae/config.json", setting(latents_std=[float("inf")] * 16), "latents_std in .* no finite number"),
    (VAE, "vae/config.json", setting(latents_std=[0.0] * 16), "latents_std in .* must be above 0"),
    (VAE, "vae/config.json", setting(latents_mean=["a"] * 16), "number 1 of latents_mean in .* is a"),
    (DIT, "transformer/config.json", setting(num_layers=MANY), "many more tensors than the"),
    (DIT, "transformer/config.json", setting(num_layers=10**18), "many more tensors than the"),
    (DIT, "transformer/config.json", setting(num_attention_heads=10**18), "describes no|does not match"),
    (DIT, "transformer/config.json", setting(patch_size=0), "describes no|does not match"),
    (VAE, "vae/config.json", setting(layers_per_block=MANY), "many more tensors than the"),
    (GLYPH_ENCODER, "text_encoder/config.json", setting(num_layers=MANY), "many more tensors than the"),
    (AR, "vision_language_encoder/config.json", below("text_config", num_hidden_layers=MANY), "many more tensors than the"),
    (AR, "vision_language_encoder/config.json", below("vision_config", depth=MANY), "many more tensors than the"),
    (AR, "vision_language_encoder/config.json", setting(num_labels=10**9), "num_labels"),
    (AR, "vision_language_encoder/config.json", setting(model_type={"a": 1}), "model_type in .* is no name"),
    (DIT, INDEX, instead('{"weight_map": {"a": "../../x"}}'), "has a in '../../x', which is no file of its folder"),
    (DIT, INDEX, instead('{"weight_map": {"a": "/x"}}'), "has a in '/x', which is no file of its folder"),
    (DIT, INDEX, instead('{"weight_map": {"a": 5}}'), "has a in 5, which is no file"),
    (DIT, INDEX, instead('{"weight_map": ["a"]}'), "has no weight_map"),
    (DIT, INDEX, instead('{"weight_map": null}'), "has no weight_map"),
    (DIT, INDEX, instead("{}"), "has no weight_map"),
]


@pytest.mark.parametrize(("kind", "file", "change", "message"), FAULTS, ids=range(len(FAULTS)))
def test_check_inspect_and_loader_say_the_same_of_a_fault_before_weights_are_read(
    broken, monkeypatch, capsys, kind, file, change, message
):
    file = broken / file
    content = file.read_text() if file.is_file() else "{}"
    file.unlink(missing_ok=True)
    if change is not None:
        file.write_text(change(content))
    monkeypatch.setattr(checkpoints, "load_model", lambda *_, **__: pytest.fail("weights were read"))
    began = time.process_time()
    for use in (lambda: stored_component(broken, kind), lambda: LOADERS[kind](broken)):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
            use()
    assert main(["inspect", str(broken)]) == 1
    assert " ".join(str(raised.value).split()) in " ".join(capsys.readouterr().out.split())
    assert time.process_time() - began < 3, "a config was built whole"


@pytest.mark.parametrize(("component", "changes"), [("transformer", {"num_layers": MANY}), ("vae", {"layers_per_block": 10**18})])
def test_a_million_layers_in_the_metadata_of_a_file_are_refused_by_its_header(folder, tmp_path, component, changes):
    tensors = load_file(next((folder / component).glob("*.safetensors")))
    config = json.loads((folder / component / "config.json").read_text()) | changes
    save_file(tensors, tmp_path / "many.safetensors", metadata={"config": json.dumps(config)})
    began = time.process_time()
    with pytest.raises(ValueError, match="many more tensors than the"):
        stored_component(tmp_path / "many.safetensors", COMPONENTS[component], [folder.parent])
    assert time.process_time() - began < 3


def header(content: bytes | dict, data: bytes = b"") -> bytes:
    """A safetensors file by hand."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated or corrupt"),
        (header({"a": F32})[:20], "is truncated or corrupt"),
        (header({"a": F32}, bytes(7)), "is truncated or corrupt"),
        (header({"a": F32, "b": F32 | {"data_offsets": [16, 24]}}, bytes(24)), "is truncated or corrupt"),
        (header(b"\xff" * 128), "is truncated or corrupt"),
        (header({"a": F32 | {"dtype": "F3"}}, bytes(8)), "not understood: .*F3"),
        (header({"a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}, bytes(8)), "has a as F4, which is not understood"),
        (header([1]), "not understood"),
        (header({"a": {"dtype": "F32"}}), "not understood"),
        (b"GGUF\x03" + bytes(60), "but a GGUF file"),
        (b"PK\x03\x04" + b"\x08" * 60, "but a pickle of PyTorch"),
        (b"\x80\x02}q" + b"\x08" * 60, "but a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "but a pointer of Git LFS"),
        (b"<!DOCTYPE html>" + b" " * 60, "but a web page"),
    ],
    ids=range(14),
)
def test_a_file_is_damaged_only_where_its_bytes_say_so(tmp_path, content, message):
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_header(file)
    assert ("download it again" in str(raised.value)) == ("truncated or corrupt" in message)


def test_a_workflow_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "workflow.json").write_text("{}")
    assert main(["inspect", str(tmp_path / "workflow.json")]) == 2
    assert "a workflow is run by `render`" in capsys.readouterr().err


@pytest.mark.parametrize("mark", [b'{"format": "float4_unknown"}', b"not JSON"])
def test_a_file_that_is_quantized_in_an_unknown_way_is_listed_and_refused_by_name(folder, tmp_path, mark):
    tensors = load_file(next((folder / "transformer").glob("*.safetensors")))
    tensors["transformer_blocks.0.ff.net.2.comfy_quant"] = torch.tensor(list(mark)).byte()
    save_file(tensors, tmp_path / "new.safetensors")
    assert list(list_files(DIT, [tmp_path])) == ["new.safetensors"]
    with pytest.raises(ValueError, match=r"transformer_blocks.0.ff.net.2 in .*new.safetensors: a "):
        checkpoints.load_dit(tmp_path / "new.safetensors")
