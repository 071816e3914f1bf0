"""LoRA on both halves: the stock loader and ours, names of every maker, strength, and weights that come back bit for bit."""

import inspect
import json
import logging
import re
from pathlib import Path

import comfy.model_base
import comfy.sd
import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.nodes.host.comfyui.cogview3 import CogView3BaseModel, CogView3PlusModel
from glm_image_pack.nodes.host.comfyui.glm_image import GlmImageModel, dit_patcher
from safetensors.torch import load_file, save_file

DIT_LAYERS = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2", "glyph_projector.net.2")
AR_LAYERS = ("model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.1.mlp.down_proj")
RANK = 4


def deltas(model: torch.nn.Module, layers) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """up and down of each layer, large enough to be seen."""
    generator = torch.Generator().manual_seed(4)
    return {
        layer: (
            torch.randn(model.get_submodule(layer).out_features, RANK, generator=generator) * 0.3,
            torch.randn(RANK, model.get_submodule(layer).in_features, generator=generator) * 0.3,
        )
        for layer in layers
    }


def in_pefts_form(changes, prefix: str = "") -> dict[str, torch.Tensor]:
    """Deltas as PEFT and diffusers name them."""
    tensors = {}
    for layer, (up, down) in changes.items():
        tensors |= {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
    return tensors


def merged(model: torch.nn.Module, changes, strength: float) -> torch.nn.Module:
    for layer, (up, down) in changes.items():
        model.get_submodule(layer).weight.data += strength * (up @ down)
    return model


@pytest.fixture
def loras(folder, library):
    """loras(name, form): writes a LoRA of the DiT's layers under the names of one maker."""

    def write(name: str, form: str, layers=DIT_LAYERS, half: str = "dit") -> str:
        tensors = {}
        for layer, (up, down) in deltas(library[half].model, layers).items():
            flat = layer.replace(".", "_")
            first, second, prefix = {
                "comfyui": (".lora_down.weight", ".lora_up.weight", f"diffusion_model.{layer}"),
                "kohya": (".lora_down.weight", ".lora_up.weight", f"lora_unet_{flat}"),
                "diffusers": (".lora_A.weight", ".lora_B.weight", f"transformer.{layer}"),
                "peft": (".lora_A.weight", ".lora_B.weight", f"base_model.model.{layer}"),
                "plain": (".lora_A.weight", ".lora_B.weight", layer),
                "onetrainer": (".lora_down.weight", ".lora_up.weight", f"lora_transformer_{flat}"),
                "wrapped": (".lora_A.weight", ".lora_B.weight", f"base_model.model.transformer.{layer}"),
                "simpletuner": (".lora_down.weight", ".lora_up.weight", f"lycoris_{flat}"),
                "adapter": (".lora_A.default.weight", ".lora_B.default.weight", f"base_model.model.{layer}"),
            }[form]
            tensors |= {prefix + first: down, prefix + second: up}
            if form in ("kohya", "simpletuner"):
                tensors[prefix + ".alpha"] = torch.tensor(float(RANK if form == "kohya" else 2 * RANK))
        save_file(tensors, folder.parents[1] / "loras" / name)
        return name

    return write


@pytest.fixture
def paint(conditioned, run):
    positive, negative, prior = conditioned(True)
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}

    def with_model(model) -> torch.Tensor:
        return run("GLMImageSampler", model=model, **settings)[0]["samples"]

    def with_component(dit) -> torch.Tensor:
        glyphs, options = positive[0]
        return sample(dit, prior, glyphs, negative[0][0], seeds=[3], steps=2, references=options["glm_image_references"])

    return with_model, with_component


@pytest.mark.parametrize("form", ["comfyui", "kohya", "diffusers", "peft", "plain"])
def test_a_lora_of_any_maker_changes_the_dit_as_merged_weights_would(folder, library, model, loras, paint, run, form):
    with_model, with_component = paint
    name = loras("dit.safetensors", form)
    dit = model.model.diffusion_model
    before = {key: value.clone() for key, value in dit.state_dict().items()}
    plain = with_model(model)
    for strength in (1.0, -0.5):
        (changed, nothing) = run("GLMImageLoadLoRA", lora_name=name, strength_model=strength, strength_ar=1.0, model=model)
        assert nothing is None
        expected = checkpoints.load_dit(folder)
        merged(expected.model, deltas(library["dit"].model, DIT_LAYERS), strength)
        assert (with_model(changed) - with_component(expected)).abs().max() < 1e-4
        assert (with_model(changed) - plain).abs().max() > 1e-2
    assert torch.equal(with_model(model), plain)
    assert all(torch.equal(value, before[key]) for key, value in dit.state_dict().items())


