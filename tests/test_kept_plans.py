"""Plans on disk: nothing is lost, and whatever is wrong is said."""

import json
import random
import struct
import zlib
from dataclasses import fields, replace

import pytest
import torch
from _pack import ROOT
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.draw import Sampling
from glm_image_pack.glmimage_core.glm_image.plans import kept
from glm_image_pack.glmimage_core.glm_image.plans.choose import chosen
from glm_image_pack.glmimage_core.glm_image.prior import Prior, generate_prior
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pictures import pattern
from plans import plan


def same(one: Prior, other: Prior) -> bool:
    """Whether two plans are equal in every field."""
    pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in fields(Prior))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b and type(a) is type(b) for a, b in pairs)


@pytest.fixture(scope="module")
def written(ar):
    """A plan of two pictures with all that one can have."""
    sampling = Sampling(0.8, 0.9, 40)
    prior = generate_prior(ar, 'a "house", \u623f\u5b50', 256, 320, seed=2**64 - 1, batch=2, sampling=sampling)
    return replace(prior, references=("ab", "cd"))


@pytest.fixture
def file(written, tmp_path):
    kept.save_prior(written, tmp_path / "plan.safetensors")
    return tmp_path / "plan.safetensors"


@pytest.fixture
def picture(written, tmp_path):
    """A PNG that carries the plan."""
    info = PngInfo()
    info.add_text(kept.TEXT_KEY, kept.prior_text(written))
    pattern(64, 64, 3).save(tmp_path / "picture.png", pnginfo=info)
    return tmp_path / "picture.png"


def test_a_plan_comes_back_from_a_file_of_a_few_kilobytes(written, file):
    assert same(kept.load_prior(file), written)
    assert file.stat().st_size < 4000


def test_a_plan_comes_back_from_a_picture(written, picture):
    assert same(kept.load_prior(picture), written)


def test_a_plan_behind_the_pixels_is_found_too(written, tmp_path):
    """Where other programs move a text that they keep."""
    pattern(64, 64, 3).save(tmp_path / "picture.png")
    data, chunk = (tmp_path / "picture.png").read_bytes(), f"{kept.TEXT_KEY}\0{kept.prior_text(written)}".encode()
    text = struct.pack(">I", len(chunk)) + b"tEXt" + chunk + struct.pack(">I", zlib.crc32(b"tEXt" + chunk))
    (tmp_path / "picture.png").write_bytes(data[:-12] + text + data[-12:])
    assert same(kept.load_prior(tmp_path / "picture.png"), written)


def test_a_plan_with_neither_preview_nor_prompt_comes_back(tmp_path):
    bare = plan(rows=60_000)
    kept.save_prior(bare, tmp_path / "plan.safetensors")
    assert same(kept.load_prior(tmp_path / "plan.safetensors"), bare)
    assert bare.tokens.max() > 2**15


def test_a_plan_has_the_same_bytes_every_time(written):
    assert kept.to_bytes(written) == kept.to_bytes(replace(written, tokens=written.tokens.clone()))


def test_the_picture_of_a_plan_that_was_kept_is_the_same(written, file, dit, glyphs):
    latents = [sample(dit, prior, *glyphs, seeds=[3, 4], steps=2) for prior in (written, kept.load_prior(file))]
    assert torch.equal(*latents)


def test_one_image_of_a_batch_is_kept_with_its_own_seed(written):
    second = chosen(written, [1])
    assert torch.equal(second.tokens[0], written.tokens[1]) and torch.equal(second.preview[0], written.preview[1])
    assert second.seed == 0 and second.batch == 1  # behind 2^64 - 1


def stated_in(file) -> dict:
    """What a plan's file states beside its tensors."""
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()[kept.METADATA_KEY])


def restate(file, stated, tensors=None) -> None:
    """Write a plan's file anew with something else in it."""
    save_file(load_file(file) if tensors is None else tensors, file, {kept.METADATA_KEY: json.dumps(stated)})


