"""Regrowing: what the mask covers is drawn as one token at a time would be, all else stays, and forced tokens cost few passes."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image import prior as planning
from glm_image_pack.glmimage_core.glm_image import recording
from glm_image_pack.glmimage_core.glm_image.decoder import masked_window
from glm_image_pack.glmimage_core.glm_image.draw import Noise, Sampling, draw
from glm_image_pack.glmimage_core.glm_image.experience import NONE
from glm_image_pack.glmimage_core.glm_image.geometry import preview_grid, prior_grid
from glm_image_pack.glmimage_core.glm_image.layout import lay_out
from glm_image_pack.glmimage_core.glm_image.lookahead import AssumedCosts
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.glm_image.references import encode_reference
from glm_image_pack.glmimage_core.glm_image.regrow import forced_tokens, regrow_prior
from glm_image_pack.glmimage_core.masks import touched

from pictures import pattern
from plans import plan

PROMPT, SIZE = "a red house", (256, 192)
BEGIN, MIDDLE, END, NOTHING, ALL = ((0, 40), (60, 130), (150, 192), (0, 0), (0, 192))  # rows of pixels


def rows_masked(begin, end, width=SIZE[0], height=SIZE[1]):
    mask = torch.zeros(1, height, width)
    mask[:, begin:end, 70:200] = 1
    return mask


@torch.inference_mode()
def one_at_a_time(ar, forced, references, seed):
    """The tokens of one sequence: transformers' model over the whole text for each token, which is drawn unless it is forced."""
    large = prior_grid(*SIZE)
    layout = lay_out(ar, PROMPT, [large] if references else [preview_grid(large), large], references)
    noise = Noise([seed], places=len(forced), width=ar.model.config.text_config.vision_vocab_size, kept=ar.codebook_size)
    positions = torch.cat((layout.positions, layout.following), dim=1)
    core, ids = ar.model.model.language_model, layout.ids.tolist()
    for place, token in enumerate(forced):
        if token == NONE:
            embedded = ar.model.get_input_embeddings()(torch.tensor([ids]))
            hidden = core(inputs_embeds=embedded, position_ids=positions[:, None, : len(ids)], use_cache=False)
            logits = ar.model.lm_head(hidden.last_hidden_state[0, -1:])[:, : ar.codebook_size]
            token = draw(Sampling(), logits.float(), noise.windows([place], 1)[0]).item()
        ids.append(token)
    return torch.tensor(ids[len(layout.ids) :])


@pytest.fixture(scope="module")
def one_reference(ar, vae):
    return [encode_reference(ar, vae, pattern(256, 192, 3))]


@pytest.fixture(scope="module", params=["text", "edit"])
def kept(request, ar, one_reference):
    """A plan of two pictures, and the references that it is regrown with."""
    references = one_reference if request.param == "edit" else []
    return generate_prior(ar, "a green wood", *SIZE, seed=3, batch=2, references=references), references


def emitted(prior, references):
    """All tokens of a plan in the order they are emitted: [B, T]."""
    return prior.tokens.flatten(1) if references else torch.cat((prior.preview.flatten(1), prior.tokens.flatten(1)), dim=1)


@pytest.mark.parametrize("rows", [BEGIN, MIDDLE, END, ALL])
def test_masked_tokens_are_those_of_the_one_at_a_time_loop_and_all_others_stay(ar, kept, rows):
    before, references = kept
    mask = rows_masked(*rows)
    forced = forced_tokens(before, mask, with_preview=not references)
    regrow = partial(regrow_prior, ar, before, mask, PROMPT, seed=11, references=references)
    for lookahead in (1, 16):
        after = regrow(lookahead=lookahead)
        for image in range(2):
            expected = one_at_a_time(ar, forced[image].tolist(), references, seed=11 + image)
            assert torch.equal(emitted(after, references)[image], expected)
        cells = touched(mask, prior_grid(*SIZE)).expand_as(before.tokens)
        assert torch.equal(after.tokens[~cells], before.tokens[~cells])
        assert not torch.equal(after.tokens, before.tokens)


@pytest.mark.parametrize("lookahead", [0, 2, 3, 7, 32, 64])
@pytest.mark.parametrize("where", ["cpu", "elsewhere"])
def test_windows_of_any_size_and_passes_that_the_cpu_does_not_wait_for_give_the_same_tokens(
    ar, kept, lookahead, where, monkeypatch
):
    before, references = kept
    scattered = (torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(lookahead)) < 0.4).float()
    regrow = partial(regrow_prior, ar, before, scattered, PROMPT, seed=5, references=references)
    expected = regrow(lookahead=1)
    if where == "elsewhere":
        monkeypatch.setattr(planning, "tokens_per_sync", lambda device: 8)
        monkeypatch.setattr(recording, "filled_window", masked_window)
    assert torch.equal(regrow(lookahead=lookahead).tokens, expected.tokens)
    if where == "elsewhere":
        assert torch.equal(regrow(lookahead=1).tokens, expected.tokens)


