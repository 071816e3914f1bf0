"""CogView3-Plus against diffusers' pipeline, and its nodes. With a random one in the released layout."""

import json
import shutil
import sys
import time

import pytest
import torch
from diffusers import CogView3PlusPipeline
from glm_image_pack.bench.measure import allocator_peak
from glm_image_pack.glmimage_core.cogview3 import text as cogview3_text
from glm_image_pack.glmimage_core.cogview3.memory import cogview3_bytes, t5_bytes
from glm_image_pack.glmimage_core.cogview3.plus import check_folder, check_size, load_dit, sample, timesteps_of
from glm_image_pack.glmimage_core.cogview3.shared import load_vae
from glm_image_pack.glmimage_core.cogview3.text import MicroConditions, check_text_encoder, load_text_encoder
from glm_image_pack.glmimage_core.diffusion import initial_noise, latent_grid
from glm_image_pack.glmimage_core.placement.prediction import Job
from glm_image_pack.glmimage_core.vae import decode, encode
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES

NAME = "CogView3-Plus-3B"
PROMPT = "a red cat on a mat, seen from above"
LONG = "many words " * 40
SMALL = {"width": 512, "height": 512, "seeds": [0]}


@pytest.fixture(scope="module")
def folder(models):
    return models / "diffusers" / NAME


@pytest.fixture(scope="module")
def dit(folder):
    return load_dit(folder)


@pytest.fixture(scope="module")
def encoder(folder):
    return load_text_encoder(folder)


@pytest.fixture(scope="module")
def vae(folder):
    return load_vae(folder)


@pytest.fixture(scope="module")
def pipeline(folder):
    pipeline = CogView3PlusPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def wires():
    return NODES["GLMImageLoadCogView3"]().load(NAME, "auto")


def of_pipeline(pipeline, width, height, seeds, steps, cfg, **options) -> torch.Tensor:
    noise = initial_noise(seeds, 16, latent_grid(width, height))
    return torch.tensor(
        pipeline(
            options.pop("prompt", PROMPT),
            width=width,
            height=height,
            num_images_per_prompt=len(seeds),
            latents=noise,
            num_inference_steps=steps,
            guidance_scale=cfg,
            output_type="np",
            **options,
        ).images
    )


def paint(dit, encoder, vae, width, height, seeds, negative="", prompt=PROMPT, **settings) -> torch.Tensor:
    sides = (cogview3_text.encode(encoder, text).embeddings for text in (prompt, negative))
    return decode(vae, sample(dit, *sides, width=width, height=height, seeds=seeds, **settings))


@pytest.mark.parametrize(
    ("width", "height", "seeds", "steps", "cfg", "options"),
    [
        (512, 512, [0], 5, 5.0, {}),
        (544, 512, [3, 4], 3, 7.0, {}),
        (512, 768, [1], 3, 1.0, {}),
        (512, 512, [0], 7, 3.0, {"negative_prompt": "blurred"}),  # 7 does not divide 1000
        (512, 512, [0], 3, 5.0, {"original_size": (2048, 1024), "crops_coords_top_left": (64, 32)}),
        (512, 512, [0], 3, 5.0, {"prompt": LONG}),
    ],
)
def test_a_picture_is_the_pipelines(dit, encoder, vae, pipeline, width, height, seeds, steps, cfg, options):
    theirs = of_pipeline(pipeline, width, height, seeds, steps, cfg, **options)
    micro = None
    if "original_size" in options:
        micro = MicroConditions(options["original_size"], options["crops_coords_top_left"], (height, width))
    ours = paint(
        *(dit, encoder, vae, width, height, seeds, options.get("negative_prompt", ""), options.get("prompt", PROMPT)),
        **{"steps": steps, "cfg": cfg, "micro": micro},
    )
    assert (ours - theirs).abs().max() <= 1 / 255
    assert ours.std() > 0.05


