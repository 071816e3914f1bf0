"""Several tokens a pass: the tokens of the one-at-a-time loop for every guess, and never slower by much."""

import itertools
import random
from functools import cache

import pytest
import torch
from glm_image_pack.glmimage_core import GlmImage
from glm_image_pack.glmimage_core.diffusion import Grid
from glm_image_pack.glmimage_core.glm_image import prior
from glm_image_pack.glmimage_core.glm_image.drafts import Foresight, at_same_place, in_preview
from glm_image_pack.glmimage_core.glm_image.draw import Sampling
from glm_image_pack.glmimage_core.glm_image.experience import NONE, Experience, Record
from glm_image_pack.glmimage_core.glm_image.files.load import load_ar
from glm_image_pack.glmimage_core.glm_image.geometry import preview_grid, prior_grid
from glm_image_pack.glmimage_core.glm_image.layout import lay_out
from glm_image_pack.glmimage_core.glm_image.lookahead import (
    FORGOTTEN_AFTER,
    ROW_BEFORE,
    SIZES,
    AssumedCosts,
    PassCosts,
    best_size,
    least_chance,
)
from glm_image_pack.glmimage_core.glm_image.memory import most_rows, prior_bytes
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.glm_image.references import encode_reference
from glm_image_pack.glmimage_core.placement.prediction import Job
from glm_image_pack.glmimage_core.weights.formats import FORMATS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pictures import pattern

PROMPT = "a red house"
SAMPLINGS = [Sampling(), Sampling(0), Sampling(top_p=1), Sampling(top_k=0), Sampling(1.2, 0.4, 9), Sampling(top_p=1, top_k=0)]


def hinted(ar, references, *, size, seed, batch, sampling, lookahead, share):
    """A plan that is guessed from a plan like it, of which a share of the tokens is right."""
    expected = generate_prior(ar, PROMPT, *size, seed=seed, batch=batch, sampling=sampling, references=references, lookahead=1)
    large = prior_grid(*size)
    grids = [large] if references else [preview_grid(large), large]
    rng, writers = random.Random(seed), []
    for tokens in expected.tokens:
        like = tokens.clone()
        wrong = torch.tensor([rng.random() > share for _ in range(like.numel())]).view(like.shape)
        like[wrong] = rng.randrange(ar.codebook_size)
        writers.append(Foresight(grids, {"like": at_same_place(like, grids)}, Experience()))
    emitted, passes = prior.decode_grids(
        ar,
        lay_out(ar, PROMPT, grids, references),
        writers,
        seeds=[seed + image for image in range(batch)],
        sampling=sampling,
        lookahead=lookahead,
    )
    return expected, emitted, passes


@torch.inference_mode()
@pytest.mark.parametrize("lookahead", [0, 2, 3, 7, 16, 64])
@pytest.mark.parametrize("edit", [False, True], ids=["text", "edit"])
def test_right_and_wrong_guesses_give_the_tokens_of_one_a_pass(ar, few_references, edit, lookahead):
    references = few_references[:1] if edit else []
    expected, emitted, passes = hinted(
        ar, references, size=(256, 192), seed=7, batch=3, sampling=Sampling(), lookahead=lookahead, share=0.9
    )
    assert torch.equal(emitted[-1], expected.tokens)
    assert edit or torch.equal(emitted[0], expected.preview)
    assert passes < expected.passes or not lookahead


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.sampled_from([(192, 192), (192, 256), (320, 192), (224, 288)]),
    seed=st.integers(0, 2**40),
    batch=st.integers(1, 4),
    sampling=st.sampled_from(SAMPLINGS),
    lookahead=st.integers(0, 64),
    share=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    count=st.sampled_from([0, 1, 1, 1, 2]),
)
@pytest.mark.slow
@torch.inference_mode()
def test_any_guesses_in_windows_of_any_size_give_the_tokens_of_one_a_pass(ar, few_references, count, **drawn):
    expected, emitted, _ = hinted(ar, few_references[:count], **drawn)
    assert torch.equal(emitted[-1], expected.tokens)
    assert count or torch.equal(emitted[0], expected.preview)


@pytest.fixture(scope="module")
def few_references(ar, vae):
    return [encode_reference(ar, vae, picture) for picture in (pattern(128, 160, 3), pattern(256, 128, 5))]


@cache
def nano() -> GlmImage:
    return GlmImage.nano()


