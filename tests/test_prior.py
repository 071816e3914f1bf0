"""Prior tokens: exact counts, own randomness, progress and interruption."""

import copy
from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core.diffusion import Grid
from glm_image_pack.glmimage_core.glm_image.draw import Sampling
from glm_image_pack.glmimage_core.glm_image.files.load import load_ar
from glm_image_pack.glmimage_core.glm_image.layout import prompt_ids, prompt_positions
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior

from pictures import pattern

PROMPT = "a red house"


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(ar):
    first = generate_prior(ar, PROMPT, 256, 320, seed=5)
    assert torch.equal(first.tokens, generate_prior(ar, PROMPT, 256, 320, seed=5).tokens)
    assert not torch.equal(first.tokens, generate_prior(ar, PROMPT, 256, 320, seed=6).tokens)
    assert first.tokens.shape == (1, 10, 8) and first.tokens.dtype == torch.int64
    assert first.preview.shape == (1, 17, 14)


def test_each_image_of_a_batch_can_be_made_again_alone(ar):
    batch = generate_prior(ar, PROMPT, 256, 256, seed=2**64 - 2, batch=3)
    for i, seed in enumerate([2**64 - 2, 2**64 - 1, 0]):
        alone = generate_prior(ar, PROMPT, 256, 256, seed=seed)
        assert torch.equal(batch.tokens[i], alone.tokens[0])
        assert torch.equal(batch.preview[i], alone.preview[0])
    assert not torch.equal(batch.tokens[0], batch.tokens[1])


def test_the_global_seed_is_neither_used_nor_touched(ar):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    tokens = generate_prior(ar, PROMPT, 256, 256, seed=5).tokens
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(tokens, generate_prior(ar, PROMPT, 256, 256, seed=5).tokens)


def test_no_token_outside_the_codebook_even_when_the_model_wants_nothing_else(ar):
    eager = copy.deepcopy(ar.model)
    direction = torch.randn(eager.lm_head.weight.shape[1], generator=torch.Generator().manual_seed(0))
    eager.lm_head.weight.data[ar.codebook_size :] = 1000 * direction  # end of image and other ids beyond, both signs
    eager.lm_head.weight.data[ar.codebook_size + 1 :: 2] *= -1
    prior = generate_prior(replace(ar, model=eager), PROMPT, 256, 256, seed=0)
    assert prior.tokens.shape == (1, 8, 8)
    assert prior.tokens.max() < ar.codebook_size and prior.preview.max() < ar.codebook_size


def test_progress_counts_every_token(ar, encode_reference):
    seen = []
    watch = lambda done, total, preview=None: seen.append((done, total))  # noqa: E731
    generate_prior(ar, PROMPT, 256, 256, seed=0, lookahead=1, progress=watch)
    assert seen == [(i, 256 + 64) for i in range(256 + 64 + 1)]  # before the first token too
    seen.clear()
    references = [encode_reference(pattern(128, 128, 3))]
    prior = generate_prior(ar, PROMPT, 256, 256, seed=0, references=references, progress=watch)
    assert seen[0] == (0, 64) and seen[-1] == (64, 64)  # an edit has no preview
    assert len(seen) == 1 + 1 + prior.passes  # and one for the prompt, which gives the first token


def test_the_picture_of_the_plan_fills_up(ar):
    pictures = []
    progress = lambda done, total, preview=None: pictures.append(preview()) if done in (10, 256, 257, 320) else None  # noqa: E731
    prior = generate_prior(ar, PROMPT, 256, 256, seed=0, batch=2, progress=progress)
    small, whole, begun, done = pictures
    assert [picture.size for picture in pictures] == [(2 * 128, 128), (2 * 128, 128), (2 * 64, 64), (2 * 64, 64)]
    assert small.getpixel((127, 127)) == begun.getpixel((63, 63)) == (32, 32, 32)  # not there yet
    for picture, tokens in ((whole, prior.preview), (done, prior.tokens)):
        for image in (0, 1):
            for row, column in ((0, 0), (3, 5), (7, 7)):
                left = image * tokens.shape[2] + column
                colour = tuple(ar.palette[tokens[image, row, column]].tolist())
                assert picture.getpixel((left * 8 + 4, row * 8 + 4)) == colour


