"""The noise schedule: timesteps, shifted sigmas, and the map between them.

GLM-Image keeps two clocks. The Euler loop integrates over **shifted** sigmas; the DiT is conditioned on the
**unshifted** timestep, less one. A sampler that visits a sigma of its own needs `timestep_of_sigma` to tell the DiT
where it is.
"""

from typing import NamedTuple

import numpy as np
import torch

from ..diffusion import dit_token_count, whole_steps

TRAIN_STEPS = 1000


class Shift(NamedTuple):
    """How the shift grows with the picture. The defaults are the released checkpoint's."""

    base: float = 0.25
    slope: float = 0.75  # of the square root of the tokens; upstream calls it max_shift
    base_tokens: int = 256  # DiT tokens

    def of_tokens(self, dit_tokens: int) -> float:
        """mu = 0.75 sqrt(N / 256) + 0.25 for N DiT tokens: 1.75 at 512 x 512 pixels, 3.25 at 1024 x 1024.

        Source: `calculate_shift` of diffusers' GLM-Image pipeline.
        """
        return self.slope * (dit_tokens / self.base_tokens) ** 0.5 + self.base

    def of_size(self, width: int, height: int) -> float:
        """mu of a picture of width x height pixels."""
        return self.of_tokens(dit_token_count(width, height))


class Schedule(NamedTuple):
    """timesteps: [S] float32, what the DiT is conditioned on. sigmas: [S + 1] float32, the last one 0."""

    timesteps: torch.Tensor
    sigmas: torch.Tensor

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def shift_sigma(sigma: torch.Tensor, mu: float) -> torch.Tensor:
    """sigma in (0, 1] -> mu / (mu + 1 / sigma - 1), the linear time shift of the released scheduler."""
    return mu / (mu + (1 / sigma - 1))


def timestep_of_sigma(shifted_sigma: torch.Tensor, mu: float) -> torch.Tensor:
    """The DiT's timestep, 0..999, at a shifted sigma in (0, 1]: the inverse of `shift_sigma`, in steps, less one."""
    unshifted = 1 / (1 + mu * (1 / shifted_sigma - 1))
    return unshifted * TRAIN_STEPS - 1


def progress_of(timestep: float) -> float:
    """How much of the whole schedule is done at a timestep of the DiT: 0 at 999, 1 at -1."""
    return round(1 - (timestep + 1) / TRAIN_STEPS, 5)  # a step at 0.2 is at 0.2, also when float32 sigmas say where


def run_progress(first: float, timestep: float) -> float:
    """How much of a run is done at a timestep of the DiT: 0 at its first one, whatever part of the whole schedule it is."""
    begin, now = progress_of(first), progress_of(timestep)
    return round((now - begin) / (1 - begin), 5)


def full_schedule(steps: int, mu: float) -> Schedule:
    """The reference schedule of `steps` steps from pure noise to the picture.

    Timesteps are int(linspace(1000, 1, steps + 1)) without the last; the DiT sees them less one.
    Source: diffusers' GLM-Image pipeline.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least one is needed")
    # numpy's linspace, as in the reference: torch's rounds other values just below an integer
    timesteps = torch.from_numpy(np.linspace(TRAIN_STEPS, 1, steps + 1)[:-1].astype(np.int64)).double()
    sigmas = shift_sigma(timesteps / TRAIN_STEPS, mu)
    return Schedule((timesteps - 1).float(), torch.cat([sigmas, sigmas.new_zeros(1)]).float())


def schedule_of_sigmas(sigmas: torch.Tensor, mu: float) -> Schedule:
    """The schedule of somebody else's shifted sigmas, [S + 1], falling from at most 1 to 0."""
    sigmas = sigmas.float()
    return Schedule(timestep_of_sigma(sigmas[:-1], mu).clamp(min=0), sigmas)


def partial_schedule(steps: int, denoise: float, mu: float) -> Schedule:
    """The last `steps` steps of a longer schedule, that begins at about `denoise` (0 < denoise <= 1) of its length.

    As in ComfyUI's samplers, the number of steps done is `steps` whatever the denoise; 1 is the full schedule.
    """
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise is {denoise}; it must lie above 0 and not above 1")
    whole = full_schedule(whole_steps(steps, denoise), mu)
    return Schedule(whole.timesteps[-steps:], whole.sigmas[-steps - 1 :])