SIDES = range(192, 385, 32)
WORDS = ["a large red circle", "two small blue squares on yellow", 'the word "HELLO" in green at the top', "an empty grey ground"]
EDITS = ["make it blue", "remove the circle", "add a small star at the top", "the ground is green"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    width=st.sampled_from(SIDES),
    height=st.sampled_from(SIDES),
    seed=st.integers(0, 2**40),
    batch=st.integers(1, 4),
    sampling=st.sampled_from(SAMPLINGS),
    lookahead=st.integers(0, 64),
    prompt=st.integers(0, 3),
    edits=st.integers(0, 2),
)
@pytest.mark.slow
def test_nanos_plans_are_those_of_one_a_pass(width, height, lookahead, prompt, edits, **settings):
    """All drafts, and what a trained model makes of them."""
    glm = nano()
    settings["references"] = [glm.reference(pattern(width, height, 3 + number)) for number in range(edits)]
    text = (EDITS if edits else WORDS)[prompt]
    one, several = (glm.plan(text, width, height, lookahead=rows, **settings) for rows in (1, lookahead))
    assert torch.equal(one.tokens, several.tokens)
    assert edits or torch.equal(one.preview, several.preview)
    assert several.passes <= one.passes


def test_a_trained_models_plan_takes_few_passes():
    glm = nano()
    texts = [glm.plan(prompt, seed=seed, lookahead=32) for seed, prompt in enumerate(WORDS)]
    assert sum(plan.tokens_a_pass for plan in texts) / len(texts) > 8
    assert {plan.tokens_a_picture for plan in texts} == {256 + 64}


@pytest.mark.parametrize("lookahead", [-1, 65])
def test_a_lookahead_out_of_range_is_refused_by_name_before_the_model_runs(ar, lookahead, monkeypatch):
    monkeypatch.setattr(prior, "prefill", None)
    with pytest.raises(ValueError, match=f"lookahead is {lookahead}; it must lie within 1..64"):
        generate_prior(ar, PROMPT, 256, 256, seed=0, lookahead=lookahead)


def test_more_rows_than_there_is_memory_for_are_fewer_and_the_log_says_so(ar, caplog):
    plan = generate_prior(ar, PROMPT, 192, 192, seed=0, lookahead=64, most_rows=4)
    assert "lookahead 64 needs more memory than is free; 4 tokens a pass" in caplog.text
    assert torch.equal(plan.tokens, generate_prior(ar, PROMPT, 192, 192, seed=0, lookahead=1).tokens)


