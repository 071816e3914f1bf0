"""The door for Python: the stages' own results, models moved by it, importable where pip installed it."""

import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from glm_image_pack.glmimage_core import GlmImage
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.draw import Variation
from glm_image_pack.glmimage_core.glm_image.glyphs import encode_glyph_texts
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.glm_image.references import encode_reference
from glm_image_pack.glmimage_core.glm_image.tiles import Tiling
from glm_image_pack.glmimage_core.images import from_picture, to_pictures
from glm_image_pack.glmimage_core.placement.residency import Residency, model_bytes
from glm_image_pack.glmimage_core.vae import decode, encode
from PIL import Image, ImageChops

from pictures import pattern

ROOT = Path(__file__).resolve().parents[1]
PROMPT = 'A lighthouse with a sign that says "OPEN".'


@pytest.fixture
def glm(folder):
    return GlmImage.load(folder)


def test_a_plan_and_its_pictures_are_those_of_the_stages(glm, ar, encoder, dit, vae):
    plan = glm.plan(PROMPT, 256, 288, seed=5, batch=2)
    expected = generate_prior(ar, PROMPT, 256, 288, seed=5, batch=2)
    assert torch.equal(plan.tokens, expected.tokens)
    glyphs = [encode_glyph_texts(encoder, texts) for texts in (["OPEN"], [])]
    latents = sample(dit, expected, *glyphs, seeds=[7, 8], steps=2)
    pictures = glm.paint(plan, seed=7, steps=2)
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in to_pictures(decode(vae, latents))]


def test_sketches_expand_to_the_plan_that_they_begin(glm):
    plan = glm.plan(PROMPT, 256, 288, seed=5, batch=2)
    sketches = glm.sketch(PROMPT, 256, 288, seed=5, batch=2)
    assert torch.equal(sketches.tokens, plan.preview)
    assert torch.equal(glm.expand(sketches, seed=5).tokens, plan.tokens)
    assert glm.expand(sketches, seed=5, copies=2).batch == 4
    varied = glm.plan(PROMPT, 256, 288, seed=80, variation=Variation(5, 1.0))
    assert torch.equal(varied.tokens, plan.tokens[:1])


@pytest.mark.parametrize("tiling", [None, Tiling(192, 64)], ids=["one piece", "tiles"])
def test_a_picture_is_enlarged_by_its_own_plan_at_the_new_size(glm, encoder, dit, vae, tiling):
    picture = pattern(256, 192, 3)
    large = picture.resize((384, 288), Image.Resampling.LANCZOS)
    plan = glm.plan_of(large)
    glyphs = encode_glyph_texts(encoder, [])
    settings = {"seeds": [7], "steps": 2, "denoise": 0.6, "latents": encode(vae, from_picture(large))}
    latents = sample(replace(dit, tiling=tiling), plan, glyphs, glyphs, **settings)
    painted = glm.enlarge(picture, 384, 288, seed=7, steps=2, denoise=0.6, tiling=tiling)
    assert painted.size == (384, 288) and painted.tobytes() == to_pictures(decode(vae, latents))[0].tobytes()


def test_an_edit_has_the_size_of_its_first_reference_and_its_pictures_are_those_of_the_stages(glm, ar, encoder, dit, vae):
    picture = pattern(300, 200, 3)
    reference, expected = glm.reference(picture), encode_reference(ar, vae, picture)
    assert reference.id == expected.id
    plan = glm.plan("It is night.", references=[reference], seed=1)
    assert (plan.width, plan.height) == (reference.width, reference.height) and plan.preview is None
    glyphs = encode_glyph_texts(encoder, [])
    latents = sample(dit, plan, glyphs, glyphs, seeds=[0], steps=2, references=[expected])
    (painted,) = glm.paint(plan, steps=2, references=[reference])
    assert painted.tobytes() == to_pictures(decode(vae, latents))[0].tobytes()


def test_models_move_to_the_device_when_a_stage_needs_them_and_leave_for_others(glm, folder):
    """A device with room for one big model at a time; cpu:0 is another device than cpu to PyTorch."""
    exact = glm.paint(glm.plan(PROMPT, 256, 256), steps=1)[0]
    small = GlmImage.load(folder, "cpu:0")
    room = model_bytes(small.ar.model) + 30_000_000
    small.residency = Residency(small.device, lambda: room - sum(map(model_bytes, small.residency.resident)))
    plan = small.plan(PROMPT, 256, 256)
    assert small.residency.resident == [small.ar.parts["language"]]
    difference = ImageChops.difference(small.paint(plan, steps=1)[0], exact)
    assert max(high for _, high in difference.getextrema()) <= 1  # kernels round by where weights begin
    assert small.vae.model in small.residency.resident


def test_a_reference_of_another_checkpoint_is_refused(glm):
    reference = glm.reference(pattern(256, 256, 3))
    nano = GlmImage.nano()
    with pytest.raises(ValueError, match="another AR model"):
        nano.plan("It is night.", references=[reference])
    with pytest.raises(ValueError, match="latent space"):
        nano.paint(glm.plan(PROMPT, 256, 256), references=[reference])


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_that_is_no_checkpoint_is_named_at_once(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"no GLM-Image checkpoint in .*{name}; a checkpoint is a folder with"):
        GlmImage.load(tmp_path / name)


def test_nano_plans_a_size_that_it_was_trained_for():
    plan = GlmImage.nano().plan("A red star.")
    assert (plan.width, plan.height) == (256, 256)


def _files(root: Path) -> set[Path]:
    """The library's files below a folder, relative to it."""
    found = (file.relative_to(root) for file in root.rglob("*") if file.suffix in (".py", ".json"))
    return {file for file in found if "__pycache__" not in file.parts}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("setuptools") is None, reason="needs setuptools, to build without a download")
def test_pip_installs_the_library_with_nano_and_the_packs_version(tmp_path):
    for name in ("glmimage_core", "nano"):
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "source")
    shutil.copy(ROOT / "LICENSE", tmp_path / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-compile", "--target", str(tmp_path / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "./source"], check=True, cwd=tmp_path)
    ours, installed = (_files(root) for root in (ROOT / "glmimage_core", tmp_path / "site" / "glmimage_core"))
    assert ours == {file for file in installed if file.parts[0] != "nano"}
    program = (
        "import sys, torch; sys.path.insert(0, 'site')\n"
        "from importlib.metadata import version\n"
        "from glmimage_core import GlmImage\n"
        "glm = GlmImage.nano()\n"
        "print(version('comfyui-glm-image'), glm.paint(glm.plan('A red star.', 192, 192), steps=2)[0].size, glm.checkpoint)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True, text=True)
    stated = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version"))
    number, rest = done.stdout.split(maxsplit=1)
    assert f'"{number}"' in stated and rest.startswith("(192, 192)") and str(tmp_path / "site") in rest
