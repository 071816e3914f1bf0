"""CogView3-Base: what was published is converted whole, painted as diffusers' scheduler would, and relayed."""

import argparse
import json
import random
import shutil
import zipfile

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.pipelines import LatentConsistencyModelPipeline
from glm_image_pack.bench.measure import allocator_peak
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.cogview3 import base
from glm_image_pack.glmimage_core.cogview3 import convert as sat_checkpoint
from glm_image_pack.glmimage_core.cogview3 import text as cogview3
from glm_image_pack.glmimage_core.cogview3.convert import UNET, WEIGHTS, build_unet, convert, published_name
from glm_image_pack.glmimage_core.cogview3.memory import unet_bytes
from glm_image_pack.glmimage_core.cogview3.text import MicroConditions
from glm_image_pack.glmimage_core.diffusion import initial_noise
from glm_image_pack.glmimage_core.placement.prediction import Job
from glm_image_pack.glmimage_core.placement.streaming import streamed
from glm_image_pack.glmimage_core.tiny.cogview3_base import CHECKPOINTS, VAE_FILE, published_unet, write_published
from glm_image_pack.glmimage_core.vae import decode, encode
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from safetensors.torch import load_file

BASE, RELAY, FAST_BASE, FAST_RELAY = CHECKPOINTS
PROMPT = "a red cat on a mat, seen from above"
SIZES = MicroConditions((256, 256), (0, 0), (256, 256))
SMALL = {"width": 256, "height": 256, "seeds": [0]}


@pytest.fixture(scope="module")
def unets(models):
    return {name: base.load_unet(models / "diffusers" / name) for name in CHECKPOINTS}


@pytest.fixture(scope="module")
def vae(models):
    return base.load_vae(models / "diffusers" / BASE)


@pytest.fixture(scope="module")
def sides(models):
    encoder = cogview3.load_text_encoder(models / "diffusers" / "CogView3-Plus-3B")
    return [cogview3.encode(encoder, text, base.TOKENS).embeddings for text in (PROMPT, "")]


# What was published


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_tensor_goes_where_diffusers_puts_it(published, unets, name):
    state = torch.load(sat_checkpoint.find_weights(published / name), weights_only=True)["module"]
    theirs = convert_ldm_unet_checkpoint(dict(state), {"layers_per_block": 2, "class_embed_type": "projection"})
    ours = unets[name].model.state_dict()
    if unets[name].is_distilled:  # which diffusers' own does not know
        theirs["time_embedding.cond_proj.weight"] = state[f"{UNET}w_proj.weight"]
    assert ours.keys() == theirs.keys() and len(ours) == len(state)
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
    assert unets[name].stage == ("relay" if "relay" in name else "base")
    assert unets[name].is_distilled == ("distill" in name)


def test_the_vae_goes_where_diffusers_puts_it(published, vae):
    theirs = convert_ldm_vae_checkpoint(load_file(published / VAE_FILE), vae.model.config)
    ours = vae.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
    assert vae.space.std == (pytest.approx(1 / 0.13025),) * 4


@pytest.mark.parametrize(("guidance", "parameters"), [(None, 2_906_612_484), (512, 2_906_776_324), (256, 2_906_694_404)])
def test_the_released_ones_have_2_9_billion_parameters_and_each_a_published_name(guidance, parameters):
    with torch.device("meta"):
        unet = build_unet(channels=(320, 640, 1280), depths=(1, 2, 10), text=4096, sizes=1536, guidance=guidance)
    shapes = {published_name(name): tensor.shape for name, tensor in unet.state_dict().items()}
    assert len(shapes) == len(unet.state_dict()) == 1680 + (guidance is not None)
    assert sum(shape.numel() for shape in shapes.values()) == parameters
    assert shapes["output_blocks.2.1.transformer_blocks.9.attn2.to_k.weight"] == (1280, 4096)
    assert shapes["output_blocks.5.2.conv.weight"] == (640, 640, 3, 3)
    assert shapes["input_blocks.3.0.op.weight"] == (320, 320, 3, 3)


