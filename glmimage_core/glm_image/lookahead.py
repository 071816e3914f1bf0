"""How many tokens of a window to compute in one pass, from what a pass costs and from how far the guesses reach."""

import math
from collections import deque
from collections.abc import Sequence

import torch

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""How many tokens a pass may have. Few sizes, since a GPU records each of them."""

AUTO = 0
"""As many tokens a pass as are fastest."""

KEPT_TIMES, ENOUGH_TIMES = 7, 2


def check_lookahead(lookahead: int) -> None:
    """Raise ValueError for a number of tokens that no pass may have."""
    if not 0 <= lookahead <= SIZES[-1]:
        raise ValueError(f"lookahead is {lookahead}; it must lie within 1..{SIZES[-1]}, or be auto ({AUTO})")


class PassCosts:
    """What a pass costs, in seconds by its number of tokens, as measured by the passes of earlier and present runs.

    A cost is the shortest of the last times, since other work on the machine only adds to them. The first pass of a size picks
    kernels and may be recorded; it counts for nothing.
    """

    def __init__(self):
        self.times: dict[int, deque[float]] = {}

    def note(self, rows: int, seconds: float) -> None:
        if rows in self.times:
            self.times[rows].append(seconds)
        else:
            self.times[rows] = deque(maxlen=KEPT_TIMES)

    def estimates(self) -> dict[int, float]:
        """Seconds of a pass of each of SIZES.

        A size that was not measured enough gets the least that it can cost, so that it is tried as soon as it may be worth it:
        as much as fewer tokens, and its share of more tokens. Without any measurement each token costs the same.
        """
        measured = {rows: min(times) for rows, times in self.times.items() if len(times) >= ENOUGH_TIMES}
        least = {rows: max((cost * min(1, rows / size) for size, cost in measured.items()), default=rows) for rows in SIZES}
        return least | {rows: measured[rows] for rows in SIZES if rows in measured}


ROW, ROW_STREAMED = 1 / 64, 1 / 1024


class AssumedCosts:
    """What a pass is assumed to cost, in passes of one token, on a device that reads weights much slower than it multiplies.

    For models in which a product of several rows rounds otherwise than one of a single row: there, the time that a pass happens
    to take must not decide how many tokens it has, or a seed would not give the same plan twice. On a CPU, where rows cost
    arithmetic, it is one token a pass.

    A row of the released model is 16.3 GFLOP, and a pass reads 16.3 GB: by their data sheets a row adds 0.3 % of a pass on an
    H100 (989 TFLOP/s, 3.35 TB/s) and 0.7 % on a 3060 (51 TFLOP/s, 360 GB/s). Twice that is assumed, for attention and draw.
    Weights that come over PCIe take ten times as long or more.
    """

    def __init__(self, device: torch.device, *, streamed: bool, batch: int):
        self.row = math.inf if device.type == "cpu" else batch * (ROW_STREAMED if streamed else ROW)

    def note(self, rows: int, seconds: float) -> None:
        """Nothing that is measured counts."""

    def estimates(self) -> dict[int, float]:
        """The cost of a pass of each of SIZES."""
        return {rows: 1 + self.row * (rows - 1) if rows > 1 else 1.0 for rows in SIZES}


def least_chance(costs: dict[int, float]) -> float:
    """The chance to be reached below which a token is not worth its row: less than what the row costs, in passes of one token."""
    few, most = SIZES[0], SIZES[-1]
    return (costs[most] - costs[few]) / (most - few) / costs[few]


def best_size(chances: Sequence[Sequence[float]], costs: dict[int, float], most: int = SIZES[-1]) -> int:
    """The number of tokens with which a pass makes the most tokens known in a second.

    chances: for each sequence, that its first, second, ... guess is right with all before it. A pass of W tokens makes one
    token known, and one more for each of the first W - 1 guesses that is right with all before it.
    """

    def rate(rows: int) -> float:
        return sum(1 + sum(reach[: rows - 1]) for reach in chances) / costs[rows]

    return max((rows for rows in SIZES if rows <= most), key=rate)
