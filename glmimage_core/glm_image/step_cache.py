"""An approximation, off by default: skips most of a step where little has changed.

The first block of the DiT is always computed. Where what it adds to the stream is nearly what it added in the last whole
step, the other blocks would add nearly what they added then, and that is taken instead. After ParaAttention's first block
cache; here each side of the guidance has its own, and a change is measured from the last step that was computed whole, so
that small changes cannot add up unseen. The passes that write reference caches are never skipped.
"""

from collections.abc import Hashable

import torch


class CfgBranchCache:
    """What one side of the guidance remembers of its last whole step.

    Ask `lookup` after the first block. Where it returns None, compute the other blocks and `store` what they added.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._first_change: torch.Tensor | None = None  # what the first block added in the last whole step
        self._residual: torch.Tensor | None = None  # what the other blocks added then
        self._asked: torch.Tensor | None = None
        self.whole = self.skipped = 0  # steps

    def lookup(self, first_change: torch.Tensor) -> torch.Tensor | None:
        """What the other blocks add, [B, T, D], or None where they must be computed.

        first_change: what the first block added, [B, T, D]. A batch is skipped when each of its pictures may be.
        """
        if self._first_change is not None and self._first_change.shape == first_change.shape:
            last = self._first_change
            distance = (first_change - last).abs().mean(dim=(1, 2)) / last.abs().mean(dim=(1, 2))
            if bool((distance < self.threshold).all()):  # the one place where a step waits for the device
                self.skipped += 1
                return self._residual
        self._asked = first_change
        return None

    def store(self, residual: torch.Tensor) -> None:
        """Remember a whole step: the change that `lookup` was asked about, and what the other blocks added to it."""
        self._first_change, self._residual, self._asked = self._asked, residual, None
        self.whole += 1


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

    def branch(self, side: Hashable) -> CfgBranchCache:
        return self.branches.setdefault(side, CfgBranchCache(self.threshold))
