"""Trains nano, the built-in model, part by part."""

import argparse
import math
from pathlib import Path

import torch

from .device import device_option


def add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="make the built-in model anew",
        description="Trains nano from scratch. Stopped and started again it goes on; DIR/nano is the checkpoint so far.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="is made, or goes on")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="vae, vision, ar, dit, glyphs, letters; all, in this order, by default"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="for each part at most")
    parser.add_argument("--device", help="cuda, mps or cpu; the best there is by default")
    parser.add_argument("--compile", action="store_true", help="AR model and DiT through torch.compile: a minute, then faster")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from ..glmimage_core.placement.compute import check_compiler
    from ..training.make import PHASES, train_phase

    if unknown := [name for name in options.parts if name not in PHASES]:
        raise ValueError(f"there is no phase {unknown[0]!r}; the phases are {', '.join(PHASES)}")
    if not options.minutes > 0:
        raise ValueError(f"--minutes is {options.minutes}; it must be above 0")
    if options.compile:
        check_compiler()
    device = device_option(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.parts or PHASES:
        if not train_phase(name, options.folder, device, seconds=options.minutes * 60, compiled=options.compile):
            print(f"{name} is not done yet; the same command goes on")
            return 0
    print(options.folder / "nano")
    return 0
