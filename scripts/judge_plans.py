"""Measures how often nano paints a drawing right again from the drawing's own plan.

python scripts/judge_plans.py [--larger] [COUNT]
"""

import argparse
import statistics

from _pack import ROOT
from glm_image_pack.glmimage_core.glm_image.pipeline import GlmImage
from glm_image_pack.training.repainting import held_out_scenes, repaint
from glm_image_pack.training.scoring import LARGER_SIZES, SIZES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=50, metavar="COUNT", help="default: %(default)s")
    parser.add_argument("--larger", action="store_true", help="drawings of 512x512, 512x256 and 256x512 pixels")
    options = parser.parse_args()
    glm = GlmImage.load(ROOT / "nano", dtype="float32")
    results = []
    for number, scene in enumerate(held_out_scenes(options.count, LARGER_SIZES if options.larger else SIZES)):
        results.append(repaint(glm, scene, seed=number))
        if not results[-1].right:
            print(f"{number}: {scene} came out as {results[-1].seen}")
    right, psnr = sum(result.right for result in results), statistics.median(result.psnr for result in results)
    print(f"{right} of {options.count} right, median {psnr:.1f} dB to the drawing")


if __name__ == "__main__":
    main()
