"""How times, peaks and the machine's rates are measured."""

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple, TypeVar
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from ..glmimage_core.glm_image.geometry import check_size

COPIED_BYTES = {"cpu": 2**27}  # more than its caches hold; 2 GiB elsewhere
PRODUCT_SIDE = {"cpu": 1024}  # of the square matrices; 8192 elsewhere
REPEATS = 10

T = TypeVar("T")
Times = Counter  # seconds by stage


class Case(NamedTuple):
    """Pictures to make: width and height in pixels, how many at once."""

    width: int
    height: int
    batch: int

    @property
    def columns(self) -> dict[str, str | int]:
        return {"picture": f"{self.width}x{self.height}", "batch": self.batch}


def cases(widths: Sequence[int], heights: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """Every size in every batch. Raises ValueError for what is none."""
    if len(widths) != len(heights):
        raise ValueError(f"--width has {len(widths)} numbers and --height {len(heights)}; give one height for each width")
    for width, height in zip(widths, heights, strict=True):
        check_size(width, height)
    if min(batches) < 1:
        raise ValueError(f"--batch is {min(batches)}; at least one picture is needed")
    return [Case(*size, batch) for size, batch in itertools.product(zip(widths, heights, strict=True), batches)]


def alternate(ways: Mapping[str, Callable[[int], T]], rounds: int, seed: int) -> dict[str, list[T]]:
    """Call every way with a new seed each round, in turns, after a round that warms up. Gives what each round returned."""
    results: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items() if number % 2 else reversed(ways.items()):
            result = run(seed + number)
            if number:
                results[name].append(result)
    return results


def medians(ways: Mapping[str, Callable[[int], object]], rounds: int, seed: int, device: torch.device) -> dict[str, float]:
    """The median seconds of every way."""
    clocked = {name: lambda number, run=run: seconds(lambda: run(number), device) for name, run in ways.items()}
    return {name: statistics.median(times) for name, times in alternate(clocked, rounds, seed).items()}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes until the device has done its work too."""
    synchronise = torch.get_device_module(device).synchronize
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


class Stopwatch(ExitStack):
    """Times functions where they are called from, by replacing each owner's name for them while it is open.

    stages: the (owner, name) of the functions that make up each stage. Gives the seconds of every stage, filled as it goes.
    """

    def __init__(self, stages: Mapping[str, Sequence[tuple[object, str]]], device: torch.device):
        super().__init__()
        self.times: Times = Counter()
        self.device = device
        for stage, places in stages.items():
            for owner, name in places:
                self.enter_context(patch.object(owner, name, self._timed(stage, getattr(owner, name))))

    def __enter__(self) -> Times:
        return self.times

    def _timed(self, stage: str, function: Callable) -> Callable:
        def run(*args, **kwargs):
            result = None

            def call():
                nonlocal result
                result = function(*args, **kwargs)

            self.times[stage] += seconds(call, self.device)
            return result

        return run


def copy_rate(device: torch.device) -> float:
    """Bytes a second that the device's memory moves, read and written, in a large copy."""
    source = torch.ones(COPIED_BYTES.get(device.type, 2**31), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _best(lambda: target.copy_(source), device)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a large matrix product."""
    side = PRODUCT_SIDE.get(device.type, 8192)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _best(lambda: matrix @ matrix, device)


def _best(run: Callable[[], object], device: torch.device) -> float:
    """The shortest seconds of a few: a rate is what the machine can do, not what its neighbours leave of it."""
    return min(seconds(run, device) for _ in range(REPEATS))


def allocator_peak(run: Callable[[], object]) -> int:
    """The most bytes alive at once on the CPU during run(), beyond those alive before, as PyTorch's allocator counts tensors."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [
        (event.start_ns(), event.nbytes()) for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    alive = peak = 0
    for _, change in sorted(events):
        alive += change
        peak = max(peak, alive)
    return peak
