"""`python . bench`: the pack against transformers' and diffusers' own code, and against the limits of the machine.

ar         the AR stage, a token at a time
dit        the DiT, a guided step at a time
vae        the VAE, whole and in tiles
e2e        the shipped workflows from prompt to picture
memory     predicted against measured peaks of each stage
libraries  transformers' generate and diffusers' pipeline over the same models
inputs     random inputs, to measure a later stage alone
measure    rounds, stopwatch, peaks, and the machine's rates
models     random models of a size, created on the device
table      tables, printed and saved

Implementations that are compared take turns in one process and on the same weights, so that a noisy machine disturbs all of them
alike. Each figure is a median.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from ..cli.device import device_option
from ..glmimage_core.checkpoints.build import check_libraries
from ..glmimage_core.checkpoints.report import DTYPES
from ..glmimage_core.tiny.spec import SPECS
from . import ar, dit, e2e, memory, vae
from .measure import cases, numbers
from .models import FULL, Models
from .table import FORMATS, environment, save

BENCHES: dict[str, ModuleType] = {"ar": ar, "dit": dit, "vae": vae, "e2e": e2e, "memory": memory}


def add_bench(commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure against diffusers and against the machine",
        description="Measures the stages on random weights. Without a name: e2e --against reference.",
    )
    benches = parser.add_subparsers(required=True, metavar="NAME")
    for name, module in BENCHES.items():
        title = module.__doc__.splitlines()[0]
        bench = benches.add_parser(name, help=title, description=title)
        _add_common(bench)
        module.add_options(bench)
        bench.set_defaults(run=partial(_bench, name))


def with_default_bench(arguments: list[str]) -> list[str]:
    """`bench` alone, or with options only, is `bench e2e --against reference`."""
    named = arguments[1:2] and (arguments[1] in ("-h", "--help") or not arguments[1].startswith("-"))
    return arguments if arguments[:1] != ["bench"] or named else ["bench", "e2e", "--against", "reference", *arguments[1:]]


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", choices=(*SPECS, FULL), default="tiny", help=f"of the random models; {FULL} is the released one"
    )
    parser.add_argument("--width", type=numbers, default=[512], metavar="PX[,PX...]", help="of the pictures, in pixels")
    parser.add_argument(
        "--height", type=numbers, default=None, metavar="PX[,PX...]", help="one for each width; by default equal to the width"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after a warm-up round")
    parser.add_argument("--dtype", choices=list(DTYPES), help="float32 on the CPU and bfloat16 elsewhere by default")
    parser.add_argument("--device", help="cuda, mps or cpu; the best available by default")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the runs")
    parser.add_argument("--save", type=Path, metavar="FILE", help=f"also write the tables there ({', '.join(FORMATS)})")


def _bench(name: str, options: argparse.Namespace) -> int:
    options.device = device_option(options.device)
    options.dtype = DTYPES[options.dtype or ("float32" if options.device.type == "cpu" else "bfloat16")]
    if options.rounds < 1:
        raise ValueError(f"--rounds is {options.rounds}; use 1 or more")
    if options.save and options.save.suffix not in FORMATS:
        raise ValueError(f"--save {options.save} must end in one of these: {' or '.join(FORMATS)}")
    if options.save and not options.save.absolute().parent.is_dir():
        raise FileNotFoundError(f"--save {options.save}: there is no folder {options.save.absolute().parent}")
    options.cases = cases(options.width, options.height or options.width, getattr(options, "batch", [1]))
    BENCHES[name].check(options)
    check_libraries()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        models = Models(Path(folder), options.size, device=options.device, dtype=options.dtype, seed=options.seed)
        about = environment(name, options)
        print(", ".join(f"{key} {value}" for key, value in about.items()))
        tables = []
        for table in BENCHES[name].measure(options, models):
            print(f"\n{table.markdown()}", flush=True)
            tables.append(table)
    if options.save:
        save(options.save, about, tables)
    return 0