def test_each_condition_shows_in_the_picture(dit, encoder, vae):
    settings = {"steps": 2, "width": 512, "height": 512, "seeds": [0]}
    usual = MicroConditions((512, 512), (0, 0), (512, 512))
    others = [None, *(usual._replace(**{name: (999, 333)}) for name in MicroConditions._fields)]
    pictures = [paint(dit, encoder, vae, micro=micro, **settings) for micro in others]
    pictures.append(paint(dit, encoder, vae, negative="blurred", **settings))
    pictures.append(paint(dit, encoder, vae, prompt="a blue dog", **settings))
    for index, picture in enumerate(pictures):
        assert all((picture - other).abs().max() > 1 / 255 for other in pictures[:index])


def test_image_i_of_a_batch_can_be_made_again_alone(dit, encoder, vae):
    both = paint(dit, encoder, vae, 512, 512, [5, 6], steps=2)
    assert (paint(dit, encoder, vae, 512, 512, [6], steps=2) - both[1:]).abs().max() < 1 / 255


def test_less_denoise_keeps_more_of_a_latent(dit, encoder, vae):
    latents = encode(vae, torch.rand(1, 512, 512, 3, generator=torch.Generator().manual_seed(0)))
    sides = [cogview3_text.encode(encoder, text).embeddings for text in (PROMPT, "")]
    far = [
        (sample(dit, *sides, **SMALL, steps=3, cfg=1.0, denoise=denoise, latents=latents) - latents).abs().mean().item()
        for denoise in (0.0, 0.1, 0.3, 1.0)
    ]
    assert far[0] == 0 and far[0] < far[1] < far[2] < far[3]


def test_what_is_masked_out_comes_back(dit, encoder, vae):
    latents = encode(vae, torch.rand(1, 512, 512, 3, generator=torch.Generator().manual_seed(0)))
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:, :] = 1
    sides = [cogview3_text.encode(encoder, text).embeddings for text in (PROMPT, "")]
    out = sample(dit, *sides, **SMALL, steps=4, latents=latents, mask=mask)
    torch.testing.assert_close(out[..., :32, :], latents[..., :32, :], atol=1e-3, rtol=1e-3)
    assert (out - latents)[..., 32:, :].abs().mean() > 0.1
    whole = sample(dit, *sides, **SMALL, steps=4, latents=latents, mask=torch.ones(1, 1, 64, 64))
    torch.testing.assert_close(whole, sample(dit, *sides, **SMALL, steps=4), atol=1e-3, rtol=1e-3)


def test_progress_is_reported_before_the_first_step_and_after_each(dit):
    side, calls = torch.zeros(1, 224, 32), []
    sample(dit, side, side, **SMALL, steps=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("steps", "denoise", "first"), [(50, 1.0, 999), (61, 1.0, 999), (50, 0.41, 404), (50, 0.01, 49), (1, 1.0, 999)]
)
def test_a_run_has_its_steps_and_ends_above_zero(dit, steps, denoise, first):
    timesteps = timesteps_of(dit.scheduler, steps, denoise)
    assert len(timesteps) == steps and min(timesteps) >= 0
    assert timesteps == sorted(timesteps, reverse=True) and abs(timesteps[0] - first) <= 16


def test_what_did_not_fit_is_told(encoder):
    encoded = cogview3_text.encode(encoder, LONG)
    kept = LONG.replace(" ", "")[: -len(encoded.truncated.replace(" ", ""))]
    assert encoded.embeddings.shape[1] == 224 and encoded.truncated.endswith("words")
    assert len(encoder.tokenizer(kept).input_ids) <= 224
    assert cogview3_text.encode(encoder, PROMPT).truncated == ""


def test_an_empty_prompt_is_zeros(encoder, pipeline):
    _, theirs = pipeline.encode_prompt(PROMPT)
    assert torch.equal(cogview3_text.encode(encoder, " ").embeddings, theirs)


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [(496, 512, "width is 496"), (512, 2080, "height is 2080"), (528, 512, "steps of 32"), (2048, 1056, "more than 2097152")],
)
def test_sizes_it_was_not_made_for_are_refused(width, height, message):
    with pytest.raises(ValueError, match=message):
        check_size(width, height)
    assert message in NODES["GLMImageCogView3Sampler"].VALIDATE_INPUTS(width, height=height)