def with_vae_inside(content, published):
    vae = load_file(published / VAE_FILE)
    content["module"] |= {f"first_stage_model.{key}": tensor + 1 for key, tensor in vae.items()}


def as_training_leaves_it(content, published):
    content |= {
        "args": argparse.Namespace(fp16=True),
        "np_rng_state": np.random.RandomState(0).get_state(),
        "random_rng_state": random.Random(0).getstate(),
        "iteration": 1,
    }
    content["module"]["conditioner.embedders.0.transformer.shared.weight"] = torch.zeros(4, 4)


@pytest.mark.parametrize("change", [with_vae_inside, as_training_leaves_it])
def test_what_lies_beside_the_unet_is_told_and_a_vae_of_its_own_comes_first(published, tmp_path, change):
    content = {"module": published_unet("0/x", dtype=torch.float32)}
    change(content, published)
    torch.save(content, tmp_path / "one.pt")
    left_out = convert(tmp_path / "one.pt", tmp_path / "out", "base", published / VAE_FILE)
    ours, given = base.load_vae(tmp_path / "out").model, load_file(published / VAE_FILE)
    moved = (ours.encoder.conv_in.weight - given["encoder.conv_in.weight"]).abs().max()
    if change is with_vae_inside:
        assert moved == 1 and "holds a VAE" in left_out[0]
    else:
        assert moved == 0 and left_out == ["1 tensors of conditioner"]


def test_a_folder_of_diffusers_is_a_vae_too(published, models, tmp_path):
    convert(published / BASE, tmp_path / "out", "base", models / "diffusers" / BASE / "vae")
    ours, theirs = base.load_vae(tmp_path / "out").model, base.load_vae(models / "diffusers" / BASE).model
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def without(key):
    return lambda state: state.pop(UNET + key)


def other_shape(state):
    state[f"{UNET}input_blocks.1.0.in_layers.0.weight"] = torch.ones(7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("output_blocks.5.2.conv.bias"), r"output_blocks.5.2.conv.bias is missing \(1 missing, 0 unknown\)"),
        (without("label_emb.0.0.weight"), "label_emb.0.0.weight is missing"),
        (lambda state: state.update({f"{UNET}extra": torch.ones(1)}), "extra is unknown"),
        (other_shape, "size mismatch for down_blocks.0.resnets.0.norm1.weight"),
        (dict.clear, "no tensor of model.diffusion_model. in an entry `module`"),
    ],
)
def test_what_is_not_whole_is_refused_before_anything_is_written(published, tmp_path, change, message):
    state = published_unet("0/x")
    change(state)
    write_published(tmp_path / "sat", state)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "sat", tmp_path / "out", "base", published / VAE_FILE)
    assert not (tmp_path / "out").exists()


class Payload:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_nothing_in_a_file_is_run(tmp_path, published, capsys):
    torch.save({"module": published_unet("0/x"), "more": Payload(print, "run!")}, tmp_path / "one.pt")
    with pytest.raises(ValueError, match="it holds print, which no checkpoint needs"):
        convert(tmp_path / "one.pt", tmp_path / "out", "base", published / VAE_FILE)
    assert "run!" not in capsys.readouterr().out


def test_no_array_is_made_of_what_training_left(tmp_path, published):
    """NumPy would follow a pointer that the file gives it, and the process would end."""
    crafted = Payload(np.ndarray, Payload(np.ndarray, (1,), "O", b"AAAAAAAA"))
    torch.save({"module": published_unet("0/x"), "np_rng_state": crafted}, tmp_path / "one.pt")
    assert convert(tmp_path / "one.pt", tmp_path / "out", "base", published / VAE_FILE) == []


