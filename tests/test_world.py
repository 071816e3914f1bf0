"""Nano's world: scenes, their pictures and captions, and reading pictures back."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from glm_image_pack.training import captions, drawing, world

SIDES = (6, 7, 8, 10, 12)


def scenes(count: int, **how):
    for number in range(count):
        rng = random.Random(number)
        yield world.random_scene(rng, rng.choice(SIDES), rng.choice(SIDES), **how)


def test_every_token_shows_one_thing():
    cells = list(world.cells())
    assert len(cells) == world.CODES == 4096
    assert [world.code_of(cell) for cell in cells] == list(range(world.CODES))


@pytest.mark.parametrize("anywhere", [False, True])
def test_a_scene_is_as_many_tokens_as_it_shows(anywhere):
    for scene in scenes(50, anywhere=anywhere):
        bare = world.tokens_of(scene) < len(world.COLOURS)
        ground = (drawing.draw(scene) == drawing.rgb(scene.ground)).all(dim=-1)
        cells = ground.unflatten(0, (scene.rows, -1)).unflatten(2, (scene.columns, -1)).all(dim=3).all(dim=1)
        assert torch.equal(bare, cells)


def test_a_plan_is_drawn_as_its_scene():
    for scene in scenes(50, anywhere=True):
        text = scene.word.text if scene.word else ""
        assert torch.equal(drawing.draw_plan(world.tokens_of(scene), text), drawing.draw(scene))


def test_a_misplaced_part_and_a_letter_too_many_are_drawn_as_planned():
    star = world.Scene(6, 6, "red", shapes=(world.Shape("star", "blue", "small", 1, 1),), word=world.Word("AB", "white", 5, 2))
    tokens = world.tokens_of(star)
    tokens[4, 4] = tokens[1, 1]
    drawn = (
        drawing.draw_plan(tokens, "B").unflatten(0, (6, -1)).unflatten(2, (6, -1)).transpose(1, 2)
    )  # [rows, columns, 32, 32, 3]
    assert torch.equal(drawn[4, 4], drawn[1, 1]) and not torch.equal(drawn[4, 4], drawn[0, 0])
    assert torch.equal(drawn[5, 2], drawn[0, 0]) and not torch.equal(drawn[5, 3], drawn[0, 0])


@pytest.mark.parametrize("size", world.SPANS)
@pytest.mark.parametrize("rows", SIDES)
def test_a_place_is_where_its_name_says(rows, size):
    for columns in SIDES:
        for place in world.PLACES:
            thing = world.Shape("star", "blue", size, 0, 0)
            scene = world.with_thing(random.Random(0), world.Scene(rows, columns, "red"), thing, place)
            assert scene.place_of(scene.shapes[0]) == place
            assert scene.level_of(scene.shapes[0]) in (*place.split(), "centre")


def test_things_never_touch():
    for scene in scenes(200, anywhere=True):
        for thing in scene.things:
            assert scene.is_free(thing, [other for other in scene.things if other is not thing])


@pytest.mark.parametrize("language", captions.LANGUAGES)
def test_a_scene_does_what_its_caption_asks_and_another_does_not(language):
    scoring = pytest.importorskip("glm_image_pack.training.scoring", reason="needs SciPy")
    rng = random.Random(1)
    for scene in scenes(200):
        request = captions.describe(rng, scene, language)
        assert scoring.does_what_is_asked(scene, request), request
        for wrong in wrong_scenes(rng, scene):
            assert not scoring.does_what_is_asked(wrong, replace(request, ground=scene.ground)), (request, wrong)


def wrong_scenes(rng: random.Random, scene: world.Scene):
    """One thing is wrong in each."""
    yield replace(scene, ground=world.other_colour(rng, scene.ground))
    if scene.shapes:
        first, *others = scene.shapes
        yield replace(scene, shapes=tuple(others))
        yield replace(scene, shapes=(replace(first, colour=world.other_colour(rng, first.colour)), *others))
        kind = rng.choice([kind for kind in world.KINDS if kind != first.kind])
        yield replace(scene, shapes=(replace(first, kind=kind), *others))
    if scene.word:
        yield replace(scene, word=replace(scene.word, text=scene.word.text + "A"))
        yield replace(scene, word=None)
    else:
        yield replace(scene, word=world.Word("A", "red", 0, 0))


@pytest.mark.parametrize("language", captions.LANGUAGES)
@pytest.mark.parametrize("kind", captions.EDITS)
def test_what_an_edit_comes_to_is_right_and_what_it_starts_from_is_not(kind, language):
    scoring = pytest.importorskip("glm_image_pack.training.scoring", reason="needs SciPy")
    for number in range(40):
        edit = captions.random_edit(random.Random(f"{kind}{number}"), 8, 8, language, kind=kind, anywhere=number % 2 == 0)
        assert scoring.is_edited(edit.scene, edit)
        assert not any(scoring.is_edited(scene, edit) for scene in edit.references)
        assert scoring.kept_psnr(drawing.draw(edit.scene), edit, edit.scene) > 80
        assert scoring.kept_psnr(1 - drawing.draw(edit.scene), edit, edit.scene) < 28


def test_a_word_stands_in_quotes_that_the_library_finds():
    from glm_image_pack.glmimage_core.quoted import find_quoted_texts

    for language in captions.LANGUAGES:
        for scene in scenes(40, with_word=1):
            request = captions.describe(random.Random(0), scene, language)
            assert find_quoted_texts(request.prompt) == ([scene.word.text] if scene.word else [])


@pytest.mark.parametrize(("noise", "blur"), [(0, 0), (0.05, 0), (0.03, 1)])
def test_a_picture_reads_as_the_scene_that_it_shows(noise, blur):
    reading = pytest.importorskip("glm_image_pack.training.reading", reason="needs SciPy")
    generator = torch.Generator().manual_seed(0)
    for scene in scenes(60, anywhere=True):
        picture = drawing.draw(scene)
        picture = (picture + noise * torch.randn(picture.shape, generator=generator)).clamp(0, 1)
        if blur:
            padded = torch.nn.functional.pad(picture.movedim(-1, 0)[None], (1, 1, 1, 1), mode="replicate")
            picture = torch.nn.functional.avg_pool2d(padded, 3, 1)[0].movedim(0, -1)
        seen = reading.read(picture)
        assert (seen.ground, set(seen.shapes), seen.word) == (scene.ground, set(scene.shapes), scene.word)


def test_noise_reads_as_nothing_asked_for():
    scoring = pytest.importorskip("glm_image_pack.training.scoring", reason="needs SciPy")
    picture = torch.rand(256, 256, 3, generator=torch.Generator().manual_seed(0))
    verdicts = [
        scoring.judge(question, picture)
        for question in scoring.questions(0.1)
        if question.asked.scene.rows == question.asked.scene.columns == 8
    ]
    assert len(verdicts) > 10 and not any(verdict.right for verdict in verdicts)


def test_the_questions_are_the_same_every_time_and_as_many_as_said():
    scoring = pytest.importorskip("glm_image_pack.training.scoring", reason="needs SciPy")
    asked = list(scoring.questions())
    assert len(asked) == 500 and asked == list(scoring.questions())
    assert {question.asked.kind for question in asked if question.subject == "edit"} == set(captions.EDITS)
    assert np.mean([question.asked.prompt.isascii() for question in asked]) == pytest.approx(0.5, abs=0.02)
    some = list(scoring.questions(0.1))
    assert len(some) == 50 and all(question in asked for question in some)
    others = list(scoring.questions(0.1, "others"))
    assert [question.subject for question in others] == [question.subject for question in some]
    assert sum(other.asked == question.asked for other, question in zip(others, some, strict=True)) <= 2


def test_a_shape_that_is_cut_off_is_read_as_one_within_the_picture():
    reading = pytest.importorskip("glm_image_pack.training.reading", reason="needs SciPy")
    picture = torch.ones(192, 192, 3)
    picture[-24:, 64:128] = torch.tensor([0.0, 0.0, 0.0])
    (shape,) = reading.read(picture).shapes
    drawing.draw(world.Scene(6, 6, "white", (shape,)))
    assert shape.row + shape.height <= 6


@pytest.mark.parametrize("pixels", [-1, 1, 2])
@pytest.mark.parametrize("size", world.SPANS)
@pytest.mark.parametrize("kind", world.KINDS)
def test_a_shape_that_is_painted_thinner_or_bolder_is_of_its_kind(kind, size, pixels):
    reading = pytest.importorskip("glm_image_pack.training.reading", reason="needs SciPy")
    scene = world.Scene(5, 5, "orange", (world.Shape(kind, "yellow", size, 1, 1),))
    picture = drawing.draw(scene).movedim(-1, 0)[None]
    yellow, orange = (drawing.rgb(name)[:, None, None] for name in ("yellow", "orange"))
    inside = ((picture - yellow).norm(dim=1, keepdim=True) < (picture - orange).norm(dim=1, keepdim=True)).float()
    wide = 2 * abs(pixels) + 1
    pool = torch.nn.functional.max_pool2d
    inside = pool(inside, wide, 1, wide // 2) if pixels > 0 else 1 - pool(1 - inside, wide, 1, wide // 2)
    seen = reading.read((orange + inside * (yellow - orange))[0].movedim(0, -1))
    assert [(shape.kind, shape.size) for shape in seen.shapes] == [(kind, size)]
