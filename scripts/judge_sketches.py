"""Measures how often nano is right when the surest of four sketches is painted, against the first one.

python scripts/judge_sketches.py [COUNT] [FIRST] [--plans]
"""

import argparse
import itertools
import sys

from _pack import ROOT
from glm_image_pack.glmimage_core.glm_image.pipeline import GlmImage
from glm_image_pack.training.sketching import choose, requests


def main(count: int, first: int, plans_alone: bool) -> None:
    glm = GlmImage.load(ROOT / "nano", dtype="float32")
    results = []
    for number, request in itertools.islice(enumerate(requests(first + count)), first, None):
        results.append(choose(glm, request, seed=4 * number, plans_alone=plans_alone))
        print(f"{number}: {results[-1].first:d} {results[-1].best:d}", file=sys.stderr, flush=True)
    one, other = (sum(getattr(result, name) for result in results) for name in ("first", "best"))
    gained, lost = (sum((result.best - result.first) == change for result in results) for change in (1, -1))
    print(f"of {count} the first sketch is right in {one} and the surest in {other}: {gained} gained, {lost} lost")
    if plans_alone:
        print(f"any of the four is right in {sum(result.some for result in results)}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("count", type=int, nargs="?", default=50)
    arguments.add_argument("first", type=int, nargs="?", default=0)
    arguments.add_argument("--plans", action="store_true", help="code draws the plans of all four sketches; nothing is painted")
    options = arguments.parse_args()
    main(options.count, options.first, plans_alone=options.plans)
