"""`python . train`: trains nano, the built-in model, part by part."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from .choices import DEVICE_HELP, TRAINED_PARTS
from .progress import quiet_libraries


def add_parser(commands, common: Sequence[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train",
        parents=common,
        help="train nano, the built-in model, from scratch",
        description="Trains nano from scratch. Run the same command again to continue; DIR/nano is the checkpoint so far.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder for the training run; continues if it exists")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(TRAINED_PARTS)}; default: all, in this order")
    parser.add_argument("--minutes", type=float, default=math.inf, help="the longest time for each part; default: no limit")
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers of the AR model and of the DiT: takes a minute, then training is faster",
    )
    parser.add_argument("--threads", type=int, help="CPU threads that PyTorch may use")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if unknown := [name for name in options.parts if name not in TRAINED_PARTS]:
        raise ValueError(f"there is no part {unknown[0]!r}; the parts are {', '.join(TRAINED_PARTS)}")
    if not options.minutes > 0:
        raise ValueError(f"--minutes is {options.minutes}; it must be above 0")

    import torch

    from ..glmimage_core.placement.compute import check_compiler
    from ..nodes.host.standalone import best_device, usable_device
    from ..training.make import train_part

    if options.compile:
        check_compiler()
    quiet_libraries()
    device = usable_device(options.device) if options.device else best_device()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.parts or TRAINED_PARTS:
        if not train_part(name, options.folder, device, options.minutes * 60, options.compile):
            print(f"{name} is not done yet; run the same command again to continue")
            return 0
    print(options.folder / "nano")
    return 0