@pytest.mark.parametrize("form", ["comfyui", "kohya", "diffusers", "peft", "plain", "simpletuner", "adapter"])
def test_the_stock_loader_does_the_same_with_the_names_of_any_maker(model, loras, paint, run, form):
    with_model, _ = paint
    name = loras("stock.safetensors", form)
    (stock,) = run("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=0.7)
    ours, _ = run("GLMImageLoadLoRA", lora_name=name, strength_model=0.7, strength_ar=1.0, model=model)
    assert {layer: len(patches) for layer, patches in stock.patches.items()} == dict.fromkeys(ours.patches, 1)
    assert len(ours.patches) == len(DIT_LAYERS)
    assert torch.equal(with_model(stock), with_model(ours))


@pytest.mark.parametrize("form", ["onetrainer", "wrapped"])
def test_names_that_only_our_loader_knows(model, loras, run, form):
    """As the help page of Load GLM-Image LoRA says."""
    name = loras("other.safetensors", form)
    (stock,) = run("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=1.0)
    ours, _ = run("GLMImageLoadLoRA", lora_name=name, strength_model=1.0, strength_ar=1.0, model=model)
    assert not stock.patches and len(ours.patches) == len(DIT_LAYERS)


def test_nothing_but_names_comes_from_the_classes_by_which_comfyui_tells_them():
    """The DiT counts as a QwenImage and a HunyuanDiT where ComfyUI reads a LoRA, and nowhere else."""
    borrowed = (comfy.model_base.QwenImage, comfy.model_base.HunyuanDiT)
    for kind in (GlmImageModel, CogView3PlusModel, CogView3BaseModel):
        of_others = [name for other in borrowed for name in vars(other) if getattr(kind, name) is vars(other)[name]]
        assert of_others == []
    asked = re.compile(r"isinstance\([^\n]*\b(QwenImage|HunyuanDiT)\b")
    package = Path(comfy.model_base.__file__).parent
    sources = [*package.rglob("*.py"), *package.parent.glob("*.py"), *(package.parent / "comfy_extras").rglob("*.py")]
    assert {file.name for file in sources if asked.search(file.read_text("utf-8"))} == {"lora.py"}


@pytest.mark.parametrize(("alpha", "said"), [(RANK, False), (2 * RANK, True)])
def test_a_scale_that_the_stock_loader_does_not_read_is_said_on_the_node(model, loras, folder, paint, run, texts, alpha, said):
    if "lora_metadata" not in inspect.signature(comfy.sd.load_lora_for_models).parameters:
        pytest.skip("this ComfyUI's loader does not keep the metadata of a LoRA")
    with_model, _ = paint
    path = folder.parents[1] / "loras" / loras("scaled.safetensors", "diffusers")
    config = {"transformer.r": RANK, "transformer.lora_alpha": alpha}
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(config)})
    pictures = []
    for node, out in {
        "LoraLoaderModelOnly": run("LoraLoaderModelOnly", model=model, lora_name=path.name, strength_model=1.0)[0],
        "GLMImageLoadLoRA": run("GLMImageLoadLoRA", model=model, lora_name=path.name, strength_model=1.0, strength_ar=1.0)[0],
    }.items():
        with CurrentNodeContext(node, "7"):
            pictures.append(with_model(out))
        assert (
            any(
                "the alpha in a LoRA's metadata has no effect with ComfyUI's loader; use Load GLM-Image LoRA" in text
                for _, text in texts
            )
            == said
        )
        texts.clear()
        said = False
    assert torch.equal(*pictures) == (alpha == RANK)


def test_what_is_injected_into_the_layers_makes_no_cache_that_others_find(model, conditioned, paint, run):
    """As bypass LoRAs do: the weights keep their name and compute something else."""
    from comfy.patcher_extension import PatcherInjection

    with_model, _ = paint
    plain = with_model(model)
    model.model.component.cached_references.clear()
    layer = model.model.diffusion_model.transformer_blocks[0].attn1.to_v
    forward = layer.forward
    injected = model.clone()
    inject = PatcherInjection(
        inject=lambda patcher: setattr(layer, "forward", lambda x: 2 * forward(x)),
        eject=lambda patcher: setattr(layer, "forward", forward),
    )
    injected.set_injections("test", [inject])
    assert (with_model(injected) - plain).abs().max() > 1e-2
    assert not model.model.component.cached_references
    assert torch.equal(with_model(model), plain)


