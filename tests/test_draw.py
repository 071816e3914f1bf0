"""How a token is drawn: torch's multinomial over what transformers' filters leave, whatever ties there are."""

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image import draw as drawing
from glm_image_pack.glmimage_core.glm_image.draw import Noise, Sampling, draw, exponential

SETTINGS = [
    Sampling(),
    Sampling(top_p=1e-9),
    Sampling(top_p=1),
    Sampling(top_k=0),
    Sampling(top_p=1, top_k=0),
    Sampling(1.3, 0.3, 7),
]


def filters_of(sampling):
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    filters = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    filters += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    filters += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    return filters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [3, 8])
@pytest.mark.parametrize("vocabulary", [300, 4000])
@pytest.mark.parametrize("sampling", SETTINGS)
def test_a_draw_is_torchs_multinomial_of_what_transformers_filters_leave(sampling, vocabulary, spread, dtype):
    """In bfloat16 many of the logits are the same number. Where they spread widely, one token often has most of the share."""
    logits = spread * torch.randn(200, vocabulary, generator=torch.Generator().manual_seed(0))
    logits = logits.to(dtype).float()
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    filters = filters_of(sampling)
    for row in logits:
        expected = torch.multinomial(filters(None, row[None]).softmax(dim=-1), 1, generator=theirs)
        assert draw(sampling, row[None], exponential(vocabulary, ours)[None]) == expected[0]


@pytest.mark.parametrize("sampling", [*SETTINGS, Sampling(temperature=0)])
def test_a_window_is_drawn_as_its_rows_are(sampling):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 400, generator=generator)
    noise = torch.empty(2, 5, 400).exponential_(generator=generator)
    rows = [[draw(sampling, logits[b, w], noise[b, w]).item() for w in range(5)] for b in range(2)]
    assert draw(sampling, logits, noise).tolist() == rows


@pytest.mark.parametrize("of_uniform_numbers", [True, False])
def test_the_noise_is_torchs_own(monkeypatch, of_uniform_numbers):
    if of_uniform_numbers and not drawing._is_of_uniform_numbers():
        pytest.skip("this PyTorch draws exponentials by Intel's library")
    monkeypatch.setattr(drawing, "_is_of_uniform_numbers", lambda: of_uniform_numbers)
    ours, theirs = (torch.Generator().manual_seed(2) for _ in range(2))
    for count in (1, 7, 4224, 16384):
        assert torch.equal(exponential(count, ours), torch.empty(count).exponential_(generator=theirs))


def test_the_noise_of_a_place_is_the_same_from_every_window():
    def places(*windows):
        noise, seen = Noise([3, 4], places=12, width=9, kept=7), {}
        for first, count in windows:
            for sequence, window in enumerate(noise.windows([first, first + 1], count)):
                seen |= {(sequence, first + sequence + index): row for index, row in enumerate(window)}
        return seen

    plain = places(*((first, 1) for first in range(12)))
    jumping = places((0, 1), (1, 8), (3, 2), (3, 1), (7, 6))
    assert all(torch.equal(row, plain[at]) for at, row in jumping.items() if at in plain)
    generator = torch.Generator().manual_seed(4)
    rows = [torch.empty(9).exponential_(generator=generator)[:7] for _ in range(12)]
    assert all(torch.equal(plain[1, place], rows[place]) for place in range(1, 12))
    assert torch.equal(plain[1, 12], torch.ones(7))  # behind the end


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"temperature": -1}, "temperature is -1"), ({"top_p": 0}, "top_p is 0"), ({"top_k": -1}, "top_k is -1")],
)
def test_settings_that_mean_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)
