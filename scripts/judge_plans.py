"""Measures how often nano paints a drawing right again from the drawing's own plan.

python scripts/judge_plans.py [COUNT]
"""

import statistics
import sys

from _pack import ROOT
from glm_image_pack.glmimage_core.glm_image.pipeline import GlmImage
from glm_image_pack.training.repainting import held_out_scenes, repaint


def main(count: int) -> None:
    glm = GlmImage.load(ROOT / "nano", dtype="float32")
    results = []
    for number, scene in enumerate(held_out_scenes(count)):
        results.append(repaint(glm, scene, seed=number))
        if not results[-1].right:
            print(f"{number}: {scene} came out as {results[-1].seen}")
    right = sum(result.right for result in results)
    print(f"{right} of {count} right, median {statistics.median(result.psnr for result in results):.1f} dB to the drawing")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
