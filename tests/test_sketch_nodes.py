"""From sketch to picture, from latents to a larger picture, node by node on the tiny checkpoint."""

import asyncio
from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.draw import Sampling
from glm_image_pack.glmimage_core.glm_image.plans.entropy import token_entropies, token_information
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.glm_image.sketch import sketch_priors
from glm_image_pack.glmimage_core.language import vlm as vlms
from glm_image_pack.glmimage_core.tiny.vlm import write_vlm
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from glm_image_pack.nodes import choose

PROMPT = 'a house, the word "OPEN"'
SIZE = {"width": 256, "height": 288}


def run(name, **inputs):
    node = NODES[name]
    result = getattr(node(), node.FUNCTION)(**inputs)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    pytest.importorskip("transformers.models.glmga", reason="this transformers has no Glmga")
    folder = tmp_path_factory.mktemp("LLM") / "Glmga"
    write_vlm(folder)
    return vlms.load_vlm(folder)


@pytest.fixture
def sketches(ar):
    return run("GLMImageSketchPriors", ar=ar, prompt=PROMPT, **SIZE, count=3, seed=7)[0]


@pytest.fixture
def applied(encoder):
    def apply(prior):
        positive, negative, *_ = run("GLMImageEncodePrompt", glyph_encoder=encoder, prompt=PROMPT)
        return dict(
            zip(
                ("positive", "negative"),
                run("GLMImageApplyPrior", positive=positive, negative=negative, prior=prior),
                strict=True,
            )
        )

    return apply


def test_sketches_are_painted_chosen_and_expanded(ar, dit, vae, applied, sketches):
    (latent,) = run("GLMImageSampler", model=dit, **applied(sketches), seed=1, steps=1, cfg=1.0)
    (drafts,) = run("GLMImageVAEDecode", vae=vae, samples=latent)
    assert drafts.shape == (3, sketches.height, sketches.width, 3)
    (sheet,) = run("GLMImageContactSheet", images=drafts, columns=3)
    assert sheet.shape == (1, sketches.height, 3 * sketches.width, 3)
    (two,) = run("GLMImageChoosePriors", prior=sketches, numbers="2, 0")
    prior, width, height = run("GLMImageExpandPriors", ar=ar, sketches=two, copies=2, seed=7)
    assert (width, height) == (256, 288) and prior.batch == 4
    assert torch.equal(prior.preview, sketches.tokens[[2, 2, 0, 0]])
    (whole,) = run("GLMImageGeneratePrior", ar=ar, prompt=PROMPT, **SIZE, batch_size=1, seed=9)
    (again, *_) = run("GLMImageExpandPriors", ar=ar, sketches=two, copies=1, seed=9)
    assert torch.equal(again.tokens[:1], whole.tokens)
    (latent,) = run("GLMImageSampler", model=dit, **applied(again), seed=1, steps=1, cfg=1.0)
    assert latent["samples"].shape == (2, 16, 36, 32)


def test_the_surest_are_those_whose_tokens_are_likeliest(ar, sketches):
    bits = token_information(ar, sketches).mean((1, 2)).tolist()
    order = sorted(range(3), key=bits.__getitem__)
    prior, numbers = run("GLMImageChooseSurest", ar=ar, prior=sketches, keep=2)
    assert numbers == f"{order[0]}, {order[1]}" and torch.equal(prior.tokens, sketches.tokens[order[:2]])
    everything, _ = run("GLMImageChooseSurest", ar=ar, prior=sketches, keep=64)
    assert everything.batch == 3


def test_information_is_the_entropy_on_average_where_the_model_draws_as_it_thinks(ar):
    settings = {"seed": 3, "batch": 24, "sampling": Sampling(temperature=1, top_p=1, top_k=0)}
    drawn = sketch_priors(ar, PROMPT, 192, 192, **settings)
    excess = (token_information(ar, drawn) - token_entropies(ar, drawn)).sum((1, 2))
    assert abs(excess.mean()) < 4 * excess.std() / len(excess) ** 0.5
    likely = sketch_priors(ar, PROMPT, 192, 192, **settings | {"sampling": Sampling(0.1)})
    assert token_information(ar, likely).mean((1, 2)).max() < token_information(ar, drawn).mean((1, 2)).min()


