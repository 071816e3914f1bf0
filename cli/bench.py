"""`python . bench NAME`: measures the pack on random weights against transformers, diffusers and the machine's limits; `counts`
computes what a GPU would be asked for."""

import argparse
import importlib
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from ..bench.table import FORMATS, save
from . import card
from .choices import DEVICE_HELP, DTYPES, FULL, QUANTIZATIONS, SIZES
from .progress import quiet_libraries


def numbers(text: str) -> list[int]:
    """The numbers of a list such as 512,1024: an option's type."""
    return [int(part) for part in text.split(",")]


def quantizations(text: str) -> list[str]:
    """The formats of a list such as none,int8: an option's type."""
    if unknown := [name for name in text.split(",") if name not in QUANTIZATIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(QUANTIZATIONS)}")
    return text.split(",")


def add_parser(commands, common: Sequence[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure speed and memory",
        description="Measures the stages on random weights. Without NAME: e2e --against reference.",
    )
    benches = parser.add_subparsers(required=True, metavar="NAME")

    def add(name: str, title: str) -> argparse.ArgumentParser:
        bench = benches.add_parser(name, parents=common, help=title, description=title)
        _add_models(bench, size="tiny", dtype_help="default: float32 on the CPU, bfloat16 elsewhere")
        _add_rounds(bench)
        bench.set_defaults(run=partial(run, name))
        return bench

    ar = add("ar", "milliseconds a token of the AR stage, against transformers' generate")
    _add_batch(ar, "sequences at once")
    _add_quantization(ar, "the AR model's weights")
    _add_against(ar, "transformers' generate, forced to emit as many tokens")
    dit = add("dit", "seconds a guided step of the DiT, against diffusers' pipeline")
    _add_batch(dit)
    dit.add_argument("--steps", type=int, default=4, help="steps of each run; default: %(default)s")
    _add_quantization(dit, "the DiT's weights")
    _add_against(dit, "diffusers' pipeline, with the same prior tokens")
    vae = add("vae", "seconds a picture of the VAE, against diffusers' AutoencoderKL")
    _add_against(vae, "AutoencoderKL, called directly")
    e2e = add("e2e", "whole workflows, against diffusers' pipeline")
    _add_batch(e2e)
    e2e.add_argument("--steps", type=int, default=10, help="steps of each run; default: %(default)s")
    _add_against(e2e, "diffusers' pipeline")
    memory = add("memory", "the predicted peak memory of each stage, against the measured one")
    _add_batch(memory)
    memory.add_argument(
        "--references", type=numbers, default=[0, 1], metavar="N[,N...]", help="how many references of the picture's size"
    )
    memory.add_argument("--cap", type=float, metavar="GB", help="the most device memory PyTorch may use (CUDA only)")
    memory.add_argument(
        "--settings",
        choices=("resident", "recommended"),
        default="resident",
        help="resident: each model whole on the device; recommended: quantized, streamed and tiled as `inspect` recommends for a "
        "card of --cap; default: %(default)s",
    )
    regrow = add("regrow", "seconds and passes to draw a part of a plan anew, against all of it")
    _add_batch(regrow, "plans at once")
    add("checks", "whether a device computes what it should, with a reason where it does not")
    card.add_parser(benches, common)
    title = "kernels, traffic, memory and times that a GPU would be asked for, computed without one"
    counts = benches.add_parser("counts", parents=common, help=title, description=title)
    _add_models(counts, size=FULL, dtype="bfloat16", dtype_help="default: %(default)s")
    counts.add_argument(
        "--batch", dest="sequences", type=numbers, default=[1, 16], metavar="N[,N...]", help="AR sequences at once; default: 1,16"
    )
    counts.add_argument(
        "--lookahead",
        type=numbers,
        default=[1, 8, 32],
        metavar="N[,N...]",
        help="AR tokens of a pass of one sequence; default: 1,8,32",
    )
    counts.add_argument(
        "--quantization",
        type=quantizations,
        default=[*QUANTIZATIONS],
        metavar="FORMAT[,FORMAT...]",
        help=f"of AR model and DiT; default: {','.join(QUANTIZATIONS)}",
    )
    counts.set_defaults(run=count)


def with_default_bench(arguments: list[str]) -> list[str]:
    """`bench` alone, or with options only, is `bench e2e --against reference`."""
    command = next((place for place, argument in enumerate(arguments) if not argument.startswith("-")), None)
    if command is None or arguments[command] != "bench":
        return arguments
    after = arguments[command + 1 :]
    if after and (after[0] in ("-h", "--help") or not after[0].startswith("-")):
        return arguments
    return [*arguments[: command + 1], "e2e", "--against", "reference", *after]


def _add_batch(parser: argparse.ArgumentParser, meaning: str = "pictures at once") -> None:
    parser.add_argument("--batch", type=numbers, default=[1], metavar="N[,N...]", help=f"{meaning}; default: 1")


def _add_quantization(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="none", help=f"format of {what}; default: none")


def _add_against(parser: argparse.ArgumentParser, reference: str) -> None:
    parser.add_argument("--against", choices=["reference"], help=f"also measure the reference: {reference}")


def _add_models(parser: argparse.ArgumentParser, *, size: str, dtype: str | None = None, dtype_help: str) -> None:
    parser.add_argument(
        "--size",
        choices=(*SIZES, FULL),
        default=size,
        help=f"size of the models, {FULL} is the released one; default: %(default)s",
    )
    parser.add_argument("--width", type=numbers, default=[512], metavar="PX[,PX...]", help="picture widths; default: 512")
    parser.add_argument(
        "--height", type=numbers, default=None, metavar="PX[,PX...]", help="one height for each width; default: the widths"
    )
    parser.add_argument("--dtype", choices=DTYPES, default=dtype, help=dtype_help)
    parser.add_argument("--save", type=Path, metavar="FILE", help=f"also write the tables to this file ({', '.join(FORMATS)})")


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up; default: %(default)s")
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.add_argument("--threads", type=int, help="CPU threads that PyTorch may use")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the runs")


def run(name: str, options: argparse.Namespace) -> int:
    if options.rounds < 1:
        raise ValueError(f"--rounds is {options.rounds}; use 1 or more")
    if options.save:
        card.check_file(options.save)

    import torch

    from ..bench.models import RandomGlmImage
    from ..glmimage_core.weights.formats import check_format
    from .device import device_option

    options.device = device_option(options.device)
    options.dtype = options.dtype or ("float32" if options.device.type == "cpu" else "bfloat16")
    if options.threads:
        torch.set_num_threads(options.threads)
    quantization = getattr(options, "quantization", "none")
    check_format(quantization, options.device)
    return _print_tables(name, options, partial(RandomGlmImage.make, quantization=quantization))


def count(options: argparse.Namespace) -> int:
    """`bench counts`, which computes on no device and repeats nothing."""
    if options.save:
        card.check_file(options.save)

    import torch

    from ..bench.models import MetaGlmImage

    options.device, options.seed = torch.device("meta"), 0
    return _print_tables("counts", options, MetaGlmImage.make)


def _print_tables(name: str, options: argparse.Namespace, make) -> int:
    """Print and save what a benchmark finds. make: as RandomGlmImage.make."""
    from ..bench.environment import environment
    from ..bench.measure import cases
    from ..glmimage_core.checkpoints.build import check_libraries
    from ..glmimage_core.checkpoints.report import DTYPES

    dtype, options.dtype = options.dtype, DTYPES[options.dtype]
    options.cases = cases(options.width, options.height or options.width, getattr(options, "batch", [1]))
    bench = importlib.import_module(f"...bench.{name}", __name__)
    bench.check(options)
    check_libraries()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        glm = make(Path(folder), options.size, device=options.device, dtype=dtype, seed=options.seed)
        about, tables = environment(name, options), {}
        print(", ".join(f"{key} {value}" for key, value in about.items()))
        if options.save:
            save(options.save, about, [])
        for title, growing in groupby(bench.measure(options, glm), key=lambda table: table.title):
            for table in growing:
                tables[title] = table
                if options.save:  # after every row, so that a run that ends early leaves what it measured
                    save(options.save, about, [*tables.values()])
            print(f"\n{table.markdown()}", flush=True)
    return 0
