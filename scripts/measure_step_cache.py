"""Measures what the step cache saves and costs on nano, as a table: `python scripts/measure_step_cache.py [--prompts N]`.

    skipped       share of the passes that computed their first block only
    median, min   PSNR in dB of the pictures to those without a step cache, over the prompts
    time          seconds of painting, decoding included, over those without a step cache

The prompts are the first of `python . score` of each subject without references. Both ways take turns.
"""

import argparse
import logging
import re
import statistics
import time

import _pack  # noqa: F401, before what it loads
import torch
from glm_image_pack.glmimage_core import GlmImage
from glm_image_pack.glmimage_core.glm_image.denoise import Approximations
from glm_image_pack.training import scoring
from glm_image_pack.training.world import CELL_PX

STEPS = (20, 30, 50)
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3)


class Passes(logging.Handler):
    """Adds up the passes that the log speaks of."""

    skipped = passes = 0

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.fullmatch(r"step cache: (\d+) of (\d+) passes .*", record.getMessage()):
            self.skipped += int(found[1])
            self.passes += int(found[2])


def psnr(picture: torch.Tensor, exact: torch.Tensor) -> float:
    return -10 * (picture - exact).square().mean().clamp(min=1e-12).log10().item()


def measure(glm: GlmImage, plans: list, steps: int, threshold: float) -> str:
    log, counted, distances = logging.getLogger("glm_image_pack"), Passes(), []
    log.setLevel(logging.INFO)
    log.addHandler(counted)
    seconds = {0.0: 0.0, threshold: 0.0}
    for number, plan in enumerate(plans):
        painted = {}
        for way in list(seconds)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            painted[way] = glm.paint_tensor(plan, seed=number, steps=steps, approximations=Approximations(step_cache=way))
            seconds[way] += time.perf_counter() - began
        distances.append(psnr(painted[threshold], painted[0.0]))
    log.removeHandler(counted)
    share, ratio = 100 * counted.skipped / counted.passes, seconds[threshold] / seconds[0.0]
    return f"| {steps} | {threshold} | {share:.0f} % | {statistics.median(distances):.1f} | {min(distances):.1f} | {ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=18, help="default: %(default)s")
    wanted = parser.parse_args().prompts
    glm = GlmImage.nano()
    asked = [question.asked for question in scoring.questions(wanted / 350) if question.subject != "edit"][:wanted]
    sizes = [(request.scene.columns * CELL_PX, request.scene.rows * CELL_PX) for request in asked]
    plans = [
        glm.plan(request.prompt, *size, seed=number) for number, (request, size) in enumerate(zip(asked, sizes, strict=True))
    ]
    print("| steps | step_cache | skipped | median dB | min dB | time |\n|---|---|---|---|---|---|", flush=True)
    for steps in STEPS:
        for threshold in THRESHOLDS:
            print(measure(glm, plans, steps, threshold), flush=True)


if __name__ == "__main__":
    main()