def test_two_loras_add_up(folder, library, model, loras, paint, run):
    with_model, with_component = paint
    name = loras("dit.safetensors", "diffusers")
    inputs = {"lora_name": name, "strength_ar": 1.0}
    once, _ = run("GLMImageLoadLoRA", model=model, strength_model=0.25, **inputs)
    twice, _ = run("GLMImageLoadLoRA", model=once, strength_model=0.5, **inputs)
    dit = checkpoints.load_dit(folder)
    merged(dit.model, deltas(library["dit"].model, DIT_LAYERS), 0.75)
    assert (with_model(twice) - with_component(dit)).abs().max() < 1e-4


def test_a_lora_changes_the_ar_model_as_merged_weights_would(folder, library, ar, loras, run):
    name = loras("ar.safetensors", "peft", AR_LAYERS, "ar")
    nothing, changed = run("GLMImageLoadLoRA", lora_name=name, strength_model=1.0, strength_ar=0.8, ar=ar)
    plan = {"prompt": "a tree", "width": 256, "height": 256, "batch_size": 1, "seed": 2}
    settings = {"temperature": 0.9, "top_p": 0.75, "top_k": 50}

    def tokens(wire) -> torch.Tensor:
        return run("GLMImageGeneratePrior", ar=wire, **plan, **settings)[0].tokens

    plain = tokens(ar)
    from glm_image_pack.glmimage_core.glm_image.prior import generate_prior

    writer = checkpoints.load_ar(folder)
    merged(writer.model, deltas(library["ar"].model, AR_LAYERS), 0.8)
    expected = generate_prior(writer, "a tree", 256, 256, seed=2).tokens
    assert nothing is None
    assert torch.equal(tokens(changed), expected) and not torch.equal(expected, plain)
    assert torch.equal(tokens(ar), plain)


def test_a_lora_goes_to_the_half_of_the_ar_model_that_has_the_layer(folder, library, ar, vae, picture, run):
    from glm_image_pack.glmimage_core.glm_image.ar_model import fit, vision_tokens
    from glm_image_pack.glmimage_core.images import to_pictures

    vision = "model.visual.blocks.0.attn.proj"
    changes = deltas(library["ar"].model, (*AR_LAYERS, vision))
    tensors = in_pefts_form({layer: (20 * up, down) for layer, (up, down) in changes.items()})
    path = folder.parents[1] / "loras"
    save_file(tensors, path / "halves.safetensors")
    save_file({key: tensor for key, tensor in tensors.items() if vision not in key}, path / "language.safetensors")

    def loaded(name: str):
        return run("GLMImageLoadLoRA", lora_name=name, strength_model=1.0, strength_ar=1.0, ar=ar)[1]

    both, language = loaded("halves.safetensors"), loaded("language.safetensors")
    count = {half: len(patcher.patches) for half, patcher in both.patchers.items()}
    assert count == {"language": 2, "vision": 1}
    assert language.patchers["vision"].patches_uuid == ar.patchers["vision"].patches_uuid  # stays where it is

    def seen(wire) -> torch.Tensor:
        return run("GLMImageEncodeReference", ar=wire, vae=vae, image=picture)[0][0].vision_tokens

    reader = checkpoints.load_ar(folder)
    merged(reader.model, {vision: changes[vision]}, 20.0)
    expected = vision_tokens(reader, fit(reader, to_pictures(picture)[0]))
    plain = seen(ar)
    assert torch.equal(seen(both), expected) and not torch.equal(expected, plain)
    assert torch.equal(seen(language), plain) and torch.equal(seen(ar), plain)


def test_quantized_weights_come_back_bit_for_bit(folder, library, loras, paint, run):
    """The blocks' weights in eight bits, computed in float32."""
    with_model, _ = paint
    dit = checkpoints.load_dit(folder)
    for layer in dit.model.transformer_blocks.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    model = dit_patcher(dit, torch.device("cpu"))
    before = {key: value.clone() for key, value in dit.model.state_dict().items()}
    plain = with_model(model)
    assert torch.isfinite(plain).all()
    name = loras("dit.safetensors", "diffusers")
    changed, _ = run("GLMImageLoadLoRA", lora_name=name, strength_model=1.0, strength_ar=1.0, model=model)
    assert (with_model(changed) - plain).abs().max() > 1e-2
    assert torch.equal(with_model(model), plain)
    for key, value in dit.model.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value.view(torch.uint8), before[key].view(torch.uint8)), key


def test_a_lora_on_a_streamed_model_is_the_same(model, loras, paint, run, monkeypatch, only_a_part_fits):
    with_model, _ = paint
    name = loras("dit.safetensors", "diffusers")
    changed, _ = run("GLMImageLoadLoRA", lora_name=name, strength_model=1.0, strength_ar=1.0, model=model)
    whole = with_model(changed)

    only_a_part_fits()
    assert (with_model(changed) - whole).abs().max() < 1e-4
    monkeypatch.undo()
    changed.detach()


