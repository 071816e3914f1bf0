"""Measures how often nano paints two plans that are mixed by a mask right.

python scripts/judge_mixing.py [COUNT]
"""

import sys

from _pack import ROOT
from glm_image_pack.glmimage_core.glm_image.pipeline import GlmImage
from glm_image_pack.training.mixing import is_right, mixtures


def main(count: int) -> None:
    glm, right = GlmImage.load(ROOT / "nano", dtype="float32"), 0
    for number, mixture in enumerate(mixtures(count)):
        good, seen = is_right(glm, mixture, seed=number)
        right += good
        if not good:
            print(f"{number}: {mixture.both} came out as {seen}")
    print(f"{right} of {count} right")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
