"""`python . inspect`: what a checkpoint holds, what is missing or broken, and the memory it needs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..bench.table import Table
from .progress import quiet_libraries

SUFFIXES = (".safetensors", ".gguf")


def add_parser(commands, common: Sequence[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "inspect",
        parents=common,
        help="describe a checkpoint and what is wrong with it",
        description="Prints the sizes of a checkpoint's components, what is missing or broken, and the memory they need.",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a folder with model_index.json, or one safetensors or GGUF file"
    )
    parser.add_argument(
        "--width", type=int, default=1024, help="picture width in pixels, for the predicted memory; default: %(default)s"
    )
    parser.add_argument("--height", type=int, default=1024, help="picture height in pixels; default: %(default)s")
    parser.add_argument(
        "--references", type=int, default=1, help="how many references of the picture's size; default: %(default)s"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.references < 0:
        raise ValueError(f"--references is {options.references}; it must be 0 or above")
    if not options.checkpoint.exists():
        raise FileNotFoundError(f"{options.checkpoint} is neither a folder nor a file")

    if options.checkpoint.is_file() and options.checkpoint.suffix not in SUFFIXES:
        raise ValueError(
            f"{options.checkpoint} is no checkpoint: give a folder with model_index.json or a file that ends in "
            f"{' or '.join(SUFFIXES)}; a workflow is run by `render`"
        )

    from ..glmimage_core.glm_image.files.components import is_checkpoint
    from ..glmimage_core.glm_image.files.inspect import inspect_checkpoint
    from ..glmimage_core.glm_image.files.single_file import inspect_file
    from ..glmimage_core.glm_image.geometry import check_size
    from .predictions import print_predictions

    check_size(options.width, options.height)
    quiet_libraries()
    is_file = options.checkpoint.is_file()
    reports = [inspect_file(options.checkpoint)[1]] if is_file else inspect_checkpoint(options.checkpoint)
    print(Table("", [_row(report) for report in reports]).text(left=["component", "stored as"]))
    problems = [problem for report in reports for problem in report.problems]
    if not is_file and not is_checkpoint(options.checkpoint):
        problems.insert(0, f"{options.checkpoint / 'model_index.json'} is missing or does not name a GlmImagePipeline")
    for problem in problems:
        print(f"problem: {problem}")
    if problems:
        return 1
    if not is_file:
        reports_by_name = {report.name: report for report in reports}
        print_predictions(options.checkpoint, reports_by_name, (options.width, options.height), options.references)
    return 0


def _row(report) -> dict[str, str]:
    from ..glmimage_core.checkpoints.report import DTYPES
    from ..glmimage_core.units import human_bytes

    stored = [str(dtype).removeprefix("torch.") for dtype in report.dtypes]
    stored += [f"{name} ({parameters:,} in {human_bytes(size)})" for name, (parameters, size) in report.quantized.items()]
    return {
        "component": report.name,
        "parameters": f"{report.parameters:,}",
        "on disk": human_bytes(report.disk_bytes),
        **{name: human_bytes(report.weight_bytes(dtype)) for name, dtype in DTYPES.items()},
        "stored as": ", ".join(stored),
    }