def test_a_newer_file_is_refused_by_the_version_that_wrote_it(file):
    restate(file, stated_in(file) | {"format": 2, "written_by": "comfyui-glm-image 9.0", "more": True})
    with pytest.raises(ValueError, match="written by comfyui-glm-image 9.0.*update the pack"):
        kept.load_prior(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda stated: {name: value for name, value in stated.items() if name != "prompt"},
        lambda stated: stated | {"width": 512},
        lambda stated: stated | {"width": "256"},
        lambda stated: stated | {"seed": 1.5},
        lambda stated: stated | {"references": [3]},
        lambda stated: stated | {"sampling": {"temperature": -1}},
        lambda stated: stated | {"sampling": {"heat": 1}},
        lambda stated: stated | {"format": "two"},
        lambda stated: [stated],
    ],
)
def test_what_a_plan_cannot_state_is_a_damaged_plan(file, change):
    restate(file, change(stated_in(file)))
    with pytest.raises(ValueError, match=r"plan\.safetensors is a damaged plan"):
        kept.load_prior(file)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"tokens": torch.zeros(1, 10, 8)},
        {"tokens": torch.full((1, 10, 8), -1)},
        {"tokens": torch.zeros(10, 8, dtype=torch.int16)},
        {"tokens": torch.zeros(1, 8, 10, dtype=torch.int16)},
        {"tokens": torch.zeros(2, 10, 8, dtype=torch.int16), "preview": torch.zeros(1, 3, 3, dtype=torch.int16)},
    ],
)
def test_what_is_no_grid_of_its_size_is_a_damaged_plan(file, tensors):
    restate(file, stated_in(file), tensors)
    with pytest.raises(ValueError, match="damaged plan"):
        kept.load_prior(file)


def test_other_files_are_no_plans(file, tmp_path):
    with pytest.raises(ValueError, match="no plan, or a damaged one"):
        kept.load_prior(ROOT / "README.md")
    save_file({"weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="holds tensors, but no plan"):
        kept.load_prior(file)
    with file.open("r+b") as opened:
        opened.truncate(10**9)  # a hole, not a gigabyte
    with pytest.raises(ValueError, match="a plan has a few kB"):
        kept.load_prior(file)
    with pytest.raises(FileNotFoundError):
        kept.load_prior(tmp_path / "missing.safetensors")


def test_a_picture_without_a_plan_says_so(tmp_path):
    pattern(64, 64, 3).save(tmp_path / "picture.png")
    with pytest.raises(ValueError, match="carries no plan"):
        kept.load_prior(tmp_path / "picture.png")
    info = PngInfo()
    info.add_text(kept.TEXT_KEY, "no base64!")
    pattern(64, 64, 3).save(tmp_path / "picture.png", pnginfo=info)
    with pytest.raises(ValueError, match="the plan in .* is damaged"):
        kept.load_prior(tmp_path / "picture.png")


@pytest.mark.parametrize("name", ["file", "picture"])
def test_a_damaged_file_is_a_plan_or_an_error_in_words(request, name, tmp_path):
    """Bytes changed, cut off, repeated: whatever loads can be painted."""
    whole, rng, refused = request.getfixturevalue(name).read_bytes(), random.Random(0), 0
    for number in range(150):
        data = bytearray(whole)
        place = rng.randrange(len(data) if number % 3 else 600)
        if number % 2:
            data[place] ^= 1 << rng.randrange(8)
        else:
            del data[place : place + rng.choice((1, 100, len(data)))]
        (tmp_path / "damaged").write_bytes(data)
        try:
            prior = kept.load_prior(tmp_path / "damaged")
        except ValueError as error:
            refused += 1
            assert "damaged" in str(error)
        else:
            assert prior.tokens.shape[1:] == (prior.height // 32, prior.width // 32) and prior.tokens.min() >= 0
    assert refused > 75
