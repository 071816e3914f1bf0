"""How many tokens of a window to compute in one pass, from what a pass costs and from how far the guesses reach."""

import math
from collections import deque
from collections.abc import Sequence

import torch

from ..weights.compiled import FEW_ROWS

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""How many tokens a pass may have. Few sizes, since a GPU records each of them."""

AUTO = 0
"""As many tokens a pass as are fastest."""

KEPT_TIMES = 7
ROW_BEFORE = 1 / 16  # of a pass of one token: what a row more is taken to cost before it is measured
MARGIN, MARGIN_OF_BATCHES = 0.1, 0.5  # where sequences go on at different paces, a pass costs about a tenth more
LEAST_CHANCE = 0.02
FORGOTTEN_AFTER = 64  # passes


def check_lookahead(lookahead: int) -> None:
    """Raise ValueError for a number of tokens that no pass may have."""
    if not 0 <= lookahead <= SIZES[-1]:
        raise ValueError(f"lookahead is {lookahead}; it must lie within 1..{SIZES[-1]}, or be auto ({AUTO})")


class PassCosts:
    """What a pass costs, in seconds by its number of tokens, as measured by the passes of earlier and present runs.

    A cost is the shortest of the last times, since other work on the machine only adds to them. The first pass of a size picks
    kernels; it counts for nothing. A size that was not used for long is measured anew.
    """

    def __init__(self):
        self.times: dict[int, deque[float]] = {}
        self.used: dict[int, int] = {}  # when a size was used last, in passes
        self.passes = 0

    def note(self, rows: int, seconds: float) -> None:
        if rows in self.times and self.passes - self.used[rows] < FORGOTTEN_AFTER:
            self.times[rows].append(seconds)
        else:
            self.times[rows] = deque(maxlen=KEPT_TIMES)
        self.passes += 1
        self.used[rows] = self.passes

    def estimates(self) -> dict[int, float]:
        """Seconds of a pass of each of SIZES.

        A size that was not measured costs as much more than the nearest one that was as ROW_BEFORE says. So a first plan tries a
        size at once where many guesses are likely to be right, and one or two passes tell what it costs.
        """
        measured = {
            rows: min(times) for rows, times in self.times.items() if times and self.passes - self.used[rows] < FORGOTTEN_AFTER
        }

        def assumed(rows: int) -> float:
            nearest = min(measured, key=lambda size: abs(math.log(size / rows)), default=1)
            return measured.get(nearest, 1.0) * (1 + ROW_BEFORE * (rows - 1)) / (1 + ROW_BEFORE * (nearest - 1))

        return {rows: measured.get(rows) or assumed(rows) for rows in SIZES}


ROW, ROW_STREAMED = 1 / 64, 1 / 1024


class AssumedCosts:
    """What a pass is assumed to cost, in passes of one token, on a device that reads weights much slower than it multiplies.

    For models in which a product of several rows rounds differently from one of a single row: there, the time that a pass happens
    to take must not decide how many tokens it has, or a seed would not give the same plan twice. On a CPU, where rows cost
    arithmetic, it is one token a pass.

    A row of the released model is 16.3 GFLOP, and a pass reads 16.3 GB: by their data sheets a row adds 0.3 % of a pass on an
    H100 (989 TFLOP/s, 3.35 TB/s) and 0.7 % on a 3060 (51 TFLOP/s, 360 GB/s). 1.6 % is
    assumed, since attention and draw take time too.
    Weights that come over PCIe take ten times as long or more. widening: how many times as long a pass takes whose rows are too
    many for a product that reads quantized weights as they are.
    """

    def __init__(self, device: torch.device, *, streamed: bool, batch: int, widening: float = 1.0):
        self.row = math.inf if device.type == "cpu" else batch * (ROW_STREAMED if streamed else ROW)
        self.batch, self.widening = batch, 1.0 if streamed else widening

    def note(self, rows: int, seconds: float) -> None:
        """Nothing that is measured counts."""

    def estimates(self) -> dict[int, float]:
        """The cost of a pass of each of SIZES."""
        costs = {rows: 1 + self.row * (rows - 1) if rows > 1 else 1.0 for rows in SIZES}
        return {rows: cost * (self.widening if self.batch * rows > FEW_ROWS else 1) for rows, cost in costs.items()}


def least_chance(costs: dict[int, float]) -> float:
    """The chance to be reached below which a token is not worth its row: less than what the row costs, in passes of one token.

    Not below LEAST_CHANCE: a guess costs time too.
    """
    few, most = SIZES[0], SIZES[-1]
    return max((costs[most] - costs[few]) / (most - few) / costs[few], LEAST_CHANCE)


def best_size(
    chances: Sequence[Sequence[float]], costs: dict[int, float], most: int = SIZES[-1], *, margin: float = MARGIN
) -> int:
    """The number of tokens with which a pass makes the most tokens known in a second.

    chances: for each sequence, that its first, second, ... guess is right with all before it. A pass of W tokens makes one
    token known, and one more for each of the first W - 1 guesses that is right with all before it. Several tokens must promise
    more than one does by a margin, since chances and costs are estimates.
    """

    def rate(rows: int) -> float:
        known = sum(1 + sum(reach[: rows - 1]) for reach in chances) / costs[rows]
        return known if rows > 1 else known * (1 + margin)

    return max((rows for rows in SIZES if rows <= most), key=rate)
