"""The two clocks of the sampler."""

import pytest
import torch
from glm_image_pack.glmimage_core.diffusion import dit_token_count
from glm_image_pack.glmimage_core.glm_image.schedule import Shift, full_schedule, partial_schedule, timestep_of_sigma


@pytest.mark.parametrize(("side", "mu"), [(512, 1.75), (1024, 3.25), (2048, 6.25)])
def test_the_shift_grows_with_the_side(side, mu):
    assert Shift().of_tokens(dit_token_count(side, side)) == pytest.approx(mu)


@pytest.mark.parametrize("steps", [1, 4, 30, 50, 333, 999])
@pytest.mark.parametrize("side", [512, 1024])
def test_timesteps_and_sigmas_are_the_schedulers(folder, steps, side):
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler

    mu = Shift().of_tokens(dit_token_count(side, side))
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    timesteps = np.linspace(1000, 1.0, steps + 1)[:-1].astype(np.int64).astype(np.float32)
    scheduler.set_timesteps(timesteps=timesteps, sigmas=timesteps / 1000, mu=mu)
    ours = full_schedule(steps, mu)
    assert torch.allclose(ours.sigmas, scheduler.sigmas.float(), atol=1e-6)
    assert torch.equal(ours.timesteps, torch.from_numpy(timesteps) - 1)


def test_the_dit_sees_the_unshifted_timestep():
    half = full_schedule(2, 3.25)
    assert half.timesteps[1] == 499  # not 763.7, where the shifted sigma stands


def test_a_sigma_leads_back_to_its_timestep():
    for mu in (1.75, 3.25, 6.25):
        schedule = full_schedule(50, mu)
        assert torch.allclose(timestep_of_sigma(schedule.sigmas[:-1], mu), schedule.timesteps, atol=1e-2)


def test_a_partial_schedule_is_the_end_of_a_longer_one():
    part = partial_schedule(10, 0.5, 3.25)
    whole = full_schedule(20, 3.25)
    assert part.steps == 10
    assert torch.equal(part.sigmas, whole.sigmas[10:])
    assert partial_schedule(10, 1.0, 3.25).sigmas[0] == 1


@pytest.mark.parametrize("denoise", [-0.1, 0, 1.1])
def test_a_denoise_outside_its_range_is_refused(denoise):
    with pytest.raises(ValueError, match="denoise"):
        partial_schedule(10, denoise, 3.25)
