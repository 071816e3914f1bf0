"""`python . convert`: writes a published CogView3-Base in the layout of diffusers."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .choices import COGVIEW3_STAGES
from .progress import quiet_libraries


def add_parser(commands, common: Sequence[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "convert",
        parents=common,
        help="convert CogView3-Base to the layout of diffusers",
        description="Writes a published checkpoint of CogView3-Base, full or distilled, in the layout of diffusers.",
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="the published folder, which holds a file `latest`, or its .pt file"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder, created if missing; must be empty")
    parser.add_argument(
        "--stage", choices=COGVIEW3_STAGES, required=True, help="which stage SOURCE is; its weights do not show that"
    )
    parser.add_argument("--vae", type=Path, metavar="VAE", help="sdxl_vae.safetensors, or a folder of diffusers with SDXL's VAE")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if not options.source.exists():
        raise FileNotFoundError(f"{options.source} is neither a folder nor a file")

    from ..glmimage_core.cogview3.convert import convert

    quiet_libraries()
    for left_out in convert(options.source, options.out, options.stage, options.vae):
        print(f"left out: {left_out}", file=sys.stderr)
    print(options.out)
    return 0