def test_what_numpy_1_left_is_passed_over_too(tmp_path, published):
    """Its modules have other names than NumPy 2's."""
    torch.save({"module": published_unet("0/x"), "np_rng_state": np.zeros(3)}, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            assert not name.endswith("data.pkl") or b"numpy._core.multiarray" in content or np.__version__ < "2"
            old.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert convert(tmp_path / "old.pt", tmp_path / "out", "base", published / VAE_FILE) == []


def test_another_vae_is_refused(published, models, tmp_path):
    (tmp_path / "some.safetensors").write_bytes(b"no")
    for vae, message in (
        (models / "diffusers" / "CogView3-Plus-3B" / "vae", "its latents have 16 channels, scaled by 0.8, and not 4"),
        (
            models / "diffusers" / BASE / "vae" / "diffusion_pytorch_model.safetensors",
            "give the folder that holds its config.json",
        ),
        (tmp_path / "some.safetensors", "is no safetensors file"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(published / BASE, tmp_path / "out", "base", vae)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target_exists", [False, True])
def test_an_interrupted_convert_leaves_nothing_and_can_be_made_again(published, tmp_path, monkeypatch, target_exists):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "models" / "out"
    if target_exists:
        out.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderKL, "save_pretrained", interrupted)  # when the UNet is written already
        with pytest.raises(KeyboardInterrupt):
            convert(published / BASE, out, "base", published / VAE_FILE)
    left = {path.name for path in (tmp_path / "models").rglob("*")}
    assert left == ({"out"} if target_exists else set())
    convert(published / BASE, out, "base", published / VAE_FILE)
    assert base.load_unet(out).stage == "base"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["out"]


def test_the_command_line_converts_and_says_what_is_missing(published, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["convert", str(published / BASE), out, "--stage", "base"]) == 2
    assert "holds no VAE: give that of SDXL" in capsys.readouterr().err
    assert main(["convert", str(published), out, "--stage", "base"]) == 2
    assert f"a folder with a file `latest`, and 1/{WEIGHTS}" in capsys.readouterr().err
    assert main(["convert", str(published / BASE), out, "--stage", "relay", "--vae", str(published / VAE_FILE)]) == 0
    assert capsys.readouterr().out == f"{out}\n" and base.load_unet(tmp_path / "out").stage == "relay"
    assert main(["convert", str(published / BASE), out, "--stage", "base", "--vae", str(published / VAE_FILE)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_the_command_line_writes_tiny_ones(tmp_path):
    assert main(["tiny", "--family", "cogview3-base", str(tmp_path / "sat")]) == 0
    for name in CHECKPOINTS:
        assert sat_checkpoint.find_weights(tmp_path / "sat" / name).name == WEIGHTS


# The base


def own_pass(unet, x, timestep, text, cfg=None):
    """diffusers' UNet, asked for noise as its documentation has it."""
    inputs = {"class_labels": base.sizes_embedding(unet, SIZES).expand(len(x), -1)}
    if unet.is_distilled:
        strengths = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        width = unet.model.config.time_cond_proj_dim
        inputs["timestep_cond"] = strengths(None, torch.tensor([cfg]), width).expand(len(x), -1)
    with torch.no_grad():
        return unet.model(x, timestep, text.expand(len(x), -1, -1), **inputs).sample


@pytest.mark.parametrize(("steps", "cfg", "seeds"), [(4, 7.5, [0]), (5, 1.0, [3, 4]), (8, 3.0, [1])])
@pytest.mark.parametrize("name", [BASE, FAST_BASE])
def test_a_picture_is_that_of_diffusers_euler(unets, sides, name, steps, cfg, seeds):
    unet, (positive, negative) = unets[name], sides
    scheduler = EulerDiscreteScheduler(1000, 0.00085, 0.012, "scaled_linear", timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x = initial_noise(seeds, 4, (32, 32)) * (1 + scheduler.sigmas[0] ** 2) ** 0.5
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        noise = own_pass(unet, scaled, timestep, positive, cfg)
        if not unet.is_distilled and cfg != 1:
            without = own_pass(unet, scaled, timestep, negative)
            noise = without + cfg * (noise - without)
        x = scheduler.step(noise, timestep, x).prev_sample
    ours = base.sample(unet, positive, negative, width=256, height=256, seeds=seeds, steps=steps, cfg=cfg)
    torch.testing.assert_close(ours * 0.13025, x, atol=2e-4 * x.abs().max().item(), rtol=0)


def test_timesteps_are_the_published_ones(unets):
    unet = unets[BASE]
    assert [step.timestep for step in base.steps_of(unet, 24)][::4] == [999, 832, 666, 499, 333, 166]
    assert [step.timestep for step in base.steps_of(unet, 24, 12)] == [499, 457, 416, 374, 333, 291, 249, 208, 166, 124, 83, 41]
    assert [step.timestep for step in base.steps_of(unet, 5, 1)] == [199]
    assert unet.sigmas[[0, 199, 499, 999]].tolist() == pytest.approx([0.0291672, 0.5692849, 1.6128862, 14.6146412], rel=1e-4)


def test_a_distilled_one_heeds_the_strength_and_no_negative(unets, sides):
    unet, (positive, negative) = unets[FAST_BASE], sides
    cases = ((negative, 7.5), (positive, 7.5), (negative, 2.0))
    one, other, steered = (base.sample(unet, positive, text, **SMALL, steps=2, cfg=cfg) for text, cfg in cases)
    assert torch.equal(one, other) and (one - steered).abs().max() > 0.1


def test_each_input_shows(unets, sides):
    unet, (positive, negative) = unets[BASE], sides
    settings = {"unet": unet, "width": 256, "height": 256, "seeds": [0], "steps": 2}
    pictures = [base.sample(positive=positive, negative=text, **settings) for text in (negative, positive)]
    pictures += [
        base.sample(positive=positive, negative=negative, micro=SIZES._replace(**{name: (999, 333)}), **settings)
        for name in MicroConditions._fields
    ]
    for index, picture in enumerate(pictures):
        assert all((picture - other).abs().max() > 1e-2 for other in pictures[:index])


def test_progress_is_reported_before_the_first_step_and_after_each(unets, sides):
    calls = []
    base.sample(unets[BASE], *sides, **SMALL, steps=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 2), (1, 2), (2, 2)]


# The relay


@pytest.mark.parametrize(("name", "steps", "relay_steps"), [(RELAY, 8, 4), (RELAY, 6, 3), (FAST_RELAY, 5, 1), (FAST_RELAY, 6, 2)])
def test_a_relay_steps_from_blend_to_blend(unets, sides, name, steps, relay_steps):
    """With j of P steps to go the latent is the blend (1 - j / P) D + j / P L, with noise: its noise is read off, and goes on."""
    unet, (positive, negative) = unets[name], sides
    low = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    run = base.steps_of(unet, steps, relay_steps)
    sigmas = [*(unet.sigmas[step.timestep].item() for step in run), 0.0]
    x = low + sigmas[0] * initial_noise([5, 6], 4, (64, 64))
    micro = MicroConditions((512, 512), (0, 0), (512, 512))
    for i, step in enumerate(run):
        to_go = relay_steps - i
        scaled = x / (sigmas[i] ** 2 + 1) ** 0.5
        inputs = {"class_labels": base.sizes_embedding(unet, micro).expand(2, -1)}
        if unet.is_distilled:
            inputs["timestep_cond"] = base.strength_embedding(unet, 7.5).expand(2, -1)
        with torch.no_grad():
            noise, without = (
                unet.model(scaled, step.timestep, text.expand(2, -1, -1), **inputs).sample for text in (positive, negative)
            )
        noise = noise if unet.is_distilled else without + 7.5 * (noise - without)
        predicted = x - sigmas[i] * noise
        blends = [predicted + (left / relay_steps) * (low - predicted) for left in (to_go, to_go - 1)]
        x = blends[1] + sigmas[i + 1] * (x - blends[0]) / sigmas[i]
    ours = base.relay(unet, positive, negative, low / 0.13025, seeds=[5, 6], steps=steps, relay_steps=relay_steps)
    torch.testing.assert_close(ours * 0.13025, x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("relay_steps", [1, 2, 5])
def test_a_relay_arrives_at_what_is_predicted(unets, relay_steps):
    run = base.steps_of(unets[RELAY], 10, relay_steps)
    low, goal, noise = torch.randn(3, 1, 4, 8, 8)
    x = low + unets[RELAY].sigmas[run[0].timestep] * noise
    for step in run:
        x = step.taken(x, goal, low)
    torch.testing.assert_close(x, goal, atol=1e-4, rtol=1e-4)


def test_a_picture_is_enlarged_between_its_pixels():
    large = base.enlarged(torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1))
    assert large.shape == (1, 2, 4, 1)
    torch.testing.assert_close(large[0, 0, :, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


# Wrong use


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 240}, "width is 240; this stage takes 256 to 1024 pixels in steps of 32"),
        ({"height": 272}, "in steps of 32"),
        ({"seeds": [0] * 5}, "5 pictures at once"),
        ({"steps": 0}, "steps is 0; use 1 or more"),
        ({"steps": 1000}, "steps is 1000; use 999 or fewer"),
        ({"cfg": -1.0}, "cfg is -1.0; use 0 or more"),
        ({"negative": torch.zeros(1, 224, 32)}, r"the conditioning is \[1, 224, 32\].*with family CogView3-Base"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_the_model_runs(unets, settings, message):
    text = torch.zeros(1, 225, 32)
    with pytest.raises(ValueError, match=message):
        base.sample(unets[BASE], **{"positive": text, "negative": text, **SMALL} | settings)


def test_the_stages_are_not_taken_for_each_other(unets, sides):
    low = torch.zeros(1, 4, 64, 64)
    with pytest.raises(ValueError, match="this UNet is of the stage relay"):
        base.sample(unets[RELAY], *sides, width=512, height=512, seeds=[0])
    with pytest.raises(ValueError, match="this UNet is of the stage base"):
        base.relay(unets[BASE], *sides, low, seeds=[0])
    for steps, relay_steps in ((4, 5), (4, 0)):
        with pytest.raises(ValueError, match=f"relay_steps is {relay_steps}"):
            base.relay(unets[RELAY], *sides, low, seeds=[0], steps=steps, relay_steps=relay_steps)
    with pytest.raises(ValueError, match="1 pictures and 2 seeds"):
        base.relay(unets[RELAY], *sides, low, seeds=[0, 1])


@pytest.mark.parametrize(("width", "height", "pictures", "cfg"), [(512, 512, 1, 7.5), (512, 256, 2, 1.0), (1024, 1024, 1, 7.5)])
def test_memory_is_predicted_within_10_percent(unets, width, height, pictures, cfg):
    text = torch.zeros(1, 225, 32)
    size = {"width": width, "height": height, "seeds": [0] * pictures}
    measured = allocator_peak(lambda: base.sample(unets[BASE], text, text, steps=1, cfg=cfg, **size))
    job = Job(width, height, pictures, guided=cfg != 1)
    assert unet_bytes(unets[BASE].model.config, 4, job) == pytest.approx(measured, rel=0.1)


def test_the_vae_is_never_computed_in_float16(models):
    assert base.load_vae(models / "diffusers" / BASE, "float16").dtype == torch.float32


# The nodes


def test_the_nodes_paint_and_relay_what_the_library_does(unets, vae, sides):
    (text_encoder,) = NODES["GLMImageLoadT5"]().load("CogView3-Plus-3B", "auto")
    encoded = NODES["GLMImageCogView3Encode"]().encode(text_encoder, PROMPT, family="CogView3-Base")
    model, coder = NODES["GLMImageLoadCogView3Base"]().load(BASE, "auto")
    (painted,) = NODES["GLMImageCogView3BaseSampler"]().sample(model, *encoded[:2], 256, 288, 2, 7, 3, 5.0)
    small = base.sample(unets[BASE], *sides, width=256, height=288, seeds=[7, 8], steps=3, cfg=5.0)
    torch.testing.assert_close(painted["samples"], small)
    (picture,) = NODES["GLMImageVAEDecode"]().decode(coder, painted)
    picture = picture[:, :256]
    second, _ = NODES["GLMImageLoadCogView3Base"]().load(RELAY, "auto")
    (relayed,) = NODES["GLMImageCogView3Relay"]().sample(second, coder, picture, *encoded[:2], 9, 4, 2, 5.0)
    low = encode(vae, base.enlarged(picture))
    expected = base.relay(unets[RELAY], *sides, low, seeds=[9, 10], steps=4, relay_steps=2, cfg=5.0)
    torch.testing.assert_close(relayed["samples"], expected)
    assert decode(vae, relayed["samples"]).shape == (2, 512, 512, 3)


def test_the_loaders_list_their_own_kind(models, quiet_host, tmp_path):
    def listed(name):
        return NODES[name].INPUT_TYPES()["required"]["checkpoint"][0]

    assert listed("GLMImageLoadCogView3Base") == sorted(CHECKPOINTS)
    assert listed("GLMImageLoadT5") == listed("GLMImageLoadCogView3") == ["CogView3-Plus-3B"]
    assert NODES["GLMImageLoadCogView3Base"].VALIDATE_INPUTS(RELAY) is True
    assert NODES["GLMImageLoadT5"].VALIDATE_INPUTS("CogView3-Plus-3B") is True
    assert "no folder with T5 'GLM-Image'" in NODES["GLMImageLoadT5"].VALIDATE_INPUTS("GLM-Image")
    shutil.copytree(models / "diffusers" / BASE, tmp_path / "diffusers" / BASE)
    quiet_host.models = tmp_path
    index = tmp_path / "diffusers" / BASE / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"stage": "last"}))
    assert "names stage 'last'" in NODES["GLMImageLoadCogView3Base"].VALIDATE_INPUTS(BASE)
    next((tmp_path / "diffusers" / BASE / "unet").glob("*.safetensors")).unlink()
    assert "is missing its weights" in NODES["GLMImageLoadCogView3Base"].VALIDATE_INPUTS(BASE)


def test_models_of_other_families_are_refused(models):
    (t5,) = NODES["GLMImageLoadT5"]().load("CogView3-Plus-3B", "auto")
    positive, negative, _ = NODES["GLMImageCogView3Encode"]().encode(t5, PROMPT)
    plus, *_ = NODES["GLMImageLoadCogView3"]().load("CogView3-Plus-3B", "auto")
    model, _ = NODES["GLMImageLoadCogView3Base"]().load(BASE, "auto")
    with pytest.raises(ValueError, match="model is not CogView3-Base"):
        NODES["GLMImageCogView3BaseSampler"]().sample(plus, positive, negative, 256, 256, 1, 0, 1, 7.5)
    with pytest.raises(ValueError, match="with family CogView3-Base"):
        NODES["GLMImageCogView3BaseSampler"]().sample(model, positive, negative, 256, 256, 1, 0, 1, 7.5)
    with pytest.raises(ValueError, match="model is not CogView3-Plus"):
        NODES["GLMImageCogView3Sampler"]().sample(model, positive, negative, 512, 512, 1, 0, 1, 5.0, 1.0)


def test_a_unet_can_come_block_by_block(unets, sides):
    unet = unets[BASE]
    whole = base.sample(unet, *sides, **SMALL, steps=1)
    with streamed(unet.model, unet.blocks, resident=1, device=torch.device("cpu")):
        torch.testing.assert_close(base.sample(unet, *sides, **SMALL, steps=1), whole)
