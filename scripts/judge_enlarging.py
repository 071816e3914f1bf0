"""Measures how often nano enlarges a drawing right, in one piece and in tiles, and how close to the true drawing.

python scripts/judge_enlarging.py [COUNT] [DENOISE]
"""

import statistics
import sys

from _pack import ROOT
from glm_image_pack.glmimage_core.glm_image.pipeline import GlmImage
from glm_image_pack.training.enlarging import TILING, enlarge, small_scenes


def main(count: int, denoise: float) -> None:
    glm = GlmImage.load(ROOT / "nano", dtype="float32")
    for name, tiling in {"in one piece": None, "in tiles": TILING}.items():
        results = []
        for number, scene in enumerate(small_scenes(count)):
            results.append(enlarge(glm, scene, seed=number, denoise=denoise, tiling=tiling))
            if not results[-1].right:
                print(f"{number}: {results[-1].scene} came out as {results[-1].seen}")
        right = sum(result.right for result in results)
        painted, stretched = (statistics.median(getattr(result, of) for result in results) for of in ("psnr", "stretched"))
        print(f"{name}: {right} of {count} right, median {painted:.1f} dB to the true drawing; bicubic {stretched:.1f} dB")


if __name__ == "__main__":
    count, denoise, *_ = [*sys.argv[1:], None, None]
    main(int(count or 50), float(denoise or 0.6))
