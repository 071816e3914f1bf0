"""The decoder against transformers' own forward: the same logits, the same tokens, for every way of running a pass."""

import inspect
import itertools
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image import decoder as decoding
from glm_image_pack.glmimage_core.glm_image import prior, recording
from glm_image_pack.glmimage_core.glm_image.draw import Sampling, draw
from glm_image_pack.glmimage_core.glm_image.files.load import load_ar
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from torch.nn.functional import scaled_dot_product_attention

from pictures import pattern

PROMPT = "a red house"
SAMPLING = Sampling()


def transformers_logits(run):
    """transformers' forward for each token, with a cache that grows: the plain loop."""
    from transformers import DynamicCache

    ar, positions = run.ar, run.positions
    language_model = ar.model.model.language_model
    grown = DynamicCache(config=language_model.config)
    # transformers 5.24 renamed the argument.
    name = "cache" if "cache" in inspect.signature(language_model.forward).parameters else "past_key_values"
    for index, layer in enumerate(run.layers):
        grown.update(*layer.cache[:, :, :, : run.prompt_length], index)

    def decode(token, step):
        hidden = language_model(
            inputs_embeds=ar.model.get_input_embeddings()(token[:, None]),
            position_ids=positions[:, step, None, None].expand(3, len(token), 1),
            **{name: grown},
        ).last_hidden_state[:, -1]
        return ar.model.lm_head(hidden)[:, : ar.codebook_size].float()

    return decode


@contextmanager
def transformers_decoder(run, sampling):
    decode = transformers_logits(run)

    def step(tokens, steps, noise):
        assert tokens.shape[1] == 1 and len(set(steps.tolist())) == 1
        return draw(sampling, decode(tokens[:, 0], int(steps[0]))[:, None], noise)

    yield step


@contextmanager
def masked_decoder(run, sampling):
    """What an accelerator runs."""
    yield recording.PlainSteps(run, sampling, decoding.masked_window)


