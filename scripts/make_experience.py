"""Writes what plans of nano's world show: `python scripts/make_experience.py [CHECKPOINT]`, of one that was trained on it.

The file is described in glmimage_core/glm_image/experience.py. It is made from scenes as in the training, whose tokens are known,
and from plans of the checkpoint for some of their prompts. None of them is asked for by `python . score`. The same checkpoint
gives the same file.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import _pack  # noqa: F401, before what it loads
import torch
from glm_image_pack.glmimage_core import GlmImage
from glm_image_pack.glmimage_core.diffusion import Grid
from glm_image_pack.glmimage_core.glm_image.drafts import Foresight, at_same_place, in_preview
from glm_image_pack.glmimage_core.glm_image.experience import FILE, Experience
from glm_image_pack.glmimage_core.glm_image.files.components import AR, BUILT_IN, NANO
from glm_image_pack.glmimage_core.glm_image.geometry import preview_grid
from glm_image_pack.glmimage_core.images import to_pictures
from glm_image_pack.training.ar import resampled
from glm_image_pack.training.captions import LANGUAGES, Edit, Request, describe, random_edit
from glm_image_pack.training.drawing import draw
from glm_image_pack.training.larger import random_size
from glm_image_pack.training.world import CELL_PX, random_scene, tokens_of

LOOKAHEAD = 16  # a fixed number, since time must not decide what the file holds


def asked(count: int) -> Iterator[tuple[int, Request | Edit]]:
    """Prompts and edits by turns, and their seeds."""
    for seed in range(count):
        rng = random.Random(f"experience/{seed}")
        size, language = random_size(rng), rng.choice(LANGUAGES)
        yield seed, random_edit(rng, *size, language) if seed % 2 else describe(rng, random_scene(rng, *size), language)


def learn_from_scene(experience: Experience, request: Request | Edit) -> None:
    """Write the tokens of a scene, as a plan that is never wrong would."""
    large = tokens_of(request.scene)
    grids, tokens = [Grid(*large.shape)], [large]
    if isinstance(request, Edit):
        sources = {
            f"reference {n}": at_same_place(tokens_of(scene), grids) for n, scene in enumerate(request.references, start=1)
        }
    else:
        grids = [preview_grid(grids[0]), *grids]
        tokens = [resampled(large, grids[0]), large]
        sources = {"preview": in_preview(grids)}
    foresight = Foresight(grids, sources, experience)
    for token in torch.cat([part.flatten() for part in tokens]).tolist():
        foresight.accept([token])


def learn_from_plan(glm: GlmImage, request: Request | Edit, seed: int) -> None:
    scenes = request.references if isinstance(request, Edit) else ()
    references = [glm.reference(to_pictures(draw(scene)[None])[0]) for scene in scenes]
    size = (request.scene.columns * CELL_PX, request.scene.rows * CELL_PX)
    glm.plan(request.prompt, *size, seed=seed, references=references, lookahead=LOOKAHEAD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUILT_IN[NANO], help="default: nano, the built-in model")
    parser.add_argument("--scenes", type=int, default=3000, help="default: %(default)s")
    parser.add_argument("--plans", type=int, default=150, help="default: %(default)s")
    options = parser.parse_args()
    glm = GlmImage.load(options.checkpoint, dtype="float32")
    glm.ar = replace(glm.ar, experience=Experience())
    for _, request in asked(options.scenes):
        learn_from_scene(glm.ar.experience, request)
    for seed, request in asked(options.plans):
        learn_from_plan(glm, request, seed)
    folder = options.checkpoint / AR.folder
    glm.ar.experience.save(folder)
    print(folder / FILE)


if __name__ == "__main__":
    main()
