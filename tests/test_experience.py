"""What the plans of a model have shown: how it is kept, stored and believed."""

import importlib
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from glm_image_pack.glmimage_core import GlmImage
from glm_image_pack.glmimage_core.diffusion import Grid
from glm_image_pack.glmimage_core.glm_image.drafts import Foresight
from glm_image_pack.glmimage_core.glm_image.experience import FILE, MOST_VOTES, STORED_TRIALS, Experience
from glm_image_pack.glmimage_core.glm_image.files.components import AR, BUILT_IN, NANO
from glm_image_pack.glmimage_core.glm_image.files.load import load_ar
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior

PROMPT = "A large red star at the top left and two small yellow circles on a blue background."
STORED = BUILT_IN[NANO] / AR.folder


def shown() -> Experience:
    """What a striped picture shows, one token a pass and then several."""
    experience, stripes = Experience(), [5, 5, 5, 6, 7, 7] * 6
    for most in (0, 8):
        foresight = Foresight([Grid(6, 6)], {}, experience)
        while foresight.known < foresight.total:
            guessed = len(foresight.guess(most))
            foresight.accept(stripes[foresight.known :][: guessed + 1])
    return experience


def test_what_was_shown_comes_back_from_the_file(tmp_path):
    experience = shown()
    experience.save(tmp_path)
    back = Experience.stored_in(tmp_path, codebook_size=8)
    assert {pair: token for pair, (token, _) in back.followed.items()} == {
        pair: token for pair, (token, _) in experience.followed.items()
    }
    for ours, theirs in [
        (back.guesses, experience.guesses),
        *((back.records[name], record) for name, record in experience.records.items()),
    ]:
        assert ours.keys() == theirs.keys()
        assert all(ours.share(seen) == pytest.approx(theirs.share(seen)) for seen in theirs)
        assert all(trials == STORED_TRIALS for _, trials in ours.values())  # a run soon knows better
    assert back.records["left, large"] and back.guesses


def test_a_folder_without_the_file_has_shown_nothing(tmp_path, caplog):
    assert not Experience.stored_in(tmp_path, 8).followed and not caplog.text


@pytest.mark.parametrize(
    "fault", ["cut off", "empty", "text", "one array", "other tables", "other shapes", "other codebook", "folder"]
)
def test_a_file_that_cannot_be_used_is_named_and_gone_without(tmp_path, caplog, fault):
    shown().save(tmp_path)
    file, size = tmp_path / FILE, 8
    whole = file.read_bytes()
    if fault == "cut off":
        file.write_bytes(whole[: len(whole) // 2])
    elif fault == "empty":
        file.write_bytes(b"")
    elif fault == "text":
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif fault == "one array":
        with file.open("wb") as opened:
            np.save(opened, np.zeros(3))
    elif fault == "other tables":
        np.savez(file, something=np.zeros(3))
    elif fault == "other shapes":
        np.savez(file, followed=np.zeros((2, 3)), guesses=np.zeros((2, 4)))
    elif fault == "other codebook":
        size = 7
    else:
        file.unlink()
        file.mkdir()
    experience = Experience.stored_in(tmp_path, size)
    assert not experience.followed and not experience.records and not experience.guesses
    assert str(file) in caplog.text and "the first plans will be slower" in caplog.text


def test_what_stands_between_two_tokens_once_does_not_displace_what_mostly_does():
    experience = Experience()
    for token in (4, 4, 9, 4, 9):
        experience.follow((1, 2), token)
    assert experience.followed[1, 2][0] == 4
    for _ in range(1000):
        experience.follow((1, 2), 4)
    for _ in range(MOST_VOTES):
        assert experience.followed[1, 2][0] == 4
        experience.follow((1, 2), 9)
    assert experience.followed[1, 2][0] == 9  # the world has changed


@pytest.fixture(scope="module")
def nano_ar():
    return load_ar(BUILT_IN[NANO], "float32")


@pytest.mark.parametrize("seed", range(3))
def test_what_nano_carries_saves_passes_of_its_first_plan_and_changes_no_token(nano_ar, seed):
    known, unknown, wrong = (replace(nano_ar, experience=e) for e in (read(), Experience(), misleading()))
    plans = [generate_prior(ar, PROMPT, 256, 256, seed=seed, lookahead=16) for ar in (known, unknown, wrong)]
    assert plans[0].passes < 0.8 * plans[1].passes
    assert all(torch.equal(plan.tokens, plans[0].tokens) and torch.equal(plan.preview, plans[0].preview) for plan in plans)


def read() -> Experience:
    return Experience.stored_in(STORED, 4096)


def misleading() -> Experience:
    """As of another model: each token is taken for another one."""
    experience = read()
    experience.followed = {pair: (4095 - token, votes) for pair, (token, votes) in experience.followed.items()}
    return experience


def test_nanos_file_is_small_and_fits_nano(nano_ar, caplog):
    assert (STORED / FILE).stat().st_size < 100_000
    assert nano_ar.experience.followed.keys() >= read().followed.keys() and read().followed and not caplog.text
    assert load_ar(BUILT_IN[NANO], "float32").experience is not nano_ar.experience


def test_the_script_writes_the_same_file_again(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "_pack", sys)  # the pack is loaded
    script = importlib.import_module("make_experience")
    shutil.copytree(BUILT_IN[NANO], tmp_path / "nano")
    file, written = tmp_path / "nano" / AR.folder / FILE, []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["make_experience", str(tmp_path / "nano"), "--scenes", "20", "--plans", "2"])
        script.main()
        written.append(file.read_bytes())
    assert written[0] == written[1] != (STORED / FILE).read_bytes()
    assert {"left, preview", "left, large", "preview, large", "reference 1, large"} <= Experience.stored_in(
        file.parent, 4096
    ).records.keys()
    assert GlmImage.load(tmp_path / "nano", dtype="float32").ar.experience.followed
