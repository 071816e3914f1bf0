"""The command line: `python . COMMAND`."""

import argparse
import logging
import sys

from . import bench, convert, info, inspect, quantize, render, score, tiny, train
from .graph.errors import NodeError
from .messages import MessageFormatter, one_line
from .progress import logging_beside_bars
from .version import NAME, pack_version

COMMANDS = (render, inspect, quantize, convert, tiny, bench, score, train, info)
PACKAGE = __package__.rpartition(".")[0]


def main(arguments: list[str]) -> int:
    """Run one command. Returns the exit status: 0, 1 when it failed, 2 when what it was given is wrong, 130 when interrupted."""
    options = _parser().parse_args(bench.with_default_bench(arguments))
    handler = logging.StreamHandler()
    handler.setFormatter(MessageFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger(PACKAGE).setLevel(logging.INFO if options.verbose else logging.NOTSET)
    try:
        with logging_beside_bars():
            return options.run(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        cause = error.error if isinstance(error, NodeError) else error
        print(one_line(str(error)), file=sys.stderr)
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
