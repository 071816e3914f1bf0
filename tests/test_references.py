"""References of any size, mode and number."""

import numpy as np
import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.ar_model import fit, vision_tokens
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.glm_image.references import check_references
from glm_image_pack.glmimage_core.images import to_pictures
from glm_image_pack.glmimage_core.tiny.glm_image import write_checkpoint
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS
from PIL import Image

from pictures import pattern

SIDES = [33, 64, 100, 129, 333, 512, 720, 1080, 4096]
SIZES = [(w, h) for w in SIDES for h in SIDES if max(w, h) / min(w, h) <= 8]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_reference_of_any_size_is_encoded_alike_for_both_models(encode_reference, width, height):
    reference = encode_reference(pattern(width, height, 3))
    assert (reference.width, reference.height) == (reference.grid.width * 32, reference.grid.height * 32)
    assert reference.latents.shape == (1, 16, reference.height // 8, reference.width // 8)
    assert torch.isfinite(reference.latents).all()


def test_the_processor_agrees_with_the_fit_of_a_picture_it_would_not_resize(ar):
    fitted = pattern(256, 160, 3)
    assert fit(ar, fitted) is fitted
    whole = ar.image_processor(images=fitted, return_tensors="pt")
    assert whole.image_grid_thw.tolist() == [[1, 5, 8]]
    with torch.inference_mode():
        features = ar.model.model.visual(whole.pixel_values, grid_thw=whole.image_grid_thw).last_hidden_state
        theirs = ar.model.model.vqmodel.encode(features.T.reshape(1, -1, 5, 8)).image_tokens
    assert torch.equal(vision_tokens(ar, fitted).flatten(), theirs.flatten())


def _tensor(picture: Image.Image) -> torch.Tensor:
    array = np.array(picture, dtype=np.float32) / 255
    return torch.from_numpy(array if array.ndim == 3 else array[..., None])[None]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_colour_alpha_and_grey_are_taken(ar, vae, mode):
    image = _tensor(pattern(160, 128, 3).convert(mode))
    (references,) = NODE_CLASS_MAPPINGS["GLMImageEncodeReference"]().encode(ar, vae, image)
    assert [r.vision_tokens.shape for r in references] == [(4, 5)]
    assert to_pictures(image)[0].mode == "RGB"


def test_a_batch_is_several_references_and_a_chain_keeps_their_order(ar, vae, encode_reference):
    node = NODE_CLASS_MAPPINGS["GLMImageEncodeReference"]()
    pictures = [pattern(160, 128, twist) for twist in (3, 5, 7)]
    (batch,) = node.encode(ar, vae, torch.cat([_tensor(p) for p in pictures]))
    chain = ()
    for picture in pictures:
        (chain,) = node.encode(ar, vae, _tensor(picture), chain)
    assert [r.id for r in chain] == [r.id for r in batch] == [encode_reference(p).id for p in pictures]
    assert len({r.id for r in chain}) == 3


def test_several_images_of_one_node_follow_the_chain_and_what_is_not_connected_is_none(ar, vae):
    node = NODE_CLASS_MAPPINGS["GLMImageEncodeReference"]()
    first, second, third = (_tensor(pattern(160 + 32 * n, 128, 3 + n)) for n in range(3))
    (chain,) = node.encode(ar, vae, first)
    (together,) = node.encode(ar, vae, second, chain, image_3=third)
    (again,) = node.encode(ar, vae, first, image_2=second, image_4=third)
    assert [r.id for r in together] == [r.id for r in again] and len({r.id for r in again}) == 3


def test_the_order_of_references_matters_to_the_plan(ar, encode_reference):
    first, second = encode_reference(pattern(160, 128, 3)), encode_reference(pattern(128, 192, 5))
    plans = [generate_prior(ar, "combine", 256, 256, seed=0, references=r).tokens for r in ((first, second), (second, first))]
    assert not torch.equal(*plans)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_refused(ar, vae, value):
    image = torch.full((1, 64, 64, 3), 0.5)
    image[0, 3, 3, 1] = value
    for node, arguments in (("GLMImageEncodeReference", (ar, vae, image)), ("GLMImageVAEEncode", (vae, image))):
        with pytest.raises(ValueError, match="NaN"):
            NODE_CLASS_MAPPINGS[node]().encode(*arguments)


@pytest.mark.parametrize("shape", [(64, 64, 3), (1, 64, 64, 2), (0, 64, 64, 3)])
def test_a_tensor_that_is_no_image_is_refused(ar, vae, shape):
    with pytest.raises(ValueError, match="batch, height, width"):
        NODE_CLASS_MAPPINGS["GLMImageEncodeReference"]().encode(ar, vae, torch.zeros(shape))


def test_references_of_another_ar_model_or_vae_are_refused(ar, vae, dit, encode_reference, tmp_path):
    reference = encode_reference(pattern(128, 128, 3))
    write_checkpoint(tmp_path / "other", seed=1)
    other_ar, other_dit = checkpoints.load_ar(tmp_path / "other"), checkpoints.load_dit(tmp_path / "other")
    check_references([reference], ar.codebook, dit.space)
    with pytest.raises(ValueError, match="reference 1 .* another AR model"):
        check_references([reference], codebook=other_ar.codebook)
    with pytest.raises(ValueError, match="reference 1 .* VAE"):
        check_references([reference], space=other_dit.space)