def test_the_largest_sizes_and_those_over_links_are_taken():
    for width, height in ((2048, 1024), (1440, 1440), (512, 512), (None, None)):
        assert NODES["GLMImageCogView3Sampler"].VALIDATE_INPUTS(width, height=height) is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": [0] * 5}, "5 pictures at once"),
        ({"steps": 0}, "steps is 0; use 1 or more"),
        ({"cfg": -1.0}, "cfg is -1.0; use 0 or more"),
        ({"denoise": 1.5}, "denoise is 1.5; it must lie in 0..1"),
        ({"denoise": 0.5}, "denoise is 0.5, which starts from a latent image, but none is connected"),
        ({"mask": torch.ones(1, 1, 64, 64)}, "a mask keeps a part of a latent image, but none is connected"),
        ({"denoise": 0.5, "latents": torch.zeros(1, 16, 64, 64)}, "the latent image is an empty one"),
        ({"mask": torch.ones(1, 1, 64, 64), "latents": torch.zeros(1, 16, 64, 64)}, "the latent image is an empty one"),
        ({"latents": torch.ones(2, 16, 64, 64), "seeds": [0] * 3}, "2 latent images do not go with 3 images to paint"),
        ({"latents": torch.zeros(1, 4, 64, 64)}, r"are \[1, 4, 64, 64\], not \[batch, 16"),
        ({"latents": torch.zeros(1, 16, 32, 64)}, r"the latent image is \[1, 16, 32, 64\]"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_the_model_runs(dit, settings, message):
    side = torch.zeros(1, 224, 32)
    with pytest.raises(ValueError, match=message):
        sample(dit, side, side, **SMALL | settings)


@pytest.mark.parametrize(("width", "height", "pictures", "cfg"), [(512, 512, 1, 5.0), (512, 512, 2, 1.0), (1024, 512, 4, 5.0)])
def test_memory_is_predicted_within_10_percent(dit, width, height, pictures, cfg):
    side = torch.zeros(1, 224, 32)
    measured = allocator_peak(lambda: sample(dit, side, side, width=width, height=height, seeds=[0] * pictures, steps=1, cfg=cfg))
    job = Job(width, height, pictures, glyph_tokens=224, guided=cfg != 1)
    assert cogview3_bytes(dit.model.config, 4, job) == pytest.approx(measured, rel=0.1)


def test_the_text_encoder_takes_no_more_memory_than_predicted(encoder):
    measured = allocator_peak(lambda: cogview3_text.encode(encoder, PROMPT))
    assert 0.7 < measured / t5_bytes(encoder.model.config, 4, 224) < 1.02


def test_a_conditioning_of_glm_image_is_refused(wires):
    (glyphs,) = NODES["GLMImageLoadGlyphEncoder"]().load("GLM-Image", "auto")
    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(glyphs, 'a sign "OPEN"')
    with pytest.raises(ValueError, match="connect CogView3 Encode Prompt"):
        NODES["GLMImageCogView3Sampler"]().sample(wires[0], positive, negative, 512, 512, 1, 0, 1, 5.0, 1.0)


@pytest.mark.parametrize(
    ("part", "key"), [("transformer", "num_layers"), ("text_encoder", "num_layers"), ("vae", "layers_per_block")]
)
def test_a_config_of_many_more_layers_than_are_stored_is_refused_at_once(folder, tmp_path, part, key):
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: 10**6}))
    started = time.process_time()
    with pytest.raises(ValueError, match=f"{key} in .* is 1000000, and no more than"):
        (check_text_encoder if part == "text_encoder" else check_folder)(copy)
    assert time.process_time() - started < 2


