"""Compares a process's first plan in two versions of the pack: `python scripts/measure_first_plan.py OTHER [ROUNDS]`.

OTHER is the folder of the other version, for instance made by `git worktree add OTHER COMMIT`. Each round renders nano's shipped
workflows once in each version, in a process of its own and on one thread, and prints seconds of Generate Prior by the clock and
of the processor; other work on the machine adds more to the first. The workflow files and their pictures are the other
version's, which is the older one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _pack import ROOT

WORKFLOWS = ("nano", "nano_edit")
RENDER = """
import runpy, sys, time
root, *arguments = sys.argv[1:]
runpy.run_path(f"{root}/__main__.py")["load_pack"]("glm_image_pack")
from glm_image_pack.nodes import prior
plan = prior.generate_prior
def timed(*args, **options):
    began = time.perf_counter(), time.process_time()
    made = plan(*args, **options)
    print("seconds", time.perf_counter() - began[0], time.process_time() - began[1])
    return made
prior.generate_prior = timed
from glm_image_pack.cli.main import main
main(arguments)
"""


def seconds(pack: Path, workflow: Path, output: str) -> tuple[float, ...]:
    """Seconds of Generate Prior by the clock and of the processor."""
    folders = ["--input", str(workflow.parent / "input"), "--output", output, "--device", "cpu"]
    command = [sys.executable, "-c", RENDER, str(pack), "render", str(workflow), *folders]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    line = next(line for line in run.stdout.splitlines() if line.startswith("seconds "))
    return tuple(map(float, line.split()[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER")
    parser.add_argument("rounds", type=int, nargs="?", default=9, metavar="ROUNDS", help="default: %(default)s")
    options = parser.parse_args()
    print("| workflow | seconds of | other | this | ratio | ratios |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as output:
        for workflow in WORKFLOWS:
            file = options.other / "workflows" / f"{workflow}.json"
            rounds = [[seconds(pack, file, output) for pack in (options.other, ROOT)] for _ in range(options.rounds)]
            for number, clock in enumerate(("the clock", "the processor")):
                others, ours = ([times[way][number] for times in rounds] for way in range(2))
                ratios = [other / this for other, this in zip(others, ours, strict=True)]
                medians = f"{statistics.median(others):.3f} | {statistics.median(ours):.3f} | {statistics.median(ratios):.1f}"
                print(f"| {workflow} | {clock} | {medians} | {min(ratios):.1f} to {max(ratios):.1f} |", flush=True)


if __name__ == "__main__":
    main()
