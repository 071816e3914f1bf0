"""Measures how often nano inpaints and outpaints what is asked, and that nothing else changes.

python scripts/judge_inpainting.py [COUNT] [inpaint or outpaint, default both]
"""

import sys
from collections.abc import Iterable

from _pack import ROOT
from glm_image_pack.bench.table import Table
from glm_image_pack.glmimage_core.glm_image.pipeline import GlmImage
from glm_image_pack.training.inpainting import Task, Verdict, inpaintings, judge, outpaintings, paint


def main(count: int, only: str | None = None) -> None:
    glm = GlmImage.load(ROOT / "nano", dtype="float32")
    rows = []
    for name, tasks in {"inpaint": inpaintings(count), "outpaint": outpaintings(count)}.items():
        if only not in (None, name):
            continue
        verdicts = list(verdicts_of(glm, tasks))
        groups = {name: verdicts}
        for verdict in verdicts:
            groups.setdefault(f"{name}: {verdict.task.kind}", []).append(verdict)
        rows += [row(group, members) for group, members in groups.items()]
    print(Table(f"nano, {count} of each", rows).markdown())


def verdicts_of(glm: GlmImage, tasks: Iterable[Task]) -> Iterable[Verdict]:
    for number, task in enumerate(tasks):
        verdict = judge(task, paint(glm, task, seed=number))
        if not (verdict.right and verdict.kept):
            told = f"{task.kind} {number}: {task.prompt!r} on {task.before} gave {verdict.seen}, seam {verdict.seam}"
            print(told, file=sys.stderr, flush=True)
        yield verdict


def row(name: str, verdicts: list[Verdict]) -> dict:
    right = sum(verdict.right and verdict.kept for verdict in verdicts)
    kept = sum(verdict.kept for verdict in verdicts)
    seams = None if verdicts[0].seam is None else sum(verdict.seam for verdict in verdicts)
    return {"what": name, "asked": len(verdicts), "right": right, "rest identical": kept, "seam whole": seams}


if __name__ == "__main__":
    count, only, *_ = [*sys.argv[1:], None, None]
    main(int(count or 50), only)
