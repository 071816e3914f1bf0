"""What a prompt of nano's world allows: each such plan is right, no right one is missing, and a lesson counts them all."""

import random
from dataclasses import replace

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.files.load import load_ar
from glm_image_pack.training import allowed, ar, captions, drawing, make, possible, world
from glm_image_pack.training.layout import write_nano_layout

scoring = pytest.importorskip("glm_image_pack.training.scoring", reason="needs SciPy")
SIZES = ((8, 8), (6, 6), (6, 10), (12, 8))
CLAIMS = (
    captions.Claim(2, "circle", "red", size=None, place=None),
    captions.Claim(1, "star", "white", size="small", place="top left"),
)


def asked_for(count: int):
    for number in range(count):
        rng = random.Random(f"possible/{number}")
        size = SIZES[number % len(SIZES)]
        if number % 2:
            yield captions.random_edit(rng, *size, "en", anywhere=number % 4 == 1)
        else:
            yield captions.describe(rng, world.random_scene(rng, *size), "en")


def right(plan: torch.Tensor, asked) -> bool:
    word = asked.scene.word
    return scoring.judge(scoring.Question("", 0, asked), drawing.draw_plan(plan, word.text if word else "")).right


def rows_of(plans: torch.Tensor) -> set[tuple[int, ...]]:
    return set(map(tuple, plans.flatten(1).tolist()))


def test_every_plan_that_a_prompt_allows_is_judged_right():
    for asked in asked_for(60):
        plans = possible.allowed_plans(asked)
        chosen = random.Random(0).sample(range(len(plans)), min(4, len(plans)))
        assert all(right(plans[number], asked) for number in chosen), asked


def test_each_is_there_once_and_so_is_the_lesson():
    for asked in asked_for(200):
        plans = possible.allowed_plans(asked)
        assert len(rows_of(plans)) == len(plans)
        assert tuple(world.tokens_of(asked.scene).flatten().tolist()) in rows_of(plans)


def test_no_scene_of_the_world_that_fulfils_a_prompt_is_missing():
    rng = random.Random(0)
    bare = world.Scene(8, 8, "blue")
    request = captions.Request("", bare, ground="blue", claims=CLAIMS, word=captions.WordClaim("OK", "green", None))
    plans = rows_of(possible.allowed_plans(request))
    found = set()
    for _ in range(6000):
        scene = world.with_thing(rng, bare, world.Word("OK", "green", 0, 0))
        circle = world.Shape("circle", "red", rng.choice(list(world.SPANS)))
        for shape, place in ((replace(circle, kind="star", colour="white", size="small"), "top left"), (circle, None)):
            scene = scene and world.with_thing(rng, scene, shape, place)
        scene = scene and world.with_thing(rng, scene, circle, rng.choice((None, *world.PLACES)))
        if scene and scoring.does_what_is_asked(scene, request):
            found.add(tuple(world.tokens_of(scene).flatten().tolist()))
    assert len(found) > 30 and found <= plans


def test_they_are_all_ways_to_put_two_shapes_so_that_they_do_not_touch():
    bare = world.Scene(6, 8, "blue")
    kinds = (("circle", "red"), ("star", "white"))
    claims = tuple(captions.Claim(1, kind, colour, size=None, place=None) for kind, colour in kinds)
    placed = [
        [replace(shape, row=row, column=column) for row, column in world.spots_of(bare, shape).values()]
        for kind, colour in kinds
        for shape in (world.Shape(kind, colour, size) for size in world.SPANS)
    ]
    circles, stars = placed[0] + placed[1], placed[2] + placed[3]
    scenes = [replace(bare, shapes=(one, other)) for one in circles for other in stars if bare.is_free(other, [one])]
    request = captions.Request("", bare, ground="blue", claims=claims, word=None)
    assert rows_of(possible.allowed_plans(request)) == rows_of(torch.stack([world.tokens_of(scene) for scene in scenes]))
    assert 0 < len(scenes) < len(circles) * len(stars)


