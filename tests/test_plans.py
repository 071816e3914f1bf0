"""Plans looked at and plans of pictures."""

import math
from dataclasses import replace

import pytest
import torch
from glm_image_pack.bench.measure import allocator_peak
from glm_image_pack.glmimage_core.glm_image import prior as planning
from glm_image_pack.glmimage_core.glm_image import recording
from glm_image_pack.glmimage_core.glm_image.ar_model import vision_tokens
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.memory import entropy_bytes
from glm_image_pack.glmimage_core.glm_image.plans.draft import draft_of
from glm_image_pack.glmimage_core.glm_image.plans.entropy import token_entropies
from glm_image_pack.glmimage_core.glm_image.plans.from_picture import plan_size, prior_from_pictures
from glm_image_pack.glmimage_core.glm_image.plans.look import as_squares, heat, laid_over, token_colours
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.images import from_picture
from glm_image_pack.glmimage_core.placement.residency import Residency
from glm_image_pack.glmimage_core.vae import decode
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES

from pictures import pattern
from plans import plan

# A picture's plan


@pytest.mark.parametrize(
    ("picture", "asked", "size"),
    [
        ((640, 480), (0, 0), (640, 480)),
        ((641, 500), (0, 0), (640, 512)),
        ((640, 480), (320, 0), (320, 256)),
        ((640, 480), (0, 960), (1280, 960)),
        ((640, 480), (256, 256), (256, 256)),
        ((50, 50), (0, 0), (64, 64)),
    ],
)
def test_a_side_that_is_left_open_follows_from_the_picture(picture, asked, size):
    assert plan_size(picture, *asked) == size


def test_a_picture_has_the_vision_tokens_of_its_size_as_its_plan(ar):
    pictures = [pattern(256, 192, 3), pattern(333, 444, 5)]
    prior = prior_from_pictures(ar, pictures, 256, 192)
    assert prior.tokens.shape == (2, 6, 8) and prior.tokens.dtype == torch.int64 and prior.preview is None
    assert torch.equal(prior.tokens[0], vision_tokens(ar, pictures[0]))
    assert torch.equal(prior.tokens[1], vision_tokens(ar, pictures[1].resize((256, 192), 1)))
    assert prior.codebook == ar.codebook and (prior.width, prior.height) == (256, 192)


