"""The built-in model: does the picture show what the prompt says?

The share that is right is measured by `python . score`; here a few questions are asked, and what each feature of the pack costs.
"""

import asyncio
import random

import numpy as np
import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.denoise import Approximations, sample
from glm_image_pack.glmimage_core.glm_image.files.components import BUILT_IN, NANO
from glm_image_pack.glmimage_core.glm_image.files.inspect import inspect_checkpoint
from glm_image_pack.glmimage_core.glm_image.glyphs import encode_glyph_texts
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.images import to_pictures
from glm_image_pack.glmimage_core.vae import decode, encode
from glm_image_pack.glmimage_core.weights.lora import WeightedLora, applied_loras
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from glm_image_pack.training import scoring
from glm_image_pack.training.captions import random_edit
from glm_image_pack.training.drawing import draw
from glm_image_pack.training.painter import Painter
from glm_image_pack.training.reading import read
from glm_image_pack.training.world import Scene, Shape, tokens_of

from oracle import load_pipeline, run_pipeline

FOLDER = BUILT_IN[NANO]
PROMPT = "A large red star in the centre and two small yellow circles on a blue background."
WORDED = 'A large red circle in the centre and the word "HI" in black at the top on a white background.'
LANDSCAPE = Scene(8, 8, "blue", (Shape("star", "yellow", "large", 1, 1), Shape("square", "white", "small", 5, 5)))


@pytest.fixture(scope="module")
def nano() -> Painter:
    return Painter.of(FOLDER, "float32")


@pytest.fixture(scope="module")
def plan(nano):
    """What PROMPT asks for, as the AR model plans it."""
    return generate_prior(nano.glm.ar, PROMPT, 256, 256, seed=0)


@pytest.fixture
def paint(nano, plan):
    """The plan painted with other settings than usual: [256, 256, 3] in 0..1."""

    def painted(texts=(), negative=(), plan=plan, cfg=1.5, **settings) -> torch.Tensor:
        sides = (encode_glyph_texts(nano.glm.glyph_encoder, list(side)) for side in (texts, negative))
        return decode(nano.glm.vae, sample(nano.glm.dit, plan, *sides, seeds=[0], steps=20, cfg=cfg, **settings))[0]

    return painted


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return -10 * (one - other).square().mean().log10().item()


def is_as_asked(picture: torch.Tensor) -> bool:
    seen = read(picture)
    shapes = sorted((shape.kind, shape.colour, shape.size) for shape in seen.shapes)
    asked = [("circle", "yellow", "small"), ("circle", "yellow", "small"), ("star", "red", "large")]
    return seen.ground == "blue" and shapes == asked and seen.word is None


def right(nano, questions) -> list[bool]:
    return [scoring.judge(question, scoring.answer(nano, question)).right for question in questions]


def of_subject(subject: str, count: int) -> list[scoring.Question]:
    share = count / scoring.SUBJECTS[subject]
    return [question for question in scoring.questions(share) if question.subject == subject]


def test_it_is_whole_and_small():
    reports = inspect_checkpoint(FOLDER)
    assert not [problem for report in reports for problem in report.problems]
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 16e6


def test_a_picture_shows_what_the_prompt_says(paint):
    assert is_as_asked(paint())


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "least"), [("one shape", 7), ("number and place", 5)])
def test_prompts_of_all_sizes_and_both_languages_are_followed(nano, subject, least):
    assert sum(right(nano, of_subject(subject, 8))) >= least


@pytest.mark.slow
def test_edits_do_what_is_asked_and_leave_the_rest(nano):
    verdicts = [scoring.judge(question, scoring.answer(nano, question)) for question in of_subject("edit", 16)[::2]]
    assert sum(verdict.right for verdict in verdicts) >= 6
    assert sum(verdict.kept >= 28 for verdict in verdicts) >= 6


@pytest.mark.slow
def test_a_picture_is_the_pipelines(nano):
    pipeline = load_pipeline(FOLDER).to(torch.float32)
    _, theirs = run_pipeline(pipeline, PROMPT, 256, 256, 20, 1.5, seed=4)
    ours = (nano(PROMPT, [], 256, 256, seed=4).numpy() * 255).round().astype(np.int16)
    assert np.abs(ours - np.array(theirs, dtype=np.int16)).max() <= 1


def test_the_glyph_text_says_which_letters_and_nothing_else(nano, paint):
    """Where they stand is in the plan. Row 1 of the cells is where this plan has them."""
    plan = generate_prior(nano.glm.ar, WORDED, 256, 256, seed=0)
    hi, zo = (paint(texts=[text], plan=plan) for text in ("HI", "ZO"))
    words = [read(picture).word for picture in (hi, zo)]
    assert [(word.text, word.row, word.colour) for word in words] == [("HI", 1, "black"), ("ZO", 1, "black")]
    assert psnr(hi[64:], zo[64:]) > 30 > psnr(hi[32:64], zo[32:64])