def test_an_open_ground_may_be_any_that_nothing_is_lost_on():
    request = captions.Request("", world.Scene(6, 6, "blue"), ground=None, claims=CLAIMS[1:], word=None)
    plans = possible.allowed_plans(request)
    assert len(plans) == len(world.COLOURS) - 1  # a white star does not show on white
    word = captions.WordClaim("A", "black", "top")
    assert len(possible.allowed_plans(replace(request, word=word, claims=()))) == len(world.COLOURS) - 1


def test_a_prompt_that_allows_too_much_is_left_out():
    request = captions.Request("", world.Scene(8, 8, "blue"), ground="blue", claims=CLAIMS[::-1], word=None)
    count = len(possible.allowed_plans(request))
    assert possible.allowed_plans(request, limit=count) is not None and possible.allowed_plans(request, limit=count - 1) is None
    more_on_the_way = replace(request, claims=CLAIMS)  # before the star takes a place from the circles
    assert possible.allowed_plans(more_on_the_way, limit=count) is None
    of_all_grounds = len(possible.allowed_plans(replace(request, ground=None)))
    assert of_all_grounds > count and possible.allowed_plans(replace(request, ground=None), limit=of_all_grounds - 1) is None


def test_a_token_is_allowed_where_a_sequence_with_the_same_beginning_has_it():
    sequences = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 5, 6], [7, 2, 8]])
    places, tokens = possible.allowed_tokens(sequences, torch.tensor([1, 2, 3]))
    assert list(zip(places.tolist(), tokens.tolist(), strict=True)) == [(0, 1), (0, 7), (1, 2), (1, 5), (2, 3), (2, 4)]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrained") / "nano"
    write_nano_layout(folder)
    with make.seeded(0):
        model = make._initial_model(folder, "vision_language_encoder")
        ar.init_weights(model)
    make._save(model, folder / "vision_language_encoder")
    return load_ar(folder, "float32")


@torch.no_grad()
def test_the_loss_counts_the_probability_of_every_plan_that_leaves_the_allowed_ones(untrained, monkeypatch):
    """Found again from the probabilities, place by place, of a lesson whose allowed tokens are looked up one by one."""
    rng = random.Random(3)
    lessons = [*allowed.pictures_of_size(untrained, rng, 6, 6)[:2], *allowed.edits_of_size(untrained, rng, 6, 6)[:1]]
    expected = 0.0
    for lesson in lessons:
        logits, _, _ = ar.learned_logits(untrained, [lesson.sequence])
        probabilities = logits.softmax(dim=1)
        may = {}
        for place, token in zip(*(part.tolist() for part in lesson.allowed), strict=True):
            may.setdefault(place, []).append(token)
        assert sorted(may) == list(range(lesson.sequence.learned))
        expected -= sum(probabilities[place, tokens].sum().log().item() for place, tokens in may.items()) / len(lessons)
    with_it = allowed.allowed_loss(untrained, lessons)
    monkeypatch.setattr(allowed, "ALLOWED_WEIGHT", 0.0)
    cross = allowed.allowed_loss(untrained, lessons)
    assert with_it - cross == pytest.approx(expected / 32, rel=1e-4)
    assert cross == pytest.approx(ar.batch_loss(untrained, [lesson.sequence for lesson in lessons]).item(), rel=1e-5)


def test_more_of_another_allowed_token_costs_nothing_and_more_of_a_forbidden_one_does(untrained):
    rng = random.Random(5)
    lesson = next(
        lesson
        for lesson in allowed.pictures_of_size(untrained, rng, 8, 8)
        if len(lesson.allowed[0]) > len(lesson.sequence.weights)
    )
    places, tokens = lesson.allowed
    chosen = lesson.sequence.ids[-lesson.sequence.learned :]
    other = next(number for number, place in enumerate(places.tolist()) if tokens[number] != chosen[place])
    logits = torch.zeros(lesson.sequence.learned, 4862, requires_grad=True)
    allowed.leaving(logits.log_softmax(dim=1), [lesson]).backward()
    assert logits.grad[places[other], tokens[other]] < 0 < logits.grad[places[other], 4000]