# Behind a mask the CPU's attention adds in another order, which in bfloat16 rounds otherwise.
@pytest.mark.parametrize(
    ("other", "dtype"), [(transformers_decoder, "float32"), (transformers_decoder, "bfloat16"), (masked_decoder, "float32")]
)
@pytest.mark.parametrize("edit", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_tokens_are_those_of_the_plain_loop(folder, encode_reference, monkeypatch, other, dtype, edit, batch):
    if dtype == "bfloat16" and torch.__version__.startswith("2.7."):
        pytest.skip("in torch 2.7 the CPU's attention in bfloat16 rounds by the layout of what it is given")
    model = load_ar(folder, dtype)
    references = [encode_reference(pattern(128, 160, 3))] if edit else []
    settings = {"seed": 7, "batch": batch, "references": references, "lookahead": 1}
    ours = generate_prior(model, PROMPT, 256, 320, **settings)
    monkeypatch.setattr(prior, "decoder", other)
    theirs = generate_prior(model, PROMPT, 256, 320, **settings)
    assert torch.equal(ours.tokens, theirs.tokens)
    assert edit or torch.equal(ours.preview, theirs.preview)


def prefilled(ar, batch=2):
    ids, positions = torch.arange(9), torch.arange(9).expand(3, -1)
    following = torch.stack([torch.arange(9, 19), torch.arange(10, 20), torch.arange(2, 12)])
    return decoding.prefill(ar, ids, positions, following, batch=batch)


TOKENS = torch.tensor([[0, 5, 9, 2, 7, 7, 1, 30, 8, 4], [3, 3, 0, 11, 40, 2, 2, 6, 9, 1]])


@torch.inference_mode()
@pytest.mark.parametrize("masked", [False, True], ids=["filled", "masked"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 10])
def test_the_logits_of_a_window_are_those_of_the_plain_loop(ar, masked, rows):
    (first, run), (_, again) = prefilled(ar), prefilled(ar)
    assert first.shape == (2, ar.codebook_size)
    plain = transformers_logits(again)
    expected = torch.stack([plain(TOKENS[:, step], step) for step in range(10)], dim=1)
    for step in range(0, 10, rows):
        tokens = TOKENS[:, step : step + rows]
        where = decoding.masked_window(run, torch.tensor([step, step]), tokens.shape[1])
        window = where if masked else decoding.filled_window(run, torch.tensor([step, step]), tokens.shape[1])
        ours = decoding.decode_window(run, tokens, window)
        torch.testing.assert_close(ours, expected[:, step : step + rows], atol=2e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("masked", [False, True], ids=["filled", "masked"])
def test_sequences_go_on_each_from_its_own_place_over_what_wrong_guesses_left(ar, masked):
    (_, run), (_, again) = prefilled(ar), prefilled(ar)
    plain = transformers_logits(again)
    expected = torch.stack([plain(TOKENS[:, step], step) for step in range(10)], dim=1)

    def window(steps, tokens):
        rows = tokens.shape[1]
        make = decoding.masked_window if masked else decoding.filled_window
        return decoding.decode_window(run, tokens, make(run, torch.tensor(steps), rows))

    wrong = TOKENS.clone()
    wrong[0, 2:4] = 50
    wrong[1, 4] = 50
    window([0, 0], wrong[:, :5])  # the first sequence is right up to its second token, the other up to its fourth
    ours = window([2, 4], torch.stack([TOKENS[0, 2:6], TOKENS[1, 4:8]]))
    torch.testing.assert_close(ours[0], expected[0, 2:6], atol=2e-5, rtol=0)
    torch.testing.assert_close(ours[1], expected[1, 4:8], atol=2e-5, rtol=0)


@torch.inference_mode()
def test_one_token_attends_to_the_first_slots_of_its_sequence_alone(ar, monkeypatch):
    """comfy-kitchen's kernel, which runs on a card only, by what it promises."""

    def first_keys(queries, keys, values, lengths):
        seen = torch.arange(keys.shape[1]) < lengths[:, None]
        heads = (x.transpose(1, 2).expand(-1, queries.shape[2], -1, -1) for x in (keys, values))
        return scaled_dot_product_attention(queries.transpose(1, 2), *heads, attn_mask=seen[:, None, None]).transpose(1, 2)

    run, steps = prefilled(ar)[1], torch.tensor([3, 1])
    decoding.decode_window(run, TOKENS[:, :4], decoding.masked_window(run, torch.tensor([0, 0]), 4))  # fills the slots
    tokens = TOKENS[:, 4:5]
    expected = decoding.decode_window(run, tokens, decoding.masked_window(run, steps, 1))
    monkeypatch.setattr(decoding, "can_split", lambda cache, scaling: True)
    monkeypatch.setattr(decoding, "split_decode", lambda: first_keys)
    window = decoding.masked_window(run, steps, 1)
    assert window.mask is None
    torch.testing.assert_close(decoding.decode_window(run, tokens, window), expected, atol=2e-5, rtol=0)


def test_the_cache_is_laid_out_once(ar, monkeypatch):
    addresses = []

    def watched(run, tokens, window):
        addresses.append([layer.cache.data_ptr() for layer in run.layers])
        return decode_window(run, tokens, window)

    decode_window = recording.decode_window
    monkeypatch.setattr(recording, "decode_window", watched)
    generate_prior(ar, PROMPT, 256, 256, seed=0, lookahead=1)
    assert len(addresses) == 256 + 64 - 1 and addresses.count(addresses[0]) == len(addresses)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_device_that_works_on_its_own_is_read_every_few_tokens(ar, monkeypatch, lookahead):
    expected, seen = generate_prior(ar, PROMPT, 256, 288, seed=3, lookahead=1), []
    monkeypatch.setattr(prior, "tokens_per_sync", lambda device: prior.SYNC_EVERY)
    watch = lambda done, total, preview=None: seen.append((done, total))  # noqa: E731
    got = generate_prior(ar, PROMPT, 256, 288, seed=3, lookahead=lookahead, progress=watch)
    assert torch.equal(got.tokens, expected.tokens)
    total = got.tokens_a_picture
    if lookahead:
        assert seen == [(0, total), *((done, total) for done in range(1, total, prior.SYNC_EVERY)), (total, total)]
    assert seen[-1] == (total, total) and all(before < after for before, after in itertools.pairwise(seen))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("batch", "lookahead"), [(1, 1), (3, 1), (1, 8), (3, 8)])
def test_a_recorded_pass_gives_the_tokens_of_one_that_is_not(folder, caplog, dtype, batch, lookahead):
    model = load_ar(folder, dtype)
    model.model.cuda()
    there = replace(model, device=torch.device("cuda", 0))
    settings = {"seed": 7, "batch": batch, "lookahead": lookahead}
    plain, recorded = (generate_prior(replace(there, weights_are_static=s), PROMPT, 256, 320, **settings) for s in (False, True))
    assert torch.equal(plain.tokens, recorded.tokens) and torch.equal(plain.preview, recorded.preview)
    assert "without a CUDA graph" not in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_recorded_passes_of_several_sizes_take_turns_over_one_memory(folder):
    model = load_ar(folder)
    model.model.cuda()
    there, sizes = replace(model, device=torch.device("cuda", 0), weights_are_static=True), (16, 1, 8, 2)
    states = [decoding.prefill(there, TOKENS[0], *[torch.arange(n).expand(3, -1) for n in (10, 200)], batch=2)[1] for _ in "ab"]
    recorded, plain = (
        recording.RecordedSteps(states[0], SAMPLING),
        recording.PlainSteps(states[1], SAMPLING, decoding.masked_window),
    )
    generator = torch.Generator().manual_seed(0)
    for turn in range(recording.RECORD_AFTER + 2):
        for rows in sizes:
            tokens = torch.randint(there.codebook_size, (2, rows), generator=generator).cuda()
            noise = torch.empty(2, rows, there.codebook_size).exponential_(generator=generator).cuda()
            inputs = (tokens, torch.tensor([turn, 2 * turn], device="cuda"), noise)
            assert torch.equal(recorded(*inputs), plain(*inputs))
    assert set(recorded.recordings) == set(sizes)
    recorded.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_model_that_waits_for_the_device_is_decoded_without(folder, caplog):
    model = load_ar(folder)
    model.model.cuda()
    there = replace(model, device=torch.device("cuda", 0), weights_are_static=True)
    expected = generate_prior(there, PROMPT, 256, 256, seed=1).tokens
    model.model.lm_head.register_forward_hook(lambda module, inputs, output: output + 0 * output.sum().item())
    assert torch.equal(generate_prior(there, PROMPT, 256, 256, seed=1).tokens, expected)
    assert "without a CUDA graph" in caplog.text and model.cannot_record