def test_references_are_run_again_with_other_weights(model, loras, paint, run):
    with_model, _ = paint
    with_model(model)
    assert len(model.model.component.cached_references) == 1
    name = loras("dit.safetensors", "diffusers")
    changed, _ = run("GLMImageLoadLoRA", lora_name=name, strength_model=1.0, strength_ar=1.0, model=model)
    with_model(changed)
    assert len(model.model.component.cached_references) == 2
    with_model(changed)
    assert len(model.model.component.cached_references) == 2


def test_keys_for_layers_that_cannot_be_patched_are_said(ar, folder, run, caplog):
    tensors = {"model.language_model.norm.diff": torch.ones(ar.component.model.config.text_config.hidden_size)}
    tensors |= in_pefts_form(deltas(ar.component.model, AR_LAYERS[:1]))
    save_file(tensors, folder.parents[1] / "loras" / "norm.safetensors")
    with caplog.at_level(logging.WARNING):
        run("GLMImageLoadLoRA", lora_name="norm.safetensors", strength_model=1.0, strength_ar=1.0, ar=ar)
    assert "1 keys of the LoRA are left out, such as model.language_model.norm.diff" in caplog.text


def test_strength_zero_is_the_model_itself(model, ar, loras, run):
    name = loras("dit.safetensors", "diffusers")
    out = run("GLMImageLoadLoRA", lora_name=name, strength_model=0.0, strength_ar=0.0, model=model, ar=ar)
    assert out[0] is model and out[1] is ar


def test_keys_that_match_nothing_are_counted(model, ar, loras, run, caplog, folder):
    name = loras("dit.safetensors", "diffusers")
    path = folder.parents[1] / "loras" / name
    from safetensors.torch import load_file

    save_file(load_file(path) | {"transformer.other.lora_A.weight": torch.ones(4, 8), "te.x.alpha": torch.ones(1)}, path)
    with caplog.at_level(logging.WARNING):
        out = run("GLMImageLoadLoRA", lora_name=name, strength_model=1.0, strength_ar=1.0, model=model, ar=ar)
    assert "3 weights of the DiT, 0 weights of the AR model; 2 of its keys match nothing here, such as te.x.alpha" in caplog.text
    assert out[0] is not model and out[1] is ar


def test_a_half_that_is_not_connected_is_said(model, library, folder, run, caplog):
    tensors = in_pefts_form(deltas(library["dit"].model, DIT_LAYERS), "transformer.")
    tensors |= in_pefts_form(deltas(library["ar"].model, AR_LAYERS), "base_model.model.")
    save_file(tensors, folder.parents[1] / "loras" / "both.safetensors")
    with caplog.at_level(logging.WARNING):
        run("GLMImageLoadLoRA", lora_name="both.safetensors", strength_model=1.0, strength_ar=1.0, model=model)
    assert "4 of its keys match nothing here (the AR model is not connected)" in caplog.text


def test_what_is_no_lora_for_this_model_is_refused(folder, model, ar, run):
    loras = folder.parents[1] / "loras"

    def load(name: str, **inputs):
        run("GLMImageLoadLoRA", lora_name=name, strength_model=1.0, strength_ar=1.0, **inputs)

    save_file({"lora_unet_down_blocks_0.lora_up.weight": torch.ones(8, 4)}, loras / "sdxl.safetensors")
    with pytest.raises(ValueError, match="sdxl.safetensors changes nothing in the DiT or the AR model: its 1 keys"):
        load("sdxl.safetensors", model=model, ar=ar)
    layer = f"transformer.{DIT_LAYERS[0]}"
    wrong = {f"{layer}.lora_A.weight": torch.ones(4, 999), f"{layer}.lora_B.weight": torch.ones(999, 4)}
    save_file(wrong, loras / "wide.safetensors")
    with pytest.raises(
        ValueError, match=r"wide.safetensors: the LoRA is for another model: it changes transformer_blocks.0.attn1.to_q"
    ):
        load("wide.safetensors", model=model)
    torch.save({"x": torch.ones(1)}, loras / "pickle.pt")
    with pytest.raises(ValueError, match=r"pickle.pt is not a safetensors file; other formats can run code"):
        load("pickle.pt", model=model)
    (loras / "renamed.safetensors").write_bytes((loras / "pickle.pt").read_bytes())
    with pytest.raises(ValueError, match=r"renamed.safetensors is no safetensors file"):
        load("renamed.safetensors", model=model)
    with pytest.raises(ValueError, match="neither model nor ar is connected"):
        load("sdxl.safetensors")
    with pytest.raises(FileNotFoundError, match="no LoRA 'gone.safetensors'"):
        load("gone.safetensors", model=model)