@pytest.mark.parametrize("lookahead", [4, 16, 64])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_forced_tokens_cost_a_pass_a_window(ar, kept, lookahead, share):
    before, references = kept
    mask = (torch.rand(1, 6, 8, generator=torch.Generator().manual_seed(1)) < share).float()
    forced = forced_tokens(before, mask, with_preview=not references)[:1]
    drawn, total = int((forced == NONE).sum()), forced.shape[1]
    after = regrow_prior(ar, plan_of_one(before), mask, PROMPT, seed=5, references=references, lookahead=lookahead)
    assert after.passes <= drawn + math.ceil(total / lookahead)


def test_forced_tokens_do_not_wait_until_guesses_are_worth_a_row_again(ar, kept, monkeypatch):
    """On an accelerator, with a model whose own tokens nobody guesses."""
    before, references = kept
    monkeypatch.setattr(
        type(ar), "pass_costs", lambda self, batch: AssumedCosts(torch.device("cuda"), streamed=False, batch=batch)
    )
    mask = torch.zeros(1, 6, 8)
    mask[:, 1::2] = 1
    after = regrow_prior(ar, plan_of_one(before), mask, PROMPT, seed=5, references=references)
    forced = forced_tokens(plan_of_one(before), mask, with_preview=not references)
    drawn = int((forced == NONE).sum())
    assert after.passes <= drawn + math.ceil(forced.numel() / 64)


def plan_of_one(prior):
    return replace(prior, tokens=prior.tokens[:1], preview=None if prior.preview is None else prior.preview[:1])


def test_a_mask_of_nothing_gives_the_plan_back_and_the_model_does_not_run(ar, kept, monkeypatch):
    before, references = kept
    monkeypatch.setattr(planning, "prefill", None)
    after = regrow_prior(ar, before, rows_masked(*NOTHING), PROMPT, seed=9, references=references)
    assert torch.equal(after.tokens, before.tokens) and after.passes == 0


def test_a_mask_of_everything_is_a_new_plan(ar, kept):
    before, references = kept
    after = regrow_prior(ar, before, torch.ones(1, 8, 8), PROMPT, seed=9, references=references)
    assert torch.equal(after.tokens, generate_prior(ar, PROMPT, *SIZE, seed=9, batch=2, references=references).tokens)


def test_one_plan_serves_a_batch_and_each_of_it_can_be_made_alone(ar, kept):
    before, references = kept
    one, mask = plan_of_one(before), rows_masked(*MIDDLE)
    several = regrow_prior(ar, one, mask, PROMPT, seed=20, batch=3, references=references)
    alone = regrow_prior(ar, one, mask, PROMPT, seed=22, references=references)
    assert several.batch == 3 and torch.equal(several.tokens[2:], alone.tokens)


def test_each_plan_may_have_a_mask_of_its_own(ar, kept):
    before, references = kept
    masks = torch.cat((rows_masked(*BEGIN), rows_masked(*NOTHING)))
    after = regrow_prior(ar, before, masks, PROMPT, seed=9, references=references)
    assert torch.equal(after.tokens[1], before.tokens[1]) and not torch.equal(after.tokens[0], before.tokens[0])


def test_a_plan_without_a_preview_gets_a_new_one(ar):
    before = replace(plan(*SIZE, rows=ar.codebook_size), codebook=ar.codebook)
    after = regrow_prior(ar, before, rows_masked(*END), PROMPT, seed=9)
    assert after.preview.shape[1:] == tuple(preview_grid(prior_grid(*SIZE)))
    assert torch.equal(after.tokens[:, :4], before.tokens[:, :4])


def test_what_does_not_go_together_is_refused_before_the_model_runs(ar, kept, monkeypatch):
    before, _ = kept
    monkeypatch.setattr(planning, "prefill", None)
    with pytest.raises(ValueError, match="another checkpoint's codebook"):
        regrow_prior(ar, replace(plan(*SIZE), codebook="another"), torch.ones(1, 8, 8), PROMPT, seed=0)
    with pytest.raises(ValueError, match="2 priors, 3 masks, 1 plans do not go together"):
        regrow_prior(ar, before, torch.ones(3, 8, 8), PROMPT, seed=0)
    with pytest.raises(ValueError, match="describe the picture"):
        regrow_prior(ar, before, torch.ones(1, 8, 8), " ", seed=0)


def test_tokens_that_were_dropped_stay_dropped_where_nothing_is_planned_anew(ar):
    whole = generate_prior(ar, PROMPT, *SIZE, seed=0)
    left = torch.zeros(1, 6, 8, dtype=torch.bool)
    left[:, :, :4] = True
    for rows in (MIDDLE, NOTHING):
        mask = rows_masked(*rows)
        regrown = regrow_prior(ar, replace(whole, dropped=left), mask, PROMPT, seed=1)
        assert torch.equal(regrown.dropped, left & ~touched(mask, prior_grid(*SIZE)))
    assert regrow_prior(ar, whole, rows_masked(*MIDDLE), PROMPT, seed=1).dropped is None
