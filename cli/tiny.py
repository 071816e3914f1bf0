"""`python . tiny`: writes a small random checkpoint in the released layout."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .choices import SIZES
from .progress import quiet_libraries

FAMILIES = ("glm-image", "glmga", "cogview3-plus", "cogview3-base")


def add_parser(commands, common: Sequence[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "tiny",
        parents=common,
        help="write a small random checkpoint",
        description="Writes a small random checkpoint in the released layout, to try graphs with. It paints noise.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="output folder, created if missing; must be empty")
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="tiny",
        help="size of glm-image; tiny: a few MB, for tests; small, 60 MB, and medium, 1.6 GB: for benchmarks; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        default="glm-image",
        help="glmga is a vision-language model; cogview3-base is written as published, for `convert`; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights; default: %(default)s")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..glmimage_core.checkpoints.outputs import whole_folder
    from ..glmimage_core.tiny.cogview3_base import write_cogview3_base
    from ..glmimage_core.tiny.cogview3_plus import write_cogview3
    from ..glmimage_core.tiny.glm_image import write_checkpoint
    from ..glmimage_core.tiny.vlm import write_vlm

    quiet_libraries()
    with whole_folder(options.folder) as folder:  # after a kill there is none that counts as a checkpoint
        if options.family == "glm-image":
            write_checkpoint(folder, options.size, options.seed)
        else:
            write = {"glmga": write_vlm, "cogview3-plus": write_cogview3, "cogview3-base": write_cogview3_base}[options.family]
            write(folder, options.seed)
    print(options.folder)
    return 0
