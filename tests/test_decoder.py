"""The decoder against transformers' own forward: the same logits, the same tokens, for every way of running a step."""

import inspect
from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image import decoder as decoding
from glm_image_pack.glmimage_core.glm_image import prior
from glm_image_pack.glmimage_core.glm_image.files.load import load_ar
from glm_image_pack.glmimage_core.glm_image.prior import Sampling, generate_prior

from pictures import pattern

PROMPT = "a red house"


def transformers_decoder(run):
    """transformers' forward for each token, with a cache that grows: the plain loop."""
    from transformers import DynamicCache

    ar, positions = run.ar, run.positions
    language_model = ar.model.model.language_model
    grown = DynamicCache(config=language_model.config)
    # transformers 5.24 renamed the argument.
    name = "cache" if "cache" in inspect.signature(language_model.forward).parameters else "past_key_values"
    for index, layer in enumerate(run.layers):
        grown.update(layer.keys[:, :, : run.prompt_length], layer.values[:, :, : run.prompt_length], index)

    def decode(token, step):
        hidden = language_model(
            inputs_embeds=ar.model.get_input_embeddings()(token[:, None]),
            position_ids=positions[:, step, None, None].expand(3, len(token), 1),
            **{name: grown},
        ).last_hidden_state[:, -1]
        return ar.model.lm_head(hidden)[:, : ar.codebook_size].float()

    return decode


def masked_decoder(run):
    """What an accelerator runs."""
    return lambda token, step: decoding.decode_masked(run, token, torch.tensor([step]))


# Behind a mask the CPU's attention adds in another order, which in bfloat16 rounds otherwise.
@pytest.mark.parametrize(
    ("other", "dtype"), [(transformers_decoder, "float32"), (transformers_decoder, "bfloat16"), (masked_decoder, "float32")]
)
@pytest.mark.parametrize("edit", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_tokens_are_those_of_the_plain_loop(folder, encode_reference, monkeypatch, other, dtype, edit, batch):
    model = load_ar(folder, dtype)
    references = [encode_reference(pattern(128, 160, 3))] if edit else []
    ours = generate_prior(model, PROMPT, 256, 320, seed=7, batch=batch, references=references)
    monkeypatch.setattr(prior, "decoder", other)
    theirs = generate_prior(model, PROMPT, 256, 320, seed=7, batch=batch, references=references)
    assert torch.equal(ours.tokens, theirs.tokens)
    assert edit or torch.equal(ours.preview, theirs.preview)


@torch.inference_mode()
@pytest.mark.parametrize("other", [transformers_decoder, masked_decoder])
def test_the_logits_are_those_of_the_plain_loop(ar, other):
    ids, positions = torch.arange(9), torch.arange(9).expand(3, -1)
    following = torch.stack([torch.arange(9, 19), torch.arange(10, 20), torch.arange(2, 12)])
    (first, run), (_, again) = (decoding.prefill(ar, ids, positions, following, batch=2) for _ in range(2))
    assert first.shape == (2, ar.codebook_size)
    ours, theirs = decoding.decoder(run), other(again)
    for step in range(10):
        token = torch.tensor([step, 3 * step])
        torch.testing.assert_close(ours(token, step), theirs(token, step), atol=2e-5, rtol=0)


def test_the_cache_is_laid_out_once(ar, monkeypatch):
    addresses = []

    def watched(run, token, place):
        addresses.append([tensor.data_ptr() for layer in run.layers for tensor in (layer.keys, layer.values)])
        return decode_one(run, token, place)

    decode_one = decoding.decode_one
    monkeypatch.setattr(decoding, "decode_one", watched)
    generate_prior(ar, PROMPT, 256, 256, seed=0)
    assert len(addresses) == 256 + 64 - 1 and addresses.count(addresses[0]) == len(addresses)


def test_a_device_that_works_on_its_own_is_read_every_few_tokens(ar, monkeypatch):
    expected, seen = generate_prior(ar, PROMPT, 256, 288, seed=3), []
    monkeypatch.setattr(prior, "tokens_per_sync", lambda device: prior.SYNC_EVERY)
    got = generate_prior(ar, PROMPT, 256, 288, seed=3, progress=lambda done, total, preview=None: seen.append((done, total)))
    assert torch.equal(got.tokens, expected.tokens)
    total = expected.tokens.numel() + expected.preview.numel()
    assert seen == [(done, total) for done in range(0, total, prior.SYNC_EVERY)] + [(total, total)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=1), Sampling(top_k=0), Sampling(1.3, 0.3, 7)])
def test_a_draw_is_torchs_multinomial_of_what_transformers_filters_leave(sampling):
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    filters = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    filters += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    filters += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    logits = 3 * torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    draw = prior.sampler(sampling)
    for row in logits:
        expected = torch.multinomial(filters(None, row[None]).softmax(dim=-1), 1, generator=theirs)
        assert draw(row[None], prior.exponential_noise([ours], 1, 300)[:, 0]) == expected[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_recorded_step_gives_the_tokens_of_one_that_is_not(folder, caplog, dtype, batch):
    model = load_ar(folder, dtype)
    model.model.cuda()
    there = replace(model, device=torch.device("cuda", 0))
    plain, recorded = (
        generate_prior(replace(there, weights_are_static=s), PROMPT, 256, 320, seed=7, batch=batch) for s in (False, True)
    )
    assert torch.equal(plain.tokens, recorded.tokens) and torch.equal(plain.preview, recorded.preview)
    assert "without a CUDA graph" not in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_model_that_waits_for_the_device_is_decoded_without(folder, caplog):
    model = load_ar(folder)
    model.model.cuda()
    there = replace(model, device=torch.device("cuda", 0), weights_are_static=True)
    expected = generate_prior(there, PROMPT, 256, 256, seed=1).tokens
    model.model.lm_head.register_forward_hook(lambda module, inputs, output: output + 0 * output.sum().item())
    assert torch.equal(generate_prior(there, PROMPT, 256, 256, seed=1).tokens, expected)
    assert "without a CUDA graph" in caplog.text
