"""`python . train`: trains nano, the built-in model, phase by phase."""

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .choices import DEVICE_HELP, TRAINED_PHASES
from .clone import check_training
from .progress import quiet_libraries


def add_parser(commands, common: Sequence[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train",
        parents=common,
        help="train nano, the built-in model, from scratch",
        description="Trains nano from scratch. Run the same command again to continue; DIR/nano is the checkpoint so far.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder for the training run; continues if it exists")
    parser.add_argument("parts", nargs="*", metavar="PHASE", help=f"{', '.join(TRAINED_PHASES)}; default: all, in this order")
    parser.add_argument("--minutes", type=float, default=math.inf, help="the longest time for each phase; default: no limit")
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers of the AR model and of the DiT: takes a minute, then training is faster",
    )
    parser.add_argument("--threads", type=int, help="CPU threads that PyTorch may use")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    check_training("train")
    if unknown := [name for name in options.parts if name not in TRAINED_PHASES]:
        raise ValueError(f"there is no phase {unknown[0]!r}; the phases are {', '.join(TRAINED_PHASES)}")
    if not options.minutes > 0:
        raise ValueError(f"--minutes is {options.minutes}; it must be above 0")

    import torch

    from ..glmimage_core.checkpoints.outputs import check_writable
    from ..glmimage_core.placement.compute import check_compiler
    from ..training.make import train_phase
    from .device import device_option

    check_writable(options.folder / "nano")
    if options.compile:
        check_compiler()
    quiet_libraries()
    device = device_option(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    said = partial(print, file=sys.stderr, flush=True)
    settings = {
        "seconds": options.minutes * 60,
        "compiled": options.compile,
        "rewrite": not (options.folder / "nano").exists(),
        "report": said,
    }
    for name in options.parts or TRAINED_PHASES:
        if not train_phase(name, options.folder, device, **settings):
            said(f"{name} is not done yet; run the same command again to continue")
            return 0
    print(options.folder / "nano")
    return 0