@pytest.mark.parametrize("size", [(192, 4096), (4096, 192), (2048, 1536)])
def test_a_plan_may_have_any_size(ar, size):
    assert prior_from_pictures(ar, [pattern(64, 64, 3)], *size).tokens.shape == (1, size[1] // 32, size[0] // 32)


def test_a_bad_size_is_refused_before_the_model_runs(ar):
    with pytest.raises(ValueError, match="992 or 1024"):
        prior_from_pictures(None, [pattern(64, 64, 3)], 1000, 1024)


# Colours


def test_a_token_has_one_colour_and_others_have_others():
    tokens = torch.arange(80).view(1, 8, 10)
    for palette in (None, torch.arange(240).view(80, 3).to(torch.uint8)):
        colours = token_colours(tokens, palette)
        assert colours.shape == (1, 8, 10, 3) and colours.min() >= 0 and colours.max() <= 1
        assert torch.equal(colours[0, 7, 3], token_colours(tokens[:, 7:8, 3:4], palette)[0, 0, 0])
        assert len(colours.view(-1, 3).unique(dim=0)) == 80
    assert torch.equal(colours[0, 0, 1] * 255, torch.tensor([3.0, 4.0, 5.0]))


def test_squares_stand_where_their_tokens_plan():
    cells = torch.rand(2, 3, 4, 3)
    squares = as_squares(cells)
    assert squares.shape == (2, 96, 128, 3)
    for row, column in ((0, 0), (2, 3), (1, 2)):
        area = squares[:, row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        assert (area == cells[:, row, None, column, None]).all()


def test_the_grid_lies_over_a_picture_of_any_size():
    cells, image = torch.rand(1, 3, 4, 3), torch.rand(2, 60, 100, 3)
    assert torch.equal(laid_over(image, cells, 0), image)
    assert torch.equal(laid_over(image, cells, 1)[1], as_squares(cells, 100, 60)[0])
    half = laid_over(image, cells, 0.5)
    assert torch.allclose(half[0, 0, 0], (image[0, 0, 0] + cells[0, 0, 0]) / 2)
    with pytest.raises(ValueError, match="2 images and 3 plans"):
        laid_over(image, torch.rand(3, 3, 4, 3), 0.5)


def test_heat_goes_from_black_to_white():
    assert heat(torch.tensor([0.0, 0.5, 1.0])).tolist() == [[0, 0, 0], [1, 0.5, 0], [1, 1, 1]]


# Entropy


def expected_bits(ar, monkeypatch, **arguments):
    """A plan, and the entropy in bits of the logits that each of its tokens was drawn from, one pass a token."""
    seen = []

    def watched(sampling, logits, noise):
        seen.append(torch.distributions.Categorical(logits=logits.reshape(-1, logits.shape[-1])).entropy() / math.log(2))
        return draw(sampling, logits, noise)

    draw = recording.draw
    for module in (recording, planning):
        monkeypatch.setattr(module, "draw", watched)
    prior = generate_prior(ar, "a house", 256, 192, seed=0, lookahead=1, **arguments)
    monkeypatch.undo()
    return prior, torch.stack(seen, dim=1)  # [B, T]


def test_entropies_are_those_of_the_distributions_that_the_tokens_were_drawn_from(ar, monkeypatch, encode_reference):
    references = [encode_reference(pattern(128, 160, 3))]
    prior, bits = expected_bits(ar, monkeypatch, references=references, batch=2)
    found = token_entropies(ar, prior, references=references)
    assert torch.allclose(found, bits.view(2, 6, 8), atol=1e-4)
    assert not torch.allclose(token_entropies(ar, prior), found, atol=1e-3)  # it does not see what the planner saw
    assert bits.std() > 1e-3


def test_a_place_has_the_bits_of_its_token_and_its_share_of_the_previews(ar, monkeypatch):
    prior, bits = expected_bits(ar, monkeypatch)
    found, small = token_entropies(ar, prior), prior.preview[0].numel()
    assert found.shape == (1, 6, 8)
    preview, own = bits[:, :small].view(prior.preview.shape), bits[:, small:].view(1, 6, 8)
    assert preview.shape == (1, 13, 18)
    assert found.mean() == pytest.approx(float(own.mean() + preview.mean() * small / 48), rel=0.02)
    assert found[0, 0, 0] == pytest.approx(float(own[0, 0, 0] + preview[0, :3, :3].mean() * small / 48), rel=1e-3)


def test_a_plan_of_another_model_or_without_a_prompt_cannot_be_asked_about(ar):
    with pytest.raises(ValueError, match="another checkpoint's codebook"):
        token_entropies(ar, replace(plan(), prompt="a house", codebook="other"))
    with pytest.raises(ValueError, match="prompt is empty"):
        token_entropies(ar, plan())


@pytest.mark.parametrize("side", [256, 512])
def test_the_memory_of_entropies_is_predicted(ar, side):
    prior = generate_prior(ar, "a house", side, side, seed=0)
    measured = allocator_peak(lambda: token_entropies(ar, prior))
    assert 0.8 < measured / entropy_bytes(ar.model.config, 4, 40 + prior.tokens_a_picture) < 1.05


# Drafts


def test_a_draft_is_the_smaller_grid(ar):
    large = generate_prior(ar, "a house", 768, 576, seed=0, lookahead=32)
    draft = draft_of(large)
    assert torch.equal(draft.tokens, large.preview) and (draft.width, draft.height) == (18 * 32, 13 * 32)
    assert draft_of(draft) is draft
    small = generate_prior(ar, "a house", 256, 256, seed=0)
    assert draft_of(small) is small  # its preview has four times as many tokens


# The nodes


def test_prior_from_image_needs_the_vision_half_alone(ar, folder, quiet_host):
    """On a device, played by cpu:0."""
    quiet_host.residency = Residency(torch.device("cpu:0"), free_bytes=lambda: 10**12)
    image = from_picture(pattern(250, 200, 3))
    prior, width, height = NODES["GLMImagePriorFromImage"]().read(ar, image, 0, 0, "stripes")
    assert list(quiet_host.residency.resident) == [ar.halves["vision"]]
    assert (width, height) == (prior.width, prior.height) == (256, 192) and prior.prompt == "stripes"
    assert torch.equal(prior.tokens, prior_from_pictures(ar, [pattern(250, 200, 3)], 256, 192).tokens)


def test_a_size_that_no_picture_may_have_is_told_early(ar):
    node = NODES["GLMImagePriorFromImage"]
    assert node.VALIDATE_INPUTS(0, height=0) is True and node.VALIDATE_INPUTS(None, height=None) is True
    assert "992 or 1024" in node.VALIDATE_INPUTS(1000, height=0)
    assert "32 is outside" in node.VALIDATE_INPUTS(0, height=32)
    with pytest.raises(ValueError, match="width 96 is outside"):  # what follows from the picture
        node().read(ar, from_picture(pattern(100, 300, 3)), 0, 0)


def test_preview_prior_shows_the_grid_that_is_asked_for(ar):
    prior = generate_prior(ar, "a house", 256, 192, seed=0)
    show = NODES["GLMImagePreviewPrior"]().show
    (alone,) = show(prior, "plan", 0.5, ar)
    assert torch.equal(alone[0, 40, 70], ar.palette[prior.tokens[0, 1, 2]] / 255)
    (small,) = show(prior, "preview", 0.5)
    assert small.shape == alone.shape == (1, 192, 256, 3)
    image = torch.rand(2, 100, 100, 4)
    assert torch.equal(show(prior, "plan", 0.0, ar, image)[0], image[..., :3])
    with pytest.raises(ValueError, match="has no preview"):
        show(plan(), "preview", 0.5)
    with pytest.raises(ValueError, match="another checkpoint's codebook"):
        show(replace(prior, codebook="other"), "plan", 0.5, ar)


def test_prior_entropy_marks_what_was_unsure(ar, quiet_host):
    prior = generate_prior(ar, "a house", 256, 192, seed=0)
    ask = NODES["GLMImagePriorEntropy"]().ask
    image, mask, bits = ask(ar, prior, 0.0)
    expected = token_entropies(ar, prior)
    assert image.shape == (1, 192, 256, 3) and mask.shape == (1, 192, 256) and mask.max() == 1
    assert torch.allclose(mask[0, 16::32, 16::32] * expected.max(), expected[0], rtol=1e-4)
    assert bits == pytest.approx(float(expected.mean()))
    half = ask(ar, prior, 2 * float(expected.max()))[1]
    assert torch.allclose(half, mask / 2, rtol=1e-4)
    with pytest.raises(ValueError, match="prompt is empty"):
        ask(ar, plan(), 0.0)
    assert ask(ar, plan(), 0.0, "a house")[2] > 0


def test_a_draft_is_painted_from_what_apply_prior_applied(ar, encoder, dit, vae, glyphs):
    prior = generate_prior(ar, "a house", 768, 576, seed=0, lookahead=32)
    positive, negative, _ = NODES["GLMImageEncodePrompt"]().encode(encoder, 'the word "OPEN"')
    sides = NODES["GLMImageApplyPrior"]().apply(positive, negative, prior)
    (image,) = NODES["GLMImageDraft"]().paint(dit, vae, *sides, seed=3, steps=2, cfg=1.5)
    expected = decode(vae, sample(dit, draft_of(prior), *glyphs, seeds=[3], steps=2))
    assert torch.equal(image, expected) and image.shape == (1, 416, 576, 3)
    assert sides[0][0][1]["glm_image_prior"] is prior  # nothing is changed in place
    with pytest.raises(ValueError, match="swap positive and negative"):
        NODES["GLMImageDraft"]().paint(dit, vae, *reversed(sides), seed=3, steps=2, cfg=1.5)