def test_a_pass_gets_as_many_rows_as_fit_in_what_is_free(ar):
    config, job = ar.model.config, Job(256, 256, batch=4)
    assert most_rows(config, 4, job, None) == SIZES[-1]
    assert most_rows(config, 4, job, 0) == 1  # it runs out of memory by itself, with the message of that
    for rows in SIZES:
        assert most_rows(config, 4, job, prior_bytes(config, 4, job, rows)) == rows
        assert most_rows(config, 4, job, prior_bytes(config, 4, job, rows) - 1) == max(rows // 2, 1)


GRIDS = [Grid(2, 3), Grid(4, 6)]


def test_neighbours_and_sources_are_those_of_each_grid():
    writing = Foresight(GRIDS, {}, Experience()).writing
    # 0 1 2      6  7  8 ...
    # 3 4 5     12 13 14 ...
    assert writing.beside[0] == (NONE, NONE, NONE, NONE)
    assert writing.beside[4] == (3, 1, 2, 0) and writing.beside[5] == (4, 2, NONE, 1)
    assert writing.beside[6] == (NONE, NONE, NONE, NONE) and writing.beside[13] == (12, 7, 8, 6)
    writing.tokens[:6] = range(10, 16)
    preview = in_preview(GRIDS)
    assert [preview(writing, place) for place in range(6)] == [NONE] * 6
    assert [preview(writing, place) for place in range(6, 12)] == [10, 10, 11, 11, 12, 12]
    assert [preview(writing, place) for place in range(24, 30)] == [13, 13, 14, 14, 15, 15]
    reference = at_same_place(torch.tensor([[1, 2], [3, 4]]), GRIDS)
    assert [reference(writing, place) for place in (0, 6, 8, 9, 11, 18, 29)] == [NONE, 1, 1, 2, 2, 3, 4]


def write(foresight, truth, rows):
    """Let a sequence be written, as the model would that means `truth`; returns the number of passes."""
    foresight.accept(truth[:1])
    passes = 0
    while foresight.known < len(truth):
        foresight.guess(rows - 1)
        window, known = foresight.window(rows), foresight.known
        assert len(window) == rows and window[0] == truth[known - 1]
        drawn = []
        for index in range(rows):  # behind a wrong guess the model says something else
            right = window[1 : index + 1] == truth[known : known + index]
            drawn.append(truth[known + index] if right and known + index < len(truth) else 999)
        before = foresight.known
        run = foresight.accept(drawn)
        assert foresight.writing.tokens[: foresight.known] == truth[: before + run]
        passes += 1
    return passes


@pytest.mark.parametrize("rows", [1, 2, 8, 64])
@pytest.mark.parametrize("flat", [True, False])
def test_what_is_accepted_is_what_the_model_says_and_flat_pictures_take_few_passes(rows, flat):
    grids, rng = [Grid(8, 8), Grid(16, 16)], random.Random(0)
    truth = [7] * 320 if flat else [rng.randrange(1000) for _ in range(320)]
    passes = write(Foresight(grids, {"preview": in_preview(grids)}, Experience()), truth, rows)
    assert passes < 319 / rows + 4 if flat else passes > 300


def test_a_picture_like_its_reference_but_for_a_colour_takes_few_passes():
    grid, rng = Grid(16, 16), random.Random(0)
    reference = torch.tensor([[rng.randrange(4) for _ in range(16)] for _ in range(16)])
    truth = [9 if token == 2 else token for token in reference.flatten().tolist()]
    passes = write(Foresight([grid], {"reference": at_same_place(reference, [grid])}, Experience()), truth, 32)
    assert passes < 20


def test_chances_are_what_came_true():
    """On noise nothing is worth a row, on a flat picture everything."""
    grid, rng, experience = Grid(32, 32), random.Random(0), Experience()
    noisy = Foresight([grid], {}, experience)
    write(noisy, [rng.randrange(9000) for _ in range(1024)], 4)
    again = Foresight([grid], {}, experience)
    again.accept([1, 5, 8])
    assert max(again.guess(8)) < 0.05
    experience = Experience()
    write(Foresight([grid], {}, experience), [7] * 1024, 4)
    again = Foresight([grid], {}, experience)
    again.accept([7, 7, 7])
    assert min(again.guess(8)) > 0.8


def test_guessing_ends_where_it_is_not_worth_a_row():
    def foresight():
        begun = Foresight([Grid(16, 16)], {}, Experience())
        begun.accept([1])
        return begun

    counts = [len(foresight().guess(64, row)) for row in (0.0, 1 / 64, 1 / 16, 1 / 2)]
    assert counts[0] == 64 > counts[1] > counts[2] > counts[3]
    begun = foresight()
    guessed = len(begun.guess(64, 1 / 2))
    assert 0 < guessed < 7 and begun.window(8) == [1, *begun.writing.tokens[1 : 1 + guessed]] + [0] * (7 - guessed)


def costs_of(**seconds):
    costs = PassCosts()
    for rows, time in seconds.items():
        for _ in range(3):
            costs.note(int(rows[1:]), time)
    return costs.estimates()


def test_the_size_of_a_pass_follows_cost_and_chances():
    nothing, everything = [[0.01, 0.0]], [[1.0] * 63]
    arithmetic = costs_of(w1=1.0, w2=2.0, w4=4.0, w8=8.0, w16=16.0, w32=32.0, w64=64.0)
    reading = costs_of(w1=1.0, w2=1.0, w4=1.0, w8=1.0, w16=1.0, w32=1.0, w64=1.0)
    some = costs_of(w1=1.0, w2=1.1, w4=1.2, w8=1.5, w16=2.0, w32=4.0, w64=9.0)
    assert best_size(nothing, some) == 1
    assert best_size(everything, arithmetic) == 1  # every size makes as many known in a second; fewer rows waste less
    assert best_size(everything, reading) == 64 and best_size(everything, reading, most=8) == 8
    assert best_size(everything, some) == 16
    assert best_size([[1.0, 1.0, 1.0, 0.0], [0.0]], some) == 4  # sequences share a pass
    assert least_chance(arithmetic) == 1 and 0 < least_chance(reading) < 0.05


def test_a_size_that_was_not_measured_is_assumed_from_the_nearest_one_and_its_first_pass_counts_for_nothing():
    costs = PassCosts()
    assert costs.estimates() == {rows: 1 + ROW_BEFORE * (rows - 1) for rows in SIZES}
    assert best_size([[0.05**count for count in range(1, 64)]], costs.estimates()) == 1
    assert best_size([[0.99] * 63], costs.estimates()) == 64  # at once
    costs.note(16, 100.0)  # picks kernels
    assert costs.estimates()[16] == 1 + ROW_BEFORE * 15
    costs.note(16, 2.0)
    costs.note(64, 100.0)
    costs.note(64, 30.0)
    estimates = costs.estimates()
    assert (estimates[16], estimates[64]) == (2.0, 30.0)
    assert estimates[1] == pytest.approx(2 / (1 + ROW_BEFORE * 15))
    assert estimates[8] == pytest.approx(2 * (1 + ROW_BEFORE * 7) / (1 + ROW_BEFORE * 15))


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_where_rounding_depends_on_the_rows_a_seed_gives_the_same_passes_whatever_ran_before(folder, monkeypatch, quantization):
    """As on an accelerator, where the size of a pass goes by assumed costs."""
    if quantization != "none":
        pytest.importorskip("comfy_kitchen")
    monkeypatch.setattr(AssumedCosts, "estimates", lambda self: {rows: 1 + (rows - 1) / 64 for rows in SIZES})
    sizes = []
    best = prior.best_size
    monkeypatch.setattr(prior, "best_size", lambda *args, **options: sizes.append(best(*args, **options)) or sizes[-1])
    ar = load_ar(folder, "bfloat16", quantization=quantization)
    assert not ar.is_exact and load_ar(folder, "float32", quantization=quantization).is_exact == (quantization == "none")

    def plan(seed):
        sizes.clear()
        made = generate_prior(ar, PROMPT, 192, 192, seed=seed, sampling=Sampling(0.3))
        return made.tokens, list(sizes)

    (first, its_sizes), (other, _), (again, their_sizes) = plan(1), plan(2), plan(1)
    assert torch.equal(first, again) and its_sizes == their_sizes and len(set(its_sizes)) > 1
    assert not torch.equal(first, other)


def test_where_guesses_are_not_worth_a_row_guessing_rests(folder, monkeypatch):
    ar, guessed, guess = load_ar(folder, "bfloat16"), [], Foresight.guess
    monkeypatch.setattr(Foresight, "guess", lambda self, *args: guessed.append(self.known) or guess(self, *args))
    plan = generate_prior(ar, PROMPT, 512, 512, seed=0)
    assert plan.passes == plan.tokens_a_picture - 1
    rests = [after - before - 1 for before, after in itertools.pairwise(guessed)]
    assert rests[:5] == [1, 3, 7, prior.MOST_REST, prior.MOST_REST]


def test_assumed_costs_are_one_token_a_pass_on_a_cpu_and_more_where_weights_are_streamed():
    chances = [[0.6**count for count in range(1, 64)]]
    cpu, card, streamed, batch = (
        AssumedCosts(torch.device(device), streamed=streamed, batch=batch).estimates()
        for device, streamed, batch in (("cpu", False, 1), ("cuda", False, 1), ("cuda", True, 1), ("cuda", False, 16))
    )
    assert best_size(chances, cpu) == 1 and least_chance(cpu) > 1
    assert 1 < best_size(chances, batch) < best_size(chances, card) < best_size(chances, streamed)


@pytest.mark.parametrize(("quantization", "batch", "rows"), [("int8", 1, 64), ("fp8", 1, 8), ("nf4", 1, 8), ("nf4", 2, 4)])
def test_a_pass_has_no_more_rows_than_read_quantized_weights_as_they_are(quantization, batch, rows):
    widening = FORMATS[quantization].widening
    costs = AssumedCosts(torch.device("cuda"), streamed=False, batch=batch, widening=widening).estimates()
    assert best_size([[0.99**count for count in range(1, 64)]], costs) == rows
    streamed = AssumedCosts(torch.device("cuda"), streamed=True, batch=batch, widening=widening).estimates()
    assert best_size([[0.99**count for count in range(1, 64)]], streamed) == 64


def test_what_was_always_right_is_never_certain():
    """A thousand plans of one model share its experience."""
    experience, grid = Experience(), Grid(32, 32)
    for _ in range(12):
        foresight = Foresight([grid], {}, experience)
        write(foresight, [7] * 1024, 64)
    foresight = Foresight([grid], {}, experience)
    foresight.accept([7])
    assert 0.9 < foresight.guess(63)[-1] <= 1


def test_a_size_that_was_not_used_for_long_is_measured_anew():
    costs = PassCosts()
    for rows, seconds in ((1, 1.0), (8, 90.0)):  # a busy moment
        for _ in range(3):
            costs.note(rows, seconds)
    assert best_size([[1.0] * 63], costs.estimates(), most=8) < 8
    for _ in range(FORGOTTEN_AFTER):
        costs.note(1, 1.0)
    assert best_size([[1.0] * 63], costs.estimates(), most=8) == 8
    for seconds in (500.0, 100.0):
        costs.note(8, seconds)
    assert costs.estimates()[8] == 100  # what it took in other times is forgotten


def test_evidence_fades():
    record = Record(lambda seen: 0.5)
    for hit in (*[True] * 5000, *[False] * 500):
        record.enter("seen", hit)
    assert record.share("seen") < 0.2
