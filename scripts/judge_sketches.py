"""Measures how often nano is right when the surest of four sketches is painted, against the first one.

python scripts/judge_sketches.py [COUNT] [FIRST]
"""

import itertools
import sys

from _pack import ROOT
from glm_image_pack.glmimage_core.glm_image.pipeline import GlmImage
from glm_image_pack.training.sketching import choose, requests


def main(count: int, first: int) -> None:
    glm = GlmImage.load(ROOT / "nano", dtype="float32")
    results = []
    for number, request in itertools.islice(enumerate(requests(first + count)), first, None):
        results.append(choose(glm, request, seed=4 * number))
        print(f"{number}: {results[-1].first:d} {results[-1].best:d}", file=sys.stderr, flush=True)
    one, other = (sum(getattr(result, name) for result in results) for name in ("first", "best"))
    gained, lost = (sum((result.best - result.first) == change for result in results) for change in (1, -1))
    print(f"of {count} the first sketch is right in {one} and the surest in {other}: {gained} gained, {lost} lost")


if __name__ == "__main__":
    count, first, *_ = [*sys.argv[1:], None, None]
    main(int(count or 50), int(first or 0))
