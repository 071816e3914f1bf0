"""Skips most of a step where little has changed: an approximation, off by default.

The first block of the DiT is always computed. Where what it adds to the stream is nearly what it added in the last whole
step, the other blocks would add nearly what they added then, and that is taken instead. After ParaAttention's first block
cache; here each side of the guidance keeps its own, and a change is measured from the last step that was computed whole,
so that small changes cannot add up unseen. Reference caches are written by passes of their own, which are never skipped.
"""

from collections.abc import Hashable

import torch


class Branch:
    """What one side of the guidance remembers of its last whole step."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._change: torch.Tensor | None = None
        self._pending: torch.Tensor | None = None
        self._rest: torch.Tensor | None = None
        self.whole = self.skipped = 0  # steps

    def rest(self, change: torch.Tensor) -> torch.Tensor | None:
        """What the blocks after the first add, [B, T, D], or None where they must be computed and given to `keep`.

        change: what the first block added, [B, T, D]. A batch is skipped when each of its pictures may be.
        """
        if self._change is not None and self._change.shape == change.shape:
            distance = (change - self._change).abs().mean(dim=(1, 2)) / self._change.abs().mean(dim=(1, 2))
            if bool((distance < self.threshold).all()):  # the one place where a step waits for the device
                self.skipped += 1
                return self._rest
        self._pending = change
        return None

    def keep(self, rest: torch.Tensor) -> None:
        """Remember a whole step: what `rest` was last asked about, and what the other blocks added to it."""
        self._change, self._rest, self._pending = self._pending, rest, None
        self.whole += 1


class StepCache:
    """The branches of one run, by any name for a side of the guidance. threshold: the relative change below which to skip."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.branches: dict[Hashable, Branch] = {}

    def __str__(self) -> str:
        passes = sum(branch.whole + branch.skipped for branch in self.branches.values())
        skipped = sum(branch.skipped for branch in self.branches.values())
        return f"step cache: {skipped} of {passes} passes skipped but for their first block"

    def branch(self, side: Hashable) -> Branch:
        return self.branches.setdefault(side, Branch(self.threshold))
