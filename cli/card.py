"""`python . bench card`: the first day on a GPU, in one file to attach to a report."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..bench.card import OK, Card, Outcome, Step, measure
from ..bench.table import FORMATS
from .choices import DEVICE_HELP, FULL, SIZES

FILE = Path("glm-image-card.json")
LIMIT = 480.0  # seconds


def add_parser(benches, common: Sequence[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "card",
        parents=common,
        help="all of it in one file to attach to a report, in eight minutes at most",
        description="Checks, speed and peaks of a GPU in one file to attach to a report. Downloads nothing.",
    )
    parser.add_argument("--size", choices=(*SIZES, FULL), default="", help=f"size of the random models; default: {FULL} on a GPU")
    parser.add_argument("--device", default="", help=DEVICE_HELP)
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS", help="time for all steps; default: %(default)s")
    parser.add_argument(
        "--save", type=Path, default=FILE, metavar="FILE", help=f"file to write ({', '.join(FORMATS)}); default: %(default)s"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    check_file(options.save)
    if not options.limit > 0:
        raise ValueError(f"--limit is {options.limit}; it must be above 0")
    if options.device:
        from .device import device_option

        device_option(options.device)  # one that is not here is told before anything runs
    card = Card(options.size, options.device)
    measure(card, options.limit, on_step=_begin, on_outcome=partial(_end, card, options.save))
    print(f"\n{card.summary().markdown()}")
    if not any(outcome.result == OK for outcome in card.outcomes):
        print(f"nothing was measured; {options.save} says why", file=sys.stderr)
        return 1
    print(f"{options.save} is to be attached to a report", file=sys.stderr)
    return 0


def check_file(file: Path) -> None:
    """Raise ValueError for another kind of file, FileNotFoundError where its folder is missing."""
    from ..glmimage_core.checkpoints.outputs import check_writable

    if file.suffix not in FORMATS:
        raise ValueError(f"--save {file} must end in one of these: {' or '.join(FORMATS)}")
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(f"--save {file}: there is no folder {file.absolute().parent}")
    check_writable(file)


def _begin(step: Step, seconds: float) -> None:
    print(f"{step.name}: {seconds:.0f} s at most ...", file=sys.stderr)


def _end(card: Card, file: Path, outcome: Outcome) -> None:
    card.save(file)
    print(f"{outcome.step}: {outcome.result}" + (f" ({outcome.reason})" if outcome.reason else ""), file=sys.stderr)
    for table in outcome.tables:
        print(f"\n{table.markdown()}", flush=True)