@pytest.mark.slow
def test_words_are_written_letter_by_letter(nano):
    assert sum(right(nano, of_subject("word", 16))) >= 10


def test_the_image_processor_and_vision_half_see_what_was_drawn(nano):
    reference = nano.glm.reference(to_pictures(draw(LANDSCAPE)[None])[0])
    assert torch.equal(reference.vision_tokens.flatten(), tokens_of(LANDSCAPE).flatten())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["first into second", "second into first"])
def test_references_are_told_apart_by_their_order(nano, kind):
    edits = [random_edit(random.Random(f"order/{number}"), 8, 8, "en", kind=kind) for number in range(3)]
    pictures = [nano(edit.prompt, [draw(scene) for scene in edit.references], 256, 256, seed=0) for edit in edits]
    for edit, picture in zip(edits, pictures, strict=True):
        (source,) = (scene for scene in edit.references if scene is not edit.into)
        assert psnr(picture, draw(edit.into)) > psnr(picture, draw(source))


def test_guidance_follows_the_plan(paint):
    """cfg 0 is the negative side alone, which knows of no plan and no text."""
    ideal = draw(read(paint()))
    without, one, usual = (psnr(paint(cfg=cfg), ideal) for cfg in (0.0, 1.0, 1.5))
    assert without < 12 and min(one, usual) > 20


def test_a_negative_text_reaches_the_picture_and_leaves_the_word(nano, paint):
    """By how much depends on what a model makes of a text without a plan, which here is little."""
    plan = generate_prior(nano.glm.ar, WORDED, 256, 256, seed=0)
    plain, against = (paint(texts=["HI"], negative=negative, plan=plan) for negative in ((), ("XXX",)))
    assert (plain - against).abs().max() > 2 / 255
    assert read(against).word == read(plain).word


@pytest.mark.slow
def test_what_shortcuts_cost(paint):
    exact = paint()
    for approximations, least in ((Approximations(step_cache=0.1), 25), (Approximations(cfg_end=0.8), 30)):
        picture = paint(approximations=approximations)
        assert is_as_asked(picture) and psnr(picture, exact) > least


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "fp8", "nf4"])
def test_quantized_it_still_draws_what_is_asked(quantization):
    pytest.importorskip("comfy_kitchen")
    small = Painter.of(FOLDER, "float32", quantization)
    assert all(right(small, of_subject("one shape", 2)))  # nano has all of these right


@pytest.mark.slow
def test_a_lora_changes_the_picture_as_strongly_as_it_is_laid_over(nano, paint):
    layer = "transformer_blocks.4.attn1.to_out.0"
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((4, 192), (192, 4)))
    tensors = {f"{layer}.lora_A.weight": down / 14, f"{layer}.lora_B.weight": up / 2}
    exact, pictures = paint(), []
    for strength in (0.1, 1.0):
        with applied_loras(nano.glm.dit.model, [WeightedLora(tensors, strength)]):
            pictures.append(paint())
    assert is_as_asked(pictures[0]) and psnr(pictures[0], exact) > psnr(pictures[1], exact) + 6
    assert torch.equal(paint(), exact)


@pytest.mark.slow
def test_inpainting_keeps_what_is_masked_out_and_paints_the_rest_after_the_plan(nano, paint):
    start = encode(nano.glm.vae, draw(LANDSCAPE)[None])
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:, :] = 1
    picture = paint(latents=start, mask=mask)
    assert psnr(picture[:120], draw(LANDSCAPE)[:120]) > 25
    asked = draw(read(paint()))
    assert psnr(picture[136:], asked[136:]) > psnr(picture[136:], draw(LANDSCAPE)[136:])


def test_the_nodes_draw_it_too(nano):
    encoder, dit, vae, ar = (
        NODES[f"GLMImageLoad{name}"]().load(NANO, "float32", *more)[0]
        for name, more in (("GlyphEncoder", ()), ("DiT", ("none",)), ("VAE", ()), ("AR", ("none",)))
    )
    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(encoder, PROMPT)
    (prior,) = asyncio.run(NODES["GLMImageGeneratePrior"]().generate(ar, PROMPT, 256, 256, 1, 0))
    positive, negative = NODES["GLMImageApplyPrior"]().apply(positive, negative, prior)
    (latent,) = NODES["GLMImageSampler"]().sample(dit, positive, negative, 0, 20, 1.5)
    (image,) = NODES["GLMImageVAEDecode"]().decode(vae, latent)
    assert torch.equal(image[0], nano(PROMPT, [], 256, 256, seed=0))
