"""The command line: `python . COMMAND`."""

import argparse
import io
import logging
import sys

from ..glmimage_core.libraries import check_version, import_failure
from ..glmimage_core.version import NAME, pack_version
from . import bench, convert, info, inspect, quantize, render, score, tiny, train
from .graph.errors import NodeError
from .messages import MessageFormatter, one_line
from .progress import logging_beside_bars

COMMANDS = (render, inspect, quantize, convert, tiny, bench, score, train, info)
PACKAGE = __package__.rpartition(".")[0]


def main(arguments: list[str]) -> int:
    """Run one command. Returns the exit status: 0, 1 when it failed, 2 when what it was given is wrong, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks, as in a path, is shown with an escape
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(bench.with_default_bench(arguments))
    handler = logging.StreamHandler()
    handler.setFormatter(MessageFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger(PACKAGE).setLevel(logging.INFO if options.verbose else logging.NOTSET)
    try:
        with logging_beside_bars():
            if options.run is not info.run:  # which is to tell also of what is too old
                check_version("torch")
                check_version("numpy")  # without which torch starts, and warns
            return options.run(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        cause = error.error if isinstance(error, NodeError) else error
        print(
            one_line(import_failure(error) if isinstance(error, ModuleNotFoundError) else str(error)) or "out of memory",
            file=sys.stderr,
        )
        logging.getLogger(PACKAGE).info("where it was raised", exc_info=error)
        return 2 if isinstance(cause, ValueError | FileNotFoundError | ImportError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python .", description="GLM-Image without ComfyUI.")
    parser.add_argument("--version", action="version", version=f"{NAME} {pack_version()}")
    log = {"action": "store_true", "help": "also show the log, on standard error"}
    parser.add_argument("-v", "--verbose", **log)
    common = argparse.ArgumentParser(add_help=False)  # what every command takes
    common.add_argument("-v", "--verbose", **log, default=argparse.SUPPRESS)  # without it, what stands before the command counts
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands, [common])
    return parser
