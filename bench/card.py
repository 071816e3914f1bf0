"""The first day on a GPU: checks, speed and peaks in one file that a user can attach to a report. Imports no torch.

Each step is a benchmark in a process of its own with a time limit of its own, all within one: a crash, a lost device or a step
that hangs costs that step only. The file is written anew after every step, with what a step measured before it failed.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

from ..cli.choices import CARDS, FULL
from .table import Table, Value, write

PACK = Path(__file__).resolve().parents[1]
OK, FAILED, LATE, INTERRUPTED, NOT_HERE = RESULTS = ("ok", "failed", "out of time", "interrupted", "not here")
LEAST_SECONDS = 5  # to import the libraries; with less time left a step is not begun
LONGEST_REASON = 300  # characters
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
ALLOCATORS = (ALLOCATOR, "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
OF_A_STEP = ("bench", "size", "dtype", "quantization", "rounds", "seed", "allocator")
"""What a benchmark says of itself; the rest of its environment is the machine's."""


@dataclass(frozen=True)
class Step:
    """A benchmark: its arguments after `python . bench`, its time limit in seconds, the allocator's settings if not PyTorch's
    own, and why it cannot run, where it cannot."""

    name: str
    arguments: str
    limit: float
    allocator: str = ""
    not_here: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a step came to: one of RESULTS, why, and the tables that it made before it ended."""

    step: str
    command: str
    result: str
    seconds: float
    reason: str | None = None
    environment: Mapping[str, Value] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()


@dataclass
class Card:
    """What was measured so far. size: of the models; empty for the released size on a GPU and tiny ones elsewhere."""

    size: str = ""
    device: str = ""
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, Value]:
        """Of the machine, as the first step that got so far tells it."""
        found = next((outcome.environment for outcome in self.outcomes if outcome.environment), {})
        return {"date": date.today().isoformat()} | {key: value for key, value in found.items() if key not in OF_A_STEP}

    @property
    def memory(self) -> int:
        """Bytes of a GPU of NVIDIA or AMD; 0 where there is none, or no step has told yet."""
        return self.environment.get("memory", 0)

    def succeeded(self, step: str) -> bool:
        return any(outcome.step == step and outcome.result == OK for outcome in self.outcomes)

    def summary(self) -> Table:
        columns = ("step", "result", "seconds", "reason", "command")
        rows = [{column: getattr(outcome, column) for column in columns} for outcome in self.outcomes]
        return Table("Steps", rows)

    def save(self, file: Path) -> None:
        """Write a .json or .md file."""
        about = self.environment
        if file.suffix == ".json":
            text = json.dumps({"environment": about, "steps": [asdict(outcome) for outcome in self.outcomes]}, indent=2)
        else:
            parts = [_line(about), self.summary().markdown()]
            for outcome in self.outcomes:
                if outcome.tables:
                    own = {key: value for key, value in outcome.environment.items() if key in OF_A_STEP}
                    parts += [f"## {outcome.step}", f"`{outcome.command}`", _line(own)]
                    parts += [table.markdown() for table in outcome.tables]
            text = "\n\n".join(parts)
        write(file, text)


def _line(about: Mapping[str, Value]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items())


def steps(card: Card) -> Iterator[Step]:
    """What matters most first. Each step is asked for when those before it are in the card."""
    yield Step("checks", "checks", 90)
    known, gpu = any(outcome.environment for outcome in card.outcomes), bool(card.memory)
    no_gpu = "there is no GPU of NVIDIA or AMD" if known and not gpu else ""
    no_async = "ROCm has no such allocator" if "ROCm" in card.environment.get("runtime", "") else no_gpu
    yield Step("checks, ComfyUI's allocator", "checks", 60, allocator="backend:cudaMallocAsync", not_here=no_async)
    size = card.size or (FULL if gpu else "tiny")
    full = size == FULL
    no_kitchen = "comfy-kitchen is not installed" if known and not card.environment["comfy-kitchen"] else ""
    ar = f"ar --size {size} {'--width 512 --batch 1,16' if full else '--width 192 --batch 1,2'} --rounds 1"
    yield Step("AR", ar, 120)
    yield Step("AR, int8", f"{ar} --quantization int8", 120, not_here=no_kitchen)
    if full and not card.succeeded("AR, int8"):
        yield Step("AR, nf4", f"{ar} --quantization nf4", 60, not_here=no_kitchen)
    dit = f"dit --size {size} --width {1024 if full else 192} --steps 4 --rounds 1"
    yield Step("DiT", dit, 120)
    if full and not card.succeeded("DiT"):
        yield Step("DiT, int8", f"{dit} --quantization int8", 120, not_here=no_kitchen)
    yield Step("VAE", f"vae --size {size} --width {'1024,2048' if full else '192,256'} --rounds 1", 60)
    for gib in sorted(CARDS, reverse=True):
        cap, not_here = min(gib * 2**30, card.memory or math.inf), no_gpu
        if gpu and card.memory < gib * 1e9:  # a card sold as so many GB has a little less than as many GiB
            not_here = f"the card has {card.memory / 1e9:.1f} GB"
        peaks = f"memory --size {size} --width {1024 if full else 192} --references 1,0 --settings recommended"
        yield Step(f"peaks, {gib} GB", f"{peaks} --cap {math.floor(cap / 1e6) / 1e3}", 75, not_here=not_here)


def measure(card: Card, limit: float, *, on_step: Callable[[Step, float], None], on_outcome: Callable[[Outcome], None]) -> None:
    """Run all steps within `limit` seconds. on_step: is told a step and its seconds before it begins. Raises KeyboardInterrupt
    after the step that was interrupted is in the card."""
    end = time.monotonic() + limit
    with tempfile.TemporaryDirectory() as folder:
        for step in steps(card):
            command = _command(step, card.device)
            seconds = min(step.limit, end - time.monotonic())
            if step.not_here:
                outcome = Outcome(step.name, command, NOT_HERE, seconds=0.0, reason=step.not_here)
            elif seconds < LEAST_SECONDS:
                outcome = Outcome(step.name, command, LATE, seconds=0.0, reason=f"no time left of {limit:.0f} s")
            else:
                on_step(step, seconds)
                outcome = _run(step, card.device, Path(folder, "tables.json"), seconds)
            card.outcomes.append(outcome)
            on_outcome(outcome)
            if outcome.result == INTERRUPTED:
                raise KeyboardInterrupt


def _arguments(step: Step, device: str) -> list[str]:
    return ["bench", *step.arguments.split(), *(["--device", device] if device else [])]


def _command(step: Step, device: str) -> str:
    """As one would type it."""
    allocator = [f"{ALLOCATOR}={step.allocator}"] if step.allocator else []
    return " ".join([*allocator, "python", ".", *_arguments(step, device)])


def _run(step: Step, device: str, file: Path, limit: float) -> Outcome:
    """Run a step. file: where it leaves its tables."""
    file.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATORS} | {"HF_HUB_OFFLINE": "1"}
    if step.allocator:
        environment[ALLOCATOR] = step.allocator
    command = [sys.executable, str(PACK), *_arguments(step, device), "--save", str(file)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    began = time.monotonic()
    try:
        done = subprocess.run(command, env=environment, **pipes, encoding="utf-8", errors="replace", timeout=limit)
        result, reason = _verdict(done)
    except subprocess.TimeoutExpired:
        result, reason = LATE, f"stopped after {limit:.0f} s"
    except KeyboardInterrupt:
        result, reason = INTERRUPTED, None
    saved = json.loads(file.read_text("utf-8")) if file.is_file() else {"environment": {}, "tables": []}
    tables = tuple(Table(**table) for table in saved["tables"])
    wrong = [row["check"] for table in tables for row in table.rows if row.get("result") == FAILED]
    if result == OK and wrong:
        result, reason = FAILED, "; ".join(wrong)
    return Outcome(
        step.name,
        _command(step, device),
        result,
        seconds=time.monotonic() - began,
        reason=reason,
        environment=saved["environment"],
        tables=tables,
    )


def _verdict(done: subprocess.CompletedProcess) -> tuple[str, str | None]:
    """The result and the reason of a step that has ended: the last line that it wrote, without the names of folders."""
    if done.returncode == 0:
        return OK, None
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
    for folder, shown in ((PACK, "."), (tempfile.gettempdir(), "TEMP"), (sys.prefix, "PYTHON"), (Path.home(), "~")):
        last = last.replace(str(folder), shown)
    ended = f"exit status {done.returncode}"
    if done.returncode < 0:
        ended = f"ended by {signal.Signals(-done.returncode).name}"
    return FAILED, f"{ended}: {last}".removesuffix(": ")[:LONGEST_REASON]
