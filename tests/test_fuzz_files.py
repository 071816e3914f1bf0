"""Headers and configs that chance has changed: each file loads right or is refused in one line, and never takes long.

GLM_IMAGE_FUZZ=CASES runs that many of each kind.
"""

import json
import os
import random
import shutil
import time

import pytest
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.files.components import AR, COMPONENTS, DIT, GLYPH_ENCODER, VAE
from glm_image_pack.glmimage_core.glm_image.files.inspect import inspect_checkpoint
from glm_image_pack.glmimage_core.glm_image.files.load import stored_component
from glm_image_pack.glmimage_core.glm_image.files.single_file import list_files

from single_files import write_file

CASES = int(os.environ.get("GLM_IMAGE_FUZZ", "400"))
SECONDS = 5  # of processor time for a case
REFUSED = (ValueError, FileNotFoundError, ImportError)
LOADERS = {
    AR: checkpoints.load_ar,
    GLYPH_ENCODER: checkpoints.load_glyph_encoder,
    DIT: checkpoints.load_dit,
    VAE: checkpoints.load_vae,
}
VALUES = [
    *(None, True, False, 0, -1, 1, 2, 7, 64, 10**6, 10**9, 2**63, 10**40, 0.5, -0.0, float("nan"), float("inf"), 1e-300),
    *("", "x", "F32", "F3", "I16", "BOOL", "float32", "../../x", "\u0000", "\ud800", "a" * 5000, [], [0], [[]], {}, {"a": 1}),
    *([1] * 1000, ["x", None], [-1, 8], [0, 10**18]),
]


def places(value, path=()):
    """The paths of all values inside a value of JSON."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def changed(value, chance: random.Random):
    """A copy with one place removed, doubled under another name, or given another value."""
    path = chance.choice([place for place in places(value) if place])
    owner = value = json.loads(json.dumps(value))
    for key in path[:-1]:
        owner = owner[key]
    how = chance.random()
    if how < 0.2:
        del owner[path[-1]]
    elif how < 0.3 and isinstance(owner, dict):
        owner[chance.choice(["x", path[-1] + ".weight", "_" + path[-1]])] = owner[path[-1]]
    else:
        owner[path[-1]] = chance.choice(VALUES)
    return value


def scrambled(content: bytes, chance: random.Random) -> bytes:
    """A copy cut off, or with a few bytes changed."""
    if chance.random() < 0.3:
        return content[: chance.randrange(len(content))]
    content = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def loads_or_is_refused(check, load) -> str:
    """What a check says; what passes it must load. Raises AssertionError for anything but one of the two, in time."""
    began = time.process_time()
    try:
        check()
        said = ""
    except REFUSED as error:
        said = str(error)
        assert said, "a refusal without a word"
    if not said:
        try:
            load()
        except REFUSED as error:  # a check leaves tensors of the right shape under another name to the library, which may know it
            assert "does not hold all its weights" in str(error), "the check passed, and then the loader refused"
    assert time.process_time() - began < SECONDS
    return said


@pytest.mark.parametrize("file", ["transformer", "vae", "vision_language_encoder", "text_encoder"])
def test_a_changed_header_loads_or_is_refused(folder, tmp_path, file):
    chance, kind = random.Random(f"header {file}"), COMPONENTS[file]
    checkpoint = shutil.copytree(folder, tmp_path / "models")
    (weights,) = (checkpoint / file).glob("*.safetensors")
    whole = weights.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    outcomes = set()
    for case in range(CASES // 4):
        if chance.random() < 0.6:
            text = json.dumps(changed(json.loads(whole[8:end]), chance)).encode()
            content = len(text).to_bytes(8, "little") + text + whole[end:]
        else:
            content = scrambled(whole[: end + 64], chance) + whole[end + 64 :]
        weights.write_bytes(content)
        os.utime(weights, ns=(case, case))
        kind = COMPONENTS[file]
        list_files(kind, [checkpoint])
        said = loads_or_is_refused(
            lambda kind=kind: stored_component(checkpoint, kind), lambda kind=kind: LOADERS[kind](checkpoint)
        )
        outcomes.add(bool(said))
    assert True in outcomes


CONFIGS = [
    ("transformer/config.json", DIT),
    ("vae/config.json", VAE),
    ("vision_language_encoder/config.json", AR),
    ("text_encoder/config.json", GLYPH_ENCODER),
    ("scheduler/scheduler_config.json", DIT),
    ("processor/preprocessor_config.json", AR),
    ("processor/tokenizer_config.json", AR),
    ("tokenizer/tokenizer_config.json", GLYPH_ENCODER),
]


@pytest.mark.parametrize(("file", "kind"), CONFIGS)
def test_a_changed_config_loads_or_is_refused(folder, tmp_path, file, kind):
    chance = random.Random(f"config {file}")
    checkpoint = shutil.copytree(folder, tmp_path / "models")
    config = json.loads((checkpoint / file).read_text())
    outcomes = set()
    for case in range(CASES // len(CONFIGS)):
        text = json.dumps(changed(config, chance)).encode()
        (checkpoint / file).write_bytes(scrambled(text, chance) if chance.random() < 0.2 else text)
        os.utime(checkpoint / file, ns=(case, case))
        said = loads_or_is_refused(lambda: stored_component(checkpoint, kind), lambda: LOADERS[kind](checkpoint))
        problems = [str(problem) for report in inspect_checkpoint(checkpoint) for problem in report.problems]
        assert said in problems or not said, "inspect says something else"
        outcomes.add(bool(said))
    assert outcomes == {True, False}


def test_a_changed_config_in_the_metadata_of_a_file_loads_or_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    chance = random.Random("metadata")
    roots = [folder.parent]
    file = write_file(folder / "transformer", tmp_path / "one.safetensors")
    tensors, config = load_file(file), json.loads((folder / "transformer" / "config.json").read_text())
    for case in range(CASES // 8):
        save_file(tensors, file, metadata={"config": json.dumps(changed(config, chance))})
        os.utime(file, ns=(case, case))
        loads_or_is_refused(lambda: stored_component(file, DIT, roots), lambda: checkpoints.load_dit(file, roots=roots))