def test_an_interruption_stops_at_that_token_and_the_next_run_is_unaffected(ar):
    class Interrupted(Exception):
        pass

    seen = []

    def stop(done, total, preview=None):
        seen.append(done)
        if done >= 7:
            raise Interrupted

    expected = generate_prior(ar, PROMPT, 256, 256, seed=0).tokens
    for lookahead in (1, 8):
        seen.clear()
        with pytest.raises(Interrupted):
            generate_prior(ar, PROMPT, 256, 256, seed=0, lookahead=lookahead, progress=stop)
        assert 7 <= seen[-1] < 7 + lookahead and all(done < 7 for done in seen[:-1])
    assert torch.equal(expected, generate_prior(ar, PROMPT, 256, 256, seed=0).tokens)


def test_temperature_zero_is_greedy_and_warns(ar, caplog):
    greedy = [generate_prior(ar, PROMPT, 256, 256, seed=seed, sampling=Sampling(0)).tokens for seed in (0, 1)]
    assert torch.equal(*greedy)
    assert "degenerates" in caplog.text


def test_sampling_settings_change_what_is_drawn(ar):
    settings = [Sampling(), Sampling(top_k=0), Sampling(top_k=1), Sampling(top_p=1), Sampling(temperature=2.0)]
    drawn = [tuple(generate_prior(ar, PROMPT, 256, 256, seed=0, sampling=s).tokens.flatten().tolist()) for s in settings]
    assert len(set(drawn)) == len(settings)
    assert drawn[2] == tuple(generate_prior(ar, PROMPT, 256, 256, seed=0, sampling=Sampling(0)).tokens.flatten().tolist())


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((-0.1,), "temperature"),
        ((float("nan"),), "temperature"),
        ((0.9, 0), "top_p"),
        ((0.9, 1.1), "top_p"),
        ((0.9, 0.5, -1), "top_k"),
    ],
)
def test_meaningless_sampling_is_refused(values, name):
    with pytest.raises(ValueError, match=name):
        Sampling(*values)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(ar, prompt):
    with pytest.raises(ValueError, match="empty"):
        generate_prior(ar, prompt, 256, 256, seed=0)


@pytest.mark.parametrize("mark", ["<|image|>", "<sop>", "<|dit_token_257|>"])
def test_a_control_token_in_the_prompt_is_refused(ar, mark):
    with pytest.raises(ValueError, match="control token"):
        generate_prior(ar, f"a house {mark} here", 256, 256, seed=0)


def test_the_prompt_carries_the_large_grid_first_and_then_the_preview(ar):
    ids, starts = prompt_ids(ar, "hi", [Grid(16, 15), Grid(8, 7)], [])
    assert ar.tokenizer.decode(ids) == "hi<sop>8 7<eop><sop>16 15<eop><|dit_token_256|>"
    assert starts == []


def test_an_edit_carries_each_references_tokens_between_its_marks(ar, encode_reference):
    references = [encode_reference(pattern(128, 160, 3)), encode_reference(pattern(160, 128, 5))]
    ids, starts = prompt_ids(ar, "hi", [Grid(8, 7)], [reference.vision_tokens for reference in references])
    for start, reference in zip(starts, references, strict=True):
        tokens = reference.vision_tokens.flatten().tolist()
        assert ids[start : start + 20].tolist() == tokens
        assert ids[start - 1] == 256 and ids[start + 20] == 257
    assert ar.tokenizer.decode(ids[starts[1] + 21 :]) == "hi<sop>8 7<eop><|dit_token_256|>"


def test_positions_are_those_of_transformers(ar, encode_reference):
    references = [encode_reference(pattern(128, 256, 3)), encode_reference(pattern(256, 128, 5))]
    for given, grids in (([], [Grid(16, 16), Grid(8, 9)]), (references, [Grid(8, 9)])):
        ids, starts = prompt_ids(ar, "some words", grids, [reference.vision_tokens for reference in given])
        positions, end = prompt_positions(len(ids), starts, [reference.grid for reference in given])
        thw = [[1, *reference.grid] for reference in given] + [[1, *grid] for grid in reversed(grids)]
        core = ar.model.model
        theirs, _ = core.get_rope_index(ids[None], image_grid_thw=torch.tensor(thw), images_per_sample=torch.tensor([len(thw)]))
        assert torch.equal(positions, theirs[:, 0])
        assert core._cached_decode_position_ids[0, :, 0].tolist() == [end] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_computes_no_numbers_is_told_before_a_token(folder, value):
    """Softmax of nan has its largest number at token 0."""
    broken = load_ar(folder)
    broken.model.lm_head.weight.data[3, 5] = value
    with pytest.raises(ValueError, match="not finite in torch.float32: load it in bfloat16 or float32"):
        generate_prior(broken, "a tree", 256, 256, seed=0)
