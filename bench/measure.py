"""How times, memory peaks and the machine's rates are measured."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from ..glmimage_core.glm_image.geometry import check_size

COPIED_BYTES = {"cpu": 2**27}  # more than a CPU's caches hold; 2 GiB on other devices
MATRIX_SIDE = {"cpu": 1024}  # 8192 on other devices
REPEATS = 10

T = TypeVar("T")
Times = dict[str, float]  # seconds by stage


class Case(NamedTuple):
    """Pictures to make: width and height in pixels, how many at once."""

    width: int
    height: int
    batch: int

    @property
    def columns(self) -> dict[str, str | int]:
        return {"picture": f"{self.width}x{self.height}", "batch": self.batch}


def cases(widths: Sequence[int], heights: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """Every size with every batch. Raises ValueError for sizes and batches that cannot be painted."""
    if len(widths) != len(heights):
        raise ValueError(f"--width has {len(widths)} numbers and --height {len(heights)}; give one height for each width")
    for width, height in zip(widths, heights, strict=True):
        check_size(width, height)
    if min(batches) < 1:
        raise ValueError(f"--batch is {min(batches)}; use 1 or more")
    return [Case(*size, batch) for size, batch in itertools.product(zip(widths, heights, strict=True), batches)]


def alternate(runs: Mapping[str, Callable[[int], T]], rounds: int, seed: int) -> dict[str, list[T]]:
    """Call all runs in turns, each round with another seed. Returns their results by name, without the first, warm-up round."""
    results: dict[str, list[T]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items() if number % 2 else reversed(runs.items()):
            result = run(seed + number)
            if number:
                results[name].append(result)
    return results


def medians(runs: Mapping[str, Callable[[int], object]], rounds: int, seed: int, device: torch.device) -> dict[str, float]:
    """The median seconds of each run."""
    timed = {name: lambda number, run=run: seconds(lambda: run(number), device) for name, run in runs.items()}
    return {name: statistics.median(times) for name, times in alternate(timed, rounds, seed).items()}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, until the device has finished its work."""
    synchronise = torch.get_device_module(device).synchronize
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


class Stopwatch:
    """Adds up the seconds of each stage in `times`. A stage that never ran is not in it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.times: Times = {}

    def timed(self, stage: str, function: Callable[..., T]) -> Callable[..., T]:
        """The same function on the clock."""

        def run(*args, **kwargs) -> T:
            result = None

            def call() -> None:
                nonlocal result
                result = function(*args, **kwargs)

            self.times[stage] = self.times.get(stage, 0.0) + seconds(call, self.device)
            return result

        return run

    @contextmanager
    def timed_methods(self, stages: Mapping[str, Sequence[tuple[object, str]]]) -> Iterator[None]:
        """Time methods of objects, (object, name), for the length of a with block. Raises AttributeError for an unknown name."""
        methods = [(stage, owner, name) for stage, of_stage in stages.items() for owner, name in of_stage]
        timed = [(owner, name, self.timed(stage, getattr(owner, name))) for stage, owner, name in methods]
        for owner, name, method in timed:
            setattr(owner, name, method)  # on the object: its class keeps the method
        try:
            yield
        finally:
            for owner, name, _ in timed:
                delattr(owner, name)


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes in the device's memory."""
    source = torch.ones(COPIED_BYTES.get(device.type, 2**31), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _best(lambda: target.copy_(source), device)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a large matrix product."""
    side = MATRIX_SIDE.get(device.type, 8192)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _best(lambda: matrix @ matrix, device)


def _best(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of some times: a rate is what the machine can do when nothing disturbs it."""
    return min(seconds(run, device) for _ in range(REPEATS))


def allocator_peak(run: Callable[[], object]) -> int:
    """The peak of bytes in tensors on the CPU during run(), beyond those from before, as PyTorch's allocator counts them."""
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
