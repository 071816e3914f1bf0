"""The judge of inpaintings and outpaintings: what is drawn as asked is right, and else it is not. And the way from Python."""

from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core import GlmImage
from glm_image_pack.glmimage_core.diffusion import Grid
from glm_image_pack.glmimage_core.images import from_picture, to_pictures
from glm_image_pack.glmimage_core.masks import composite, touched
from glm_image_pack.training.drawing import draw
from glm_image_pack.training.inpainting import INPAINTINGS, SIDES, inpaintings, judge, mask_of, outpaintings
from glm_image_pack.training.world import CELL_PX, tokens_of

from pictures import pattern


def drawn(scene):
    """A drawing as a file would hold it: [H, W, 3]."""
    return from_picture(to_pictures(draw(scene)[None])[0])[0]


def test_what_is_drawn_as_asked_is_right_and_the_picture_before_is_not():
    tasks = list(inpaintings(12))
    assert {task.kind for task in tasks} == set(INPAINTINGS)
    for task in tasks:
        before = drawn(task.before)
        verdict = judge(task, composite(before[None], drawn(task.after)[None], mask_of(task))[0])
        assert verdict.right and verdict.kept
        assert not judge(task, before).right


def test_a_pixel_that_changes_outside_the_mask_is_noticed():
    task = next(iter(inpaintings(1)))
    picture = composite(drawn(task.before)[None], drawn(task.after)[None], mask_of(task))[0]
    picture[(mask_of(task)[0] == 0).nonzero()[0].tolist()[0], 0] += 1 / 255
    assert not judge(task, picture).kept


def test_the_mask_covers_all_tokens_that_change_and_no_other_thing():
    for task in inpaintings(24):
        changes = tokens_of(task.before) != tokens_of(task.after)
        cells = touched(mask_of(task), Grid(task.after.rows, task.after.columns))[0]
        assert not (changes & ~cells).any()


def test_outpaintings_are_right_where_all_is_drawn_and_their_seam_is_whole():
    tasks = list(outpaintings(8))
    assert {task.kind for task in tasks} == set(SIDES)
    for task in tasks:
        verdict = judge(task, drawn(task.after))
        assert verdict.right and verdict.kept and verdict.seam


def test_a_shape_that_is_cut_off_at_the_seam_is_not_whole():
    task = next(task for task in outpaintings(8) if task.kind == "right")
    seam = task.after.columns - 4
    beyond = replace(task.free, row=task.after.rows - 3, column=seam - 1)
    picture = drawn(replace(task.after, shapes=(*task.after.shapes[:-1], beyond), word=None))
    task = replace(task, after=replace(task.after, word=None), before=replace(task.before, word=None))
    picture[:, : seam * CELL_PX] = drawn(replace(task.after, shapes=task.after.shapes[:-1]))[:, : seam * CELL_PX]
    assert not judge(task, picture).seam


@pytest.fixture
def glm(folder):
    return GlmImage.load(folder)


def test_from_python_an_inpainting_keeps_all_other_pixels(glm):
    picture, mask = pattern(250, 200, 3), torch.zeros(200, 250)
    mask[60:140, 60:140] = 1
    painted = glm.inpaint(picture, mask, "make it blue", seed=1, steps=1)
    before, after = from_picture(picture)[0], from_picture(painted)[0]
    assert after.shape == before.shape
    assert torch.equal(after[mask == 0], before[mask == 0]) and not torch.equal(after[80:120, 80:120], before[80:120, 80:120])


def test_from_python_an_outpainting_is_larger_and_keeps_the_picture(glm):
    picture = pattern(224, 192, 3)
    painted = glm.outpaint(picture, "add a tree on the left", left=32, bottom=32, seed=1, steps=1)
    assert painted.size == (256, 224)
    assert torch.equal(from_picture(painted)[0, :192, 32:], from_picture(picture)[0])


def test_from_python_a_plan_is_regrown(glm):
    plan = glm.plan("a wood", 256, 192, seed=1)
    after = glm.regrow(plan, torch.tensor([[0.0, 1.0]]), "a lake", seed=2, lookahead=8)
    assert torch.equal(after.tokens[..., :4], plan.tokens[..., :4]) and not torch.equal(after.tokens, plan.tokens)
    assert after.prompt == "a lake" and after.seed == 2
