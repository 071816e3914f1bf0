"""The judges of mixed, enlarged and chosen plans: what is asked for is what is drawn. And nano gets one of each right."""

import random

import torch
from glm_image_pack.glmimage_core.glm_image.files.components import BUILT_IN, NANO
from glm_image_pack.glmimage_core.glm_image.pipeline import GlmImage
from glm_image_pack.glmimage_core.images import from_picture, to_pictures
from glm_image_pack.glmimage_core.masks import composite
from glm_image_pack.training import enlarging, mixing, sketching
from glm_image_pack.training.drawing import draw
from glm_image_pack.training.world import tokens_of


def test_the_halves_of_two_drawings_are_the_drawing_of_their_mixture():
    for mixture in mixing.mixtures(18):
        pictures = (draw(scene)[None] for scene in (mixture.one, mixture.other))
        assert torch.equal(composite(*pictures, mixture.mask)[0], draw(mixture.both))
        assert len({*mixture.both.things} & {*mixture.one.things}) and len({*mixture.both.things} & {*mixture.other.things})


def test_an_enlarged_scene_has_the_same_things_at_the_same_places():
    for scene in enlarging.small_scenes(6):
        large = enlarging.enlarged(scene)
        assert {shape.size for shape in large.shapes} == {"large"} and (large.rows, large.columns) == (12, 12)
        assert [large.place_of(shape) for shape in large.shapes] == [scene.place_of(shape) for shape in scene.shapes]
        (small,) = to_pictures(draw(scene)[None])
        stretched = from_picture(small.resize((384, 384)))[0]
        assert (stretched - draw(large)).abs().mean() < 0.02  # no shape beside its place
        assert (tokens_of(large) == tokens_of(large)[0, 0]).float().mean() > 0.5


def test_questions_of_the_judges_are_the_same_every_time():
    first, second = (list(sketching.requests(5)) for _ in range(2))
    assert first == second and len({request.prompt for request in first}) == 5
    random.seed(0)
    assert list(mixing.mixtures(3)) == list(mixing.mixtures(3))


def test_nano_paints_a_mixture_an_enlarged_picture_and_a_chosen_sketch():
    glm = GlmImage.load(BUILT_IN[NANO], dtype="float32")
    mixture = next(mixing.mixtures(1))
    assert mixing.is_right(glm, mixture, seed=0)[0]
    scene = list(enlarging.small_scenes(2))[1]
    for tiling in (None, enlarging.TILING):
        result = enlarging.enlarge(glm, scene, seed=1, denoise=0.8, tiling=tiling)
        assert result.right and result.psnr > result.stretched
    request = list(sketching.requests(2))[1]
    assert sketching.choose(glm, request, seed=4).best
