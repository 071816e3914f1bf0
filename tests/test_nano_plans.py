"""Plans of the built-in model: kept, read from drawings, looked at. What they are worth, `scripts/judge_plans.py` measures."""

from collections import Counter

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.files.components import BUILT_IN, NANO
from glm_image_pack.glmimage_core.glm_image.pipeline import GlmImage
from glm_image_pack.glmimage_core.glm_image.plans.draft import draft_of
from glm_image_pack.glmimage_core.glm_image.plans.entropy import token_entropies
from glm_image_pack.glmimage_core.glm_image.plans.kept import load_prior, save_prior
from glm_image_pack.glmimage_core.images import to_pictures
from glm_image_pack.training.drawing import draw
from glm_image_pack.training.reading import read
from glm_image_pack.training.repainting import held_out_scenes, repaint
from glm_image_pack.training.world import Scene, Shape, Word, tokens_of

SCENE = Scene(
    8, 8, "blue", (Shape("star", "yellow", "large", 1, 1), Shape("square", "white", "small", 5, 5)), Word("HI", "red", 0, 5)
)
FEW = 4  # steps


@pytest.fixture(scope="module")
def glm() -> GlmImage:
    return GlmImage.load(BUILT_IN[NANO], dtype="float32")


@pytest.fixture(scope="module")
def drawing():
    return to_pictures(draw(SCENE)[None])[0]


def shows_the_scene(picture: torch.Tensor, word: str) -> bool:
    seen = read(picture)
    return seen.ground == SCENE.ground and Counter(seen.shapes) == Counter(SCENE.shapes) and seen.word.text == word


def test_a_drawing_is_a_plan_drawn_by_hand(glm, drawing):
    plan = glm.plan_of(drawing)
    assert torch.equal(plan.tokens[0], tokens_of(SCENE))
    one, other = (glm.paint_tensor(plan, seed=seed, steps=FEW, glyph_texts=["HI"])[0] for seed in (0, 1))
    assert shows_the_scene(one, "HI") and shows_the_scene(other, "HI")
    assert (one - other).abs().max() > 0.1  # a variation: the pixels are others


def test_other_words_take_the_place_of_those_in_the_picture(glm, drawing):
    assert shows_the_scene(glm.paint_tensor(glm.plan_of(drawing), steps=FEW, glyph_texts=["ZO"])[0], "ZO")


def test_a_plan_that_was_kept_paints_the_identical_picture(glm, tmp_path):
    plan = glm.plan('A small red cross, the word "UP" at the top, on a white background.', 256, 256, seed=5)
    save_prior(plan, tmp_path / "plan.safetensors")
    pictures = [glm.paint_tensor(prior, seed=2, steps=2) for prior in (plan, load_prior(tmp_path / "plan.safetensors"))]
    assert torch.equal(*pictures)


def test_the_planner_was_unsure_where_something_begins(glm):
    """It says where shapes are when it writes the first token of each; what follows is certain."""
    plan = glm.plan("A large red star and a small yellow circle on a blue background.", 256, 256, seed=0)
    bits = token_entropies(glm.ar, plan)[0]
    ground = plan.tokens[0].mode().values.mode().values
    empty = bits[plan.tokens[0] == ground]
    assert bits.max() > 0.5 and empty.median() < 0.05
    begun = bits.flatten().argmax()
    around = plan.tokens[0][max(0, begun // 8 - 1) : begun // 8 + 2, max(0, begun % 8 - 1) : begun % 8 + 2]
    assert (around != ground).any()


def test_a_draft_shows_what_the_picture_will(glm):
    plan = glm.plan("A large red star on a blue background.", 256, 256, seed=0)
    draft = draft_of(plan)
    assert draft is plan
    quick, slow = (read(glm.paint_tensor(draft, steps=steps)[0]) for steps in (2, 12))
    assert quick == slow and [shape.kind for shape in quick.shapes] == ["star"]


@pytest.mark.slow
def test_pictures_of_all_sizes_are_painted_again_from_their_own_plans(glm):
    results = [repaint(glm, scene, seed=number) for number, scene in enumerate(held_out_scenes(4))]
    assert all(result.right and result.psnr > 25 for result in results)
