"""Writes tests/data/edits.json and its pictures: what diffusers' own pipeline makes of the tiny checkpoint.

    python scripts/make_goldens.py

Needs transformers 5.15.0 and diffusers 0.42.1, the newest pair whose pipeline can edit: from transformers 5.18 on it fails.
The references have sizes that the pipeline takes as they are (multiples of 32 within the processor's limits).
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from _pack import ROOT
from glm_image_pack.glmimage_core.tiny.glm_image import write_checkpoint

DATA = ROOT / "tests" / "data"
sys.path.insert(0, str(ROOT / "tests"))

from oracle import load_pipeline, run_pipeline  # noqa: E402
from pictures import pattern  # noqa: E402

CASES = [
    {"name": "one_reference", "references": [[256, 192, 3]], "width": 256, "height": 256, "cfg": 1.5, "seed": 3},
    {"name": "two_references", "references": [[160, 256, 3], [384, 128, 5]], "width": 320, "height": 256, "cfg": 3.0, "seed": 7},
]
PROMPT = 'The same house, with a sign that says "OPEN" and one that says "LATE", and the dog\u2019s bowl.'
STEPS = 4


def main() -> None:
    made_with = {name: version(name) for name in ("torch", "transformers", "diffusers")}
    if made_with["transformers"] != "5.15.0" or made_with["diffusers"] != "0.42.1":
        raise SystemExit(f"goldens are made with transformers 5.15.0 and diffusers 0.42.1, not {made_with}")
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "tiny")
        pipeline = load_pipeline(Path(folder) / "tiny")
        goldens = []
        for case in CASES:
            references = [pattern(*picture) for picture in case["references"]]
            tokens, picture = run_pipeline(
                pipeline, PROMPT, case["width"], case["height"], STEPS, case["cfg"], case["seed"], references
            )
            picture.save(DATA / f"{case['name']}.png", optimize=True)
            goldens.append(case | {"tokens": tokens[0].tolist()})
    content = {"made_with": made_with, "prompt": PROMPT, "steps": STEPS, "cases": goldens}
    (DATA / "edits.json").write_text(json.dumps(content) + "\n", "utf-8")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