def test_a_reader_chooses_by_the_texts_of_the_prompt(vlm, sketches, monkeypatch):
    """The tiny model reads nothing, so its answers stand here; the question is put to the real one."""
    asked, answers = [], iter(["OPXX", "the word OPEN", "nothing"])
    really = choose.ask

    def answer(wire, question, **settings):
        asked.append(really(wire, question, **settings | {"max_tokens": 4}))
        return vlms.Answer(next(answers))

    monkeypatch.setattr(choose, "ask", answer)
    images = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    prior, numbers = run("GLMImageChooseByText", vlm=vlm, prior=sketches, images=images, keep=2)
    assert numbers == "1, 0" and torch.equal(prior.tokens, sketches.tokens[[1, 0]]) and len(asked) == 3
    with pytest.raises(ValueError, match="2 images and 3 plans do not go together"):
        run("GLMImageChooseByText", vlm=vlm, prior=sketches, images=images[:2], keep=1)
    silent = replace(sketches, prompt="a house")
    with pytest.raises(ValueError, match="quotes no text"):
        run("GLMImageChooseByText", vlm=vlm, prior=silent, images=images, keep=1)


def test_a_variation_leads_from_one_seed_to_another(ar):
    given = {"ar": ar, "prompt": PROMPT, **SIZE, "batch_size": 2}
    (own,) = run("GLMImageGeneratePrior", **given, seed=1)
    (other,) = run("GLMImageGeneratePrior", **given, seed=30)
    for strength, expected in ((0.0, own.tokens[[0, 0]]), (1.0, other.tokens)):
        (variation,) = run("GLMImageVariation", variation_seed=30, strength=strength)
        (varied,) = run("GLMImageGeneratePrior", **given, seed=1, variation=variation)
        assert torch.equal(varied.tokens, expected)
        (sketched,) = run("GLMImageSketchPriors", ar=ar, prompt=PROMPT, **SIZE, count=2, seed=1, variation=variation)
        (expanded, *_) = run("GLMImageExpandPriors", ar=ar, sketches=sketched, copies=1, seed=1, variation=variation)
        assert torch.equal(expanded.tokens, expected)


def test_enlarged_latents_get_a_plan_of_their_own(ar, dit, vae, encoder, applied):
    prior = generate_prior(ar, PROMPT, 256, 288, seed=3, batch=2)
    settings = {"model": dit, "seed": 1, "steps": 1, "cfg": 1.5}
    (latent,) = run("GLMImageSampler", **settings, **applied(prior))
    larger = {"samples": torch.nn.functional.interpolate(latent["samples"], scale_factor=1.5)[..., :52, :]}
    with pytest.raises(ValueError, match="connect ar and vae to Apply Prior"):
        run("GLMImageSampler", **settings, **applied(prior), denoise=0.5, latent_image=larger)
    (new,) = run("GLMImagePriorFromLatent", ar=ar, vae=vae, samples=larger)
    assert (new.width, new.height, new.batch) == (384, 416, 2)
    (out,) = run("GLMImageSampler", **settings, **applied(new), denoise=0.5, latent_image=larger)
    positive, negative, *_ = run("GLMImageEncodePrompt", glyph_encoder=encoder, prompt=PROMPT)
    given = {"positive": positive, "negative": negative, "prior": prior}
    sides = run("GLMImageApplyPrior", **given, ar=ar, vae=vae)
    for latent_image, denoise, expected in ((larger, 0.5, out), (latent, 1.0, latent), (None, 1.0, latent)):
        (painted,) = run(
            "GLMImageSampler", **settings, positive=sides[0], negative=sides[1], denoise=denoise, latent_image=latent_image
        )
        assert torch.equal(painted["samples"], expected["samples"])
    with pytest.raises(ValueError, match="both or none"):
        run("GLMImageApplyPrior", **given, vae=vae)


def test_tiles_leave_the_given_model_as_it_is(ar, dit, applied):
    prior = generate_prior(ar, PROMPT, 256, 288, seed=3)
    (tiles,) = run("GLMImageTiles", model=dit, tile=192, overlap=64)
    whole, tiled, again = (
        run("GLMImageSampler", model=model, **applied(prior), seed=1, steps=1, cfg=1.0)[0]["samples"]
        for model in (dit, tiles, dit)
    )
    assert torch.equal(whole, again) and not torch.allclose(whole, tiled, atol=1e-3) and dit.tiling is None


def test_what_cannot_be_is_told_when_the_graph_is_queued():
    assert "counted from 0" in NODES["GLMImageChoosePriors"].VALIDATE_INPUTS("first")
    assert "no plan is chosen" in NODES["GLMImageChoosePriors"].VALIDATE_INPUTS("")
    assert NODES["GLMImageChoosePriors"].VALIDATE_INPUTS(None) is True
    assert "0..128" in NODES["GLMImageTiles"].VALIDATE_INPUTS(160, tile=256)
    assert NODES["GLMImageTiles"].VALIDATE_INPUTS(64, tile=None) is True
    assert "empty" in NODES["GLMImageSketchPriors"].VALIDATE_INPUTS(256, height=256, prompt=" ")
    assert "multiple of 32" in NODES["GLMImageSketchPriors"].VALIDATE_INPUTS(257, height=256, prompt="a")
