"""`python . quantize`: writes a quantized copy of a checkpoint."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .choices import QUANTIZATIONS
from .progress import StageProgress, quiet_libraries


def add_parser(commands, common: Sequence[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "quantize",
        parents=common,
        help="write a quantized copy of a checkpoint",
        description="Writes a quantized copy of a checkpoint. Run the same command again to continue after an interruption.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a folder with model_index.json")
    parser.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        help="output folder, created if missing; must be empty or hold an unfinished run",
    )
    parser.add_argument("--ar", choices=QUANTIZATIONS, default="none", help="format of the AR model; default: %(default)s")
    parser.add_argument("--dit", choices=QUANTIZATIONS, default="none", help="format of the DiT; default: %(default)s")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if not options.checkpoint.is_dir():
        raise FileNotFoundError(f"{options.checkpoint} is not a folder; a checkpoint folder is quantized as a whole")

    from ..glmimage_core.glm_image.files.quantize import quantize_checkpoint

    quiet_libraries()
    progress = StageProgress()

    def show(done: int, total: int, preview=None) -> None:
        progress("Tensors", done, total)

    formats = {"vision_language_encoder": options.ar, "transformer": options.dit}
    try:
        quantize_checkpoint(options.checkpoint, options.out, formats, show)
    finally:
        progress.close()
    print(options.out)
    return 0
