"""The step cache: what is skipped, what it costs, and that it keeps its sides apart."""

import pytest
import torch
from glm_image_pack.glmimage_core.diffusion import Grid, initial_noise
from glm_image_pack.glmimage_core.glm_image import denoise
from glm_image_pack.glmimage_core.glm_image.denoise import Approximations, sample
from glm_image_pack.glmimage_core.glm_image.dit import encode_conditions, velocity
from glm_image_pack.glmimage_core.glm_image.step_cache import CfgBranchCache, StepCache

from pictures import pattern
from plans import plan


@pytest.fixture
def caches(monkeypatch):
    """Every step cache made during the test."""
    made = []

    class Watched(StepCache):
        def __init__(self, threshold):
            super().__init__(threshold)
            made.append(self)

    monkeypatch.setattr(denoise, "StepCache", Watched)
    return made


def at(branch, timestep):
    branch.timestep = torch.tensor(float(timestep))
    return branch


def test_a_change_is_measured_from_the_last_whole_step():
    branch, one, v = CfgBranchCache(0.1), torch.ones(1, 2, 3), torch.ones(1, 16, 4, 4)
    assert branch.lookup(one) is None
    branch.store(5 * v)
    assert torch.equal(branch.lookup(1.06 * one), 5 * v)
    assert branch.lookup(1.12 * one) is None  # not far from the last step, but from the last whole one
    branch.store(6 * v)
    assert torch.equal(branch.lookup(1.2 * one), 6 * v)
    assert (branch.whole, branch.skipped) == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_velocity_is_forecast_on_the_line_through_the_last_two_whole_steps(dtype):
    branch, one, v = CfgBranchCache(0.1), torch.ones(1, 2, 3, dtype=dtype), torch.ones(1, 16, 4, 4, dtype=dtype)
    for timestep, value in ((900, 1), (800, 3), (650, 4)):  # the oldest one counts no more
        assert at(branch, timestep).lookup(timestep * one) is None
        branch.store(value * v)
    expected = 4 + (4 - 3) / (650 - 800) * (500 - 650)
    forecast = at(branch, 500).lookup(650 * one)
    assert forecast.dtype == dtype and torch.equal(forecast, expected * v)
    assert torch.equal(at(branch, 350).lookup(650 * one), 6 * v)


def test_what_is_done_to_a_velocity_later_changes_no_forecast():
    branch, one, v = CfgBranchCache(0.1), torch.ones(1, 2, 3), torch.ones(1, 16, 4, 4)
    at(branch, 900).lookup(one)
    branch.store(v)
    v.zero_()
    at(branch, 800).lookup(one).zero_()
    assert at(branch, 800).lookup(one).min() == 1


def test_two_whole_steps_at_one_timestep_make_no_line():
    branch, one, v = CfgBranchCache(0.1), torch.ones(1, 2, 3), torch.ones(1, 16, 4, 4)
    for change, value in ((1, 1), (2, 3)):  # as a sampler of second order may ask
        assert at(branch, 800).lookup(change * one) is None
        branch.store(value * v)
    assert torch.equal(at(branch, 700).lookup(2 * one), 3 * v)


def test_a_batch_is_skipped_when_each_of_its_pictures_may_be():
    branch, two = CfgBranchCache(0.1), torch.ones(2, 2, 3)
    branch.lookup(two)
    branch.store(two)
    assert branch.lookup(torch.tensor([1.0, 1.3]).view(2, 1, 1) * two) is None


def test_another_shape_starts_anew():
    branch = CfgBranchCache(1.0)
    branch.lookup(torch.ones(1, 2, 3))
    branch.store(torch.ones(1, 2, 3))
    assert branch.lookup(torch.ones(2, 2, 3)) is None


@pytest.mark.parametrize("edit", [False, True])
def test_the_error_grows_with_the_threshold_and_each_side_has_its_own(dit, glyphs, encode_reference, caches, edit):
    references = [encode_reference(pattern(128, 160, 3))] if edit else []
    settings = {"seeds": [0], "steps": 20, "references": references}
    exact = sample(dit, plan(), *glyphs, **settings)
    assert not caches
    errors, skipped = [], []
    for threshold in (1e-6, 0.7, 1.0):
        got = sample(dit, plan(), *glyphs, **settings, approximations=Approximations(step_cache=threshold))
        errors.append(((got - exact).norm() / exact.norm()).item())
        branches = caches[-1].branches
        assert set(branches) == {("positive", None), ("negative", None)}  # of the whole picture, and none for the references
        assert all(branch.whole + branch.skipped == 20 for branch in branches.values())
        skipped.append(sum(branch.skipped for branch in branches.values()))
    assert errors[0] == 0 and skipped[0] == 0
    assert 0 < errors[1] < errors[2] < 1 and 0 < skipped[1] < skipped[2]


@torch.inference_mode()
def test_a_skipped_pass_adds_what_the_blocks_added(dit, glyphs):
    conditions = encode_conditions(dit, glyphs[0], 256, 256, batch=1, tokens=plan().tokens)
    time = dit.model.embed_time(torch.tensor([500.0]), 256, 256, dit.dtype)
    x, branch = initial_noise([0], 16, Grid(32, 32)), CfgBranchCache(1e-6)
    whole, skipped = (velocity(dit, x, time, conditions, kv_caches=None, step_cache=branch) for _ in range(2))
    assert (branch.whole, branch.skipped) == (1, 1)
    assert torch.equal(whole, velocity(dit, x, time, conditions))
    torch.testing.assert_close(skipped, whole, atol=1e-5, rtol=0)


def test_a_second_run_remembers_nothing_of_the_first(dit, glyphs):
    runs = [sample(dit, plan(), *glyphs, seeds=[0], steps=10, approximations=Approximations(step_cache=0.8)) for _ in range(2)]
    assert torch.equal(*runs)


def test_a_run_says_what_it_skipped(dit, glyphs, caches, caplog):
    with caplog.at_level("INFO"):
        sample(dit, plan(), *glyphs, seeds=[0], steps=10, approximations=Approximations(step_cache=1.0))
    skipped = sum(branch.skipped for branch in caches[0].branches.values())
    assert skipped > 0 and f"step cache: {skipped} of 20 passes skipped" in caplog.text
