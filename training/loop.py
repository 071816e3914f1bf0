"""One training loop for every phase: seeded by the step, resumable, with an exponential moving average (EMA) of the weights."""

import math
import random
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import Module
from torch.optim import AdamW, Optimizer
from torch.overrides import TorchFunctionMode

from ..glmimage_core.placement.compute import emulates

Loss = Callable[[random.Random, torch.Generator], torch.Tensor]
"""Draws a batch from two generators and returns its loss."""

SAVE_EVERY = 120  # seconds
REPORT_EVERY = 50  # steps
EMA_STEPS = 300  # over about how many steps the weights are averaged at the end of a run
ADAMW_RATE, MUON_RATE = 1.0, 2.5  # factors on a recipe's learning rate


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a phase.

    learning_rate: the highest one, reached after `warmup` steps; from there it falls along a cosine to a hundredth. clip: the
    largest norm of the gradient.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    clip: float = 1.0

    def learning_rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def train(
    name: str,
    model: Module,
    loss_of: Loss,
    recipe: Recipe,
    *,
    folder: Path,
    layers: Iterable[Module] = (),
    seconds: float = math.inf,
    report: Callable[[str], None] = print,
) -> bool:
    """Train a model in place, from the state that `folder` holds if there is one. The model ends with the averaged weights.

    The matrices of `layers` are trained by Muon (Jordan et al. 2024) and all else by AdamW, which takes fewer steps than AdamW
    alone. The generators of a step are seeded by the name and the step, so a run that was stopped ends where a whole one does.
    Stops after `seconds` and saves. Returns whether all steps are done. report: takes a line of progress now and then.
    """
    state_file = folder / f"{name}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = _optimizers(model, layers)
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    first_step, seconds_before = 0, 0.0
    if state_file.exists():
        saved = torch.load(state_file, map_location=next(model.parameters()).device, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        average, first_step, seconds_before = saved["average"], saved["step"], saved["seconds"]
    emulated = emulates(next(model.parameters()).device, torch.bfloat16)
    began = last_saved = time.monotonic()
    losses: list[float] = []
    step = first_step
    while step < recipe.steps and time.monotonic() - began < seconds:
        for optimizer, factor in zip(optimizers, (ADAMW_RATE, MUON_RATE), strict=False):  # Muon only with layers
            optimizer.param_groups[0]["lr"] = recipe.learning_rate_at(step) * factor
        seed = f"{name}/{step}"
        loss = loss_of(random.Random(seed), torch.Generator().manual_seed(random.Random(seed).getrandbits(62)))
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        with _Float32ForBfloat16() if emulated else nullcontext():
            for optimizer in optimizers:
                optimizer.step()
        step += 1
        _update_average(average, model, step)
        losses.append(loss.item())
        if step % REPORT_EVERY == 0 or step == recipe.steps:
            now = time.monotonic()
            elapsed = seconds_before + now - began
            report(f"{name} {step}/{recipe.steps} loss {sum(losses) / len(losses):.4f} {elapsed:.0f} s")
            losses.clear()
            if now - last_saved > SAVE_EVERY or step == recipe.steps:
                _save(state_file, model, optimizers, average=average, step=step, seconds=elapsed)
                last_saved = now
    if step > first_step:
        elapsed = seconds_before + time.monotonic() - began
        _save(state_file, model, optimizers, average=average, step=step, seconds=elapsed)
    model.load_state_dict(average)
    return step >= recipe.steps


def mixed_precision(device: torch.device) -> torch.autocast:
    """Matrix products in bfloat16 where the device has them. Without AVX-512 a CPU took 16 times as long as in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=not emulates(device, torch.bfloat16))


class _Float32ForBfloat16(TorchFunctionMode):
    """Tensors that are to be converted to bfloat16 become float32: torch's Muon always asks for bfloat16."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return args[0].float() if function is torch.Tensor.bfloat16 else function(*args, **(kwargs or {}))


def averaged(name: str, folder: Path) -> dict[str, torch.Tensor] | None:
    """The averaged weights of a phase as far as it was trained, or None."""
    state_file = folder / f"{name}.pt"
    return torch.load(state_file, map_location="cpu", weights_only=True)["average"] if state_file.exists() else None


def steps_done(name: str, folder: Path) -> int:
    """How many steps of a phase its state holds."""
    state_file = folder / f"{name}.pt"
    return torch.load(state_file, map_location="cpu", weights_only=True, mmap=True)["step"] if state_file.exists() else 0


def _optimizers(model: Module, layers: Iterable[Module]) -> list[Optimizer]:
    matrices = [weight for layer in layers for weight in layer.parameters() if weight.ndim == 2]
    of_muon = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in of_muon]
    optimizers: list[Optimizer] = [AdamW(others, betas=(0.9, 0.98), weight_decay=0.01)]
    if matrices:
        if not hasattr(torch.optim, "Muon"):
            raise ImportError("this phase is trained by Muon, which torch has from version 2.9 on: pip install -U torch")
        optimizers.append(torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimizers


@torch.no_grad()
def _update_average(average: dict[str, torch.Tensor], model: torch.nn.Module, step: int) -> None:
    """Move the average towards the weights. It follows fast at first, so that the first weights are soon forgotten.

    torch.optim.swa_utils.AveragedModel would start at the weights after the first step and hold a copy of the whole model.
    """
    decay = min(1 - 1 / EMA_STEPS, step / (step + 10))
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)


def _save(
    file: Path,
    model: Module,
    optimizers: list[Optimizer],
    *,
    average: dict[str, torch.Tensor],
    step: int,
    seconds: float,
) -> None:
    """Write the state under another name first: an interruption leaves the last state whole."""
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"model": model.state_dict(), "optimizers": states, "average": average, "step": step, "seconds": seconds}
    torch.save(state, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)
