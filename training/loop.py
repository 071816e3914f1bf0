"""One training loop for every part: seeded by the step, resumable, with averaged weights."""

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import Module
from torch.optim import AdamW, Muon, Optimizer

Loss = Callable[[random.Random, torch.Generator], torch.Tensor]
"""Draws a batch from two generators and returns its loss."""

SAVE_EVERY = 120  # seconds
AVERAGE_OVER = 300  # steps, about, at the end of a run
RATES = (1.0, 2.5)  # of AdamW and of Muon, as shares of a plan's


@dataclass(frozen=True)
class Plan:
    """How long and how fast. rate: at its highest, after `warmup` steps; it falls to a hundredth along a cosine."""

    steps: int
    rate: float
    warmup: int = 100
    clip: float = 1.0

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def train(
    name: str,
    model: Module,
    loss_of: Loss,
    plan: Plan,
    folder: Path,
    layers: Iterable[Module] = (),
    seconds: float = math.inf,
    say: Callable[[str], None] = print,
) -> bool:
    """Train a model in place, going on from what `folder` holds of it; it ends with averaged weights.

    The matrices of `layers` go by Muon (Jordan et al. 2024) and all else by AdamW: that takes fewer steps than AdamW alone.
    The generators of each step depend on the name and the step only. Stops after `seconds`, having saved. Returns whether all
    steps are done.
    """
    state = folder / f"{name}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = _optimizers(model, layers)
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    first, spent = 0, 0.0
    if state.exists():
        saved = torch.load(state, map_location=next(model.parameters()).device, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, its in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        average, first, spent = saved["average"], saved["step"], saved["seconds"]
    began = last_saved = time.monotonic()
    losses: list[float] = []
    step = first
    while step < plan.steps and time.monotonic() - began < seconds:
        for optimizer, share in zip(optimizers, RATES, strict=False):
            optimizer.param_groups[0]["lr"] = plan.rate_at(step) * share
        number = f"{name}/{step}"
        loss = loss_of(random.Random(number), torch.Generator().manual_seed(random.Random(number).getrandbits(62)))
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        _follow(average, model, step)
        losses.append(loss.item())
        if step % 50 == 0 or step == plan.steps:
            now = time.monotonic()
            elapsed = spent + now - began
            say(f"{name} {step}/{plan.steps} loss {sum(losses) / len(losses):.4f} {elapsed:.0f} s")
            losses.clear()
            if now - last_saved > SAVE_EVERY or step == plan.steps:
                _save(state, model, optimizers, average, step, elapsed)
                last_saved = now
    if step > first:
        _save(state, model, optimizers, average, step, spent + time.monotonic() - began)
    model.load_state_dict(average)
    return step >= plan.steps


def averaged(name: str, folder: Path) -> dict[str, torch.Tensor] | None:
    """The averaged weights of what was trained under a name so far."""
    state = folder / f"{name}.pt"
    return torch.load(state, map_location="cpu", weights_only=True)["average"] if state.exists() else None


def _optimizers(model: Module, layers: Iterable[Module]) -> list[Optimizer]:
    matrices = [weight for layer in layers for weight in layer.parameters() if weight.ndim == 2]
    of_muon = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in of_muon]
    optimizers: list[Optimizer] = [AdamW(others, betas=(0.9, 0.98), weight_decay=0.01)]
    if matrices:
        optimizers.append(Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimizers


@torch.no_grad()
def _follow(average: dict[str, torch.Tensor], model: torch.nn.Module, step: int) -> None:
    keep = min(1 - 1 / AVERAGE_OVER, step / (step + 10))
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - keep)


def _save(path: Path, model, optimizers: list[Optimizer], average, step: int, seconds: float) -> None:
    states = [optimizer.state_dict() for optimizer in optimizers]
    whole = {"model": model.state_dict(), "optimizers": states, "average": average, "step": step, "seconds": seconds}
    torch.save(whole, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
