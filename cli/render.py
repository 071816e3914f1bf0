"""`python . render`: runs a workflow file without ComfyUI."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..bench.table import Table
from ..workflows import find_workflow
from .choices import DEVICE_HELP
from .graph.workflow import read_file
from .messages import one_line
from .progress import StageProgress, quiet_libraries


def add_parser(commands, common: Sequence[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "render",
        parents=common,
        help="run a workflow file",
        description="Runs a workflow without ComfyUI and prints the path of each picture.",
    )
    parser.add_argument(
        "workflow",
        type=Path,
        metavar="WORKFLOW",
        help="API or UI format (.json), a PNG, WebP or JPEG that carries one, or a shipped workflow's short name, such as nano",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="change an input; NODE is an id or a title; may be repeated",
    )
    parser.add_argument(
        "--enable",
        action="append",
        default=[],
        metavar="NODE",
        help="switch on a bypassed or muted node of a file in UI format; may be repeated",
    )
    parser.add_argument(
        "--nano",
        action="store_true",
        help="run it on the built-in model: its checkpoint in every loader, sizes that it knows, no LoRA, no language model",
    )
    parser.add_argument(
        "--models",
        type=Path,
        default=Path("models"),
        metavar="DIR",
        help="a folder like ComfyUI's models: DIR/diffusers/NAME is a checkpoint, DIR/LLM/NAME a vision-language model; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--input", type=Path, default=Path("input"), metavar="DIR", help="folder that Load Image reads; default: %(default)s"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output"), metavar="DIR", help="folder that Save Image writes; default: %(default)s"
    )
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    file = read_file(find_workflow(options.workflow))

    from ..glmimage_core.placement.residency import Residency
    from ..nodes.host import host
    from .device import device_option
    from .graph.nano import run_on_nano
    from .graph.nodes import ALL_NODES
    from .graph.runner import Runner
    from .graph.stock import Folders

    quiet_libraries()
    host.models, host.input, host.output = options.models, options.input, options.output
    host.on_progress = progress = StageProgress()
    if options.device:
        host.residency = Residency(device_option(options.device))
    workflow = file.workflow(ALL_NODES, options.enable)
    if options.nano:
        run_on_nano(workflow, ALL_NODES)
    for assignment in options.set:
        workflow.set(assignment, ALL_NODES)
    folders = Folders(options.input, options.output, written=[])
    host.on_saved = folders.written.append
    timings: list[tuple[str, float]] = []

    def finished(title: str, seconds: float) -> None:
        progress.close()  # a stage may stop before its last step, as a language model does at the end of its answer
        timings.append((one_line(title), seconds))

    began = time.perf_counter()
    try:
        Runner(ALL_NODES, folders, on_finished=finished).run(workflow)
    finally:
        progress.close()
        for path in folders.written:
            print(path)
    total = time.perf_counter() - began
    timings += [("checks and imports", total - sum(seconds for _, seconds in timings)), ("total", total)]
    rows = [{"seconds": f"{seconds:.2f}", "what ran": title} for title, seconds in timings]
    print(Table("", rows).text(left=["what ran"]), file=sys.stderr)
    return 0