def test_a_released_tokenizer_is_sentencepieces(folder, tmp_path):
    """Without tokenizer.json, which transformers makes of it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    shutil.copytree(folder, tmp_path / NAME)
    texts, own = tmp_path / "texts", tmp_path / NAME / "tokenizer"
    texts.write_text("\n".join(f"{one} {other} on a mat" for one in ("red", "blue", "old") for other in ("cat", "dog", "hat")))
    (own / "tokenizer.json").unlink()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts), model_prefix=str(own / "spiece"), vocab_size=40, hard_vocab_limit=False, minloglevel=2, **ids
    )
    read = sentencepiece.SentencePieceProcessor(model_file=str(own / "spiece.model"))
    tokenizer = load_text_encoder(tmp_path / NAME).tokenizer
    assert tokenizer("an old red hat").input_ids == [*read.encode("an old red hat"), read.eos_id()]


def test_what_a_released_tokenizer_needs_is_named_before_a_graph_runs(folder, tmp_path, quiet_host, monkeypatch):
    shutil.copytree(folder, tmp_path / "diffusers" / NAME)
    (tmp_path / "diffusers" / NAME / "tokenizer" / "tokenizer.json").unlink()
    for module in ("sentencepiece", "google", "google.protobuf"):  # as where neither package is installed
        monkeypatch.setitem(sys.modules, module, None)
    quiet_host.models = tmp_path
    problem = NODES["GLMImageLoadCogView3"].VALIDATE_INPUTS(NAME)
    assert "needs sentencepiece and protobuf: pip install sentencepiece protobuf" in problem


def other_class(copy):
    config = copy / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "SD3Transformer2DModel"}))


def other_prediction(copy):
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "epsilon"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_class, "is of a SD3Transformer2DModel"),
        (lambda copy: (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink(), "is missing its weights"),
        (lambda copy: (copy / "text_encoder" / "config.json").unlink(), "config.json is missing"),
        (lambda copy: (copy / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json is missing"),
        (lambda copy: (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"no"), "truncated or corrupt"),
    ],
)
def test_what_is_wrong_is_named_before_a_graph_runs(folder, tmp_path, quiet_host, change, message):
    shutil.copytree(folder, tmp_path / "diffusers" / NAME)
    change(tmp_path / "diffusers" / NAME)
    quiet_host.models = tmp_path
    assert message in NODES["GLMImageLoadCogView3"].VALIDATE_INPUTS(NAME)


def test_a_schedule_of_another_kind_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / NAME)
    other_prediction(tmp_path / NAME)
    with pytest.raises(ValueError, match="predicts epsilon"):
        load_dit(tmp_path / NAME)


def test_the_loader_lists_its_own_kind(folder, quiet_host, tmp_path):
    loader = NODES["GLMImageLoadCogView3"]
    assert loader.INPUT_TYPES()["required"]["checkpoint"][0] == [NAME] and loader.VALIDATE_INPUTS(NAME) is True
    assert NAME not in NODES["GLMImageLoadDiT"].INPUT_TYPES()["required"]["checkpoint"][0]
    quiet_host.models = tmp_path
    assert f"no CogView3-Plus '{NAME}'" in loader.VALIDATE_INPUTS(NAME)


def test_the_nodes_paint_the_pipelines_picture(wires, pipeline):
    model, text_encoder, vae = wires
    positive, negative, truncated = NODES["GLMImageCogView3Encode"]().encode(text_encoder, PROMPT, original_width=1024)
    (latent,) = NODES["GLMImageCogView3Sampler"]().sample(model, positive, negative, 512, 544, 1, 9, 3, 5.0, 1.0)
    (picture,) = NODES["GLMImageVAEDecode"]().decode(vae, latent)
    theirs = of_pipeline(pipeline, 512, 544, [9], 3, 5.0, original_size=(544, 1024))
    assert (picture - theirs).abs().max() <= 1 / 255 and truncated == ""


def test_a_prompt_that_is_too_long_is_warned_of(wires, caplog):
    _, _, truncated = NODES["GLMImageCogView3Encode"]().encode(wires[1], LONG)
    assert truncated and f"left out: {truncated}" in caplog.text


def test_models_of_the_two_families_are_not_taken_for_each_other(wires, vae):
    positive, negative, _ = NODES["GLMImageCogView3Encode"]().encode(wires[1], PROMPT)
    (dit,) = NODES["GLMImageLoadDiT"]().load("GLM-Image", "auto", "none")
    with pytest.raises(ValueError, match="model is not CogView3-Plus"):
        NODES["GLMImageCogView3Sampler"]().sample(dit, positive, negative, 512, 512, 1, 0, 1, 5.0, 1.0)
    with pytest.raises(ValueError, match="model is not a GLM-Image DiT"):
        NODES["GLMImageSampler"]().sample(wires[0], positive, negative, 0, 1, 1.5)
