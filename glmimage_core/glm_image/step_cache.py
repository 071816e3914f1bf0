"""An approximation, off by default: skips most of a step where little has changed.

The first block of the DiT is always computed. Where what it adds to the stream is nearly what it added in the last whole
step, the other blocks are skipped, and the velocity is the line through those of the last two whole steps. After ParaAttention's
first block cache, which repeats what the other blocks added; a line is closer, and a velocity has 16 channels (docs/speed.md has
the comparison). Each side of the guidance has its own, and a change is measured from the last step that was computed whole, so
that small changes cannot add up unseen. The passes that write reference caches are never skipped.
"""

from collections.abc import Hashable
from typing import NamedTuple

import torch

MOST_STEPS = 8.0
LEAST_APART = 1.0  # of the DiT's 1000 timesteps


class WholeStep(NamedTuple):
    """A step that was computed: its timestep, and the velocity there, [B, 16, h, w]."""

    timestep: torch.Tensor
    velocity: torch.Tensor


class CfgBranchCache:
    """What one side of the guidance remembers of its last two whole steps.

    Ask `lookup` after the first block. Where it returns None, compute the other blocks and `store` the velocity.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.timestep = torch.tensor(0.0)  # of the step that is asked about
        self._first_change: torch.Tensor | None = None  # what the first block added in the last whole step, or in this one
        self._last: WholeStep | None = None
        self._before: WholeStep | None = None
        self.whole = self.skipped = 0  # steps

    def lookup(self, first_change: torch.Tensor) -> torch.Tensor | None:
        """The velocity, [B, 16, h, w], or None where it must be computed.

        first_change: what the first block added, [B, T, D]. A batch is skipped when each of its pictures may be.
        """
        if self._first_change is not None and self._first_change.shape == first_change.shape:
            last = self._first_change
            distance = (first_change - last).abs().mean(dim=(1, 2)) / last.abs().mean(dim=(1, 2))
            if bool((distance < self.threshold).all()):  # the one place where a step waits for the device
                self.skipped += 1
                return self._forecast()
        self._first_change = first_change
        return None

    def store(self, velocity: torch.Tensor) -> None:
        """Remember the velocity of the whole step that `lookup` was asked about."""
        if self._last is not None and self._last.velocity.shape == velocity.shape:
            self._before = self._last
        self._last = WholeStep(self.timestep, velocity.clone())  # others may write into theirs
        self.whole += 1

    def _forecast(self) -> torch.Tensor:
        """The velocity at `timestep` on the line through the last two whole steps, at most MOST_STEPS times as far from the last
        one as they are from each other. Where there is only one, or where both stand at one timestep, that of the last one."""
        last, before = self._last, self._before
        if before is None or before.velocity.shape != last.velocity.shape:
            return last.velocity.clone()
        between = last.timestep - before.timestep
        apart = between.abs() >= LEAST_APART
        part = torch.where(apart, (self.timestep - last.timestep) / torch.where(apart, between, 1.0), 0.0)
        change = last.velocity.float() - before.velocity.float()
        return (last.velocity.float() + part.clamp(-MOST_STEPS, MOST_STEPS) * change).to(last.velocity.dtype)


class StepCache:
    """The branch caches of one run, by any name for a side of the guidance.

    threshold: the relative change of what the first block adds, below which the other blocks are skipped.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.branches: dict[Hashable, CfgBranchCache] = {}

    def __str__(self) -> str:
        passes = sum(branch.whole + branch.skipped for branch in self.branches.values())
        skipped = sum(branch.skipped for branch in self.branches.values())
        return f"step cache: {skipped} of {passes} passes skipped but for their first block"

    def branch(self, side: Hashable, timestep: torch.Tensor) -> CfgBranchCache:
        """The cache of a side for a pass at a timestep, a tensor without dimensions on the DiT's device."""
        branch = self.branches.setdefault(side, CfgBranchCache(self.threshold))
        branch.timestep = timestep
        return branch
