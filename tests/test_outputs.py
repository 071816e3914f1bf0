"""Files and folders that are written: whole or not there after a kill, and told before the work where they cannot be."""

import os
import signal
from importlib.util import find_spec

import pytest
import torch
from filelock import FileLock
from glm_image_pack.cli.graph.stock import Folders, SaveImage
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.checkpoints.outputs import check_writable
from glm_image_pack.glmimage_core.cogview3.convert import convert
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.files.components import is_checkpoint
from glm_image_pack.glmimage_core.tiny.cogview3_base import VAE_FILE
from PIL import Image

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def killed_at(calls: int, owner, name: str, run) -> None:
    """Run something in a fork that kills itself at one of the calls of a function."""
    child = os.fork()
    if child == 0:
        left, original = [calls], getattr(owner, name)

        def fatal(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(owner, name, fatal)
        try:
            run()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was not killed"


@forks
@pytest.mark.parametrize(("owner", "name"), [(Image.Image, "save"), (os, "link")])
def test_a_killed_save_leaves_no_picture(tmp_path, owner, name):
    def save() -> None:
        SaveImage().save(torch.rand(1, 8, 8, 3), Folders(tmp_path, tmp_path, written=[]), {}, None, "a")

    killed_at(1, owner, name, save)
    assert not list(tmp_path.glob("*.png"))
    save()
    (picture,) = tmp_path.glob("*.png")
    Image.open(picture).load()


@forks
@pytest.mark.parametrize("calls", [1, 2, 3, 9, 15])
def test_a_killed_quantize_goes_on_and_leaves_nothing_of_its_own(folder, tmp_path, calls):
    pytest.importorskip("comfy_kitchen", reason="quantizes")
    command = ["quantize", str(folder), str(tmp_path / "out"), "--ar", "int8", "--dit", "int8"]
    killed_at(calls, os, "replace", lambda: main(command))
    for folder_there in [file for file in (tmp_path / "out").iterdir() if file.is_dir()]:
        (folder_there / ".tmpAbCdEf").write_bytes(b"what safetensors leaves")
    assert not is_checkpoint(tmp_path / "out")
    assert main(command) == 0 and is_checkpoint(tmp_path / "out")
    names = [file.name for file in (tmp_path / "out").rglob("*")]
    assert not [name for name in names if name.startswith(".") or name.endswith(".partial") or name == "quantize.json"]
    assert checkpoints.load_dit(tmp_path / "out")


def test_a_second_quantize_into_a_folder_is_refused_while_the_first_one_runs(folder, tmp_path, capsys):
    pytest.importorskip("comfy_kitchen", reason="quantizes")
    (tmp_path / "out").mkdir()
    command = ["quantize", str(folder), str(tmp_path / "out"), "--dit", "int8"]
    with FileLock(tmp_path / "out" / ".quantize.lock"):
        assert main(command) == 2
    assert "another command is writing to" in capsys.readouterr().err
    assert main(command) == 0


@forks
@pytest.mark.parametrize("family", ["glm-image", "cogview3-plus"])
def test_a_killed_tiny_is_no_checkpoint_and_runs_again(tmp_path, family):
    from safetensors import torch as safetensors

    command = ["tiny", str(tmp_path / "diffusers" / "out"), "--family", family]
    killed_at(3, os, "mkdir", lambda: main(command))
    assert not (tmp_path / "diffusers" / "out").exists()
    assert main(command) == 0
    assert [folder.name for folder in (tmp_path / "diffusers").iterdir()] == ["out"] and safetensors


@forks
def test_a_killed_convert_runs_again(published, tmp_path):
    source = next(published.glob("*/latest")).parent
    command = ["convert", str(source), str(tmp_path / "out"), "--stage", "base", "--vae", str(published / VAE_FILE)]
    killed_at(3, os, "mkdir", lambda: main(command))
    assert not (tmp_path / "out").exists()
    assert main(command) == 0 and [folder.name for folder in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to_sparse(), "as torch.sparse_coo"),
        (lambda tensor: tensor.to("meta"), "without numbers"),
        (lambda tensor: 5, "is no tensor by a name"),
    ],
)
def test_a_tensor_that_cannot_be_written_is_refused_before_anything_is(published, tmp_path, change, message):
    source = next(published.glob("*/latest")).parent
    file = next(source.rglob("*.pt"))
    content = torch.load(file, weights_only=False)
    name = next(name for name, tensor in content["module"].items() if tensor.ndim == 2)
    torch.save({"module": content["module"] | {name: change(content["module"][name])}}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "odd.pt", tmp_path / "out", "base", published / VAE_FILE)
    assert [file.name for file in tmp_path.iterdir()] == ["odd.pt"]


LONG = "x" * 300


@pytest.mark.parametrize("where", ["file/out", LONG, f"new/{LONG}"])
def test_an_output_that_cannot_be_made_is_told_before_the_work(folder, published, tmp_path, capsys, monkeypatch, where):
    (tmp_path / "file").write_text("")
    out = str(tmp_path / where)
    source = next(published.glob("*/latest")).parent
    commands = [
        ["tiny", out],
        *([["quantize", str(folder), out, "--dit", "int8"]] if find_spec("comfy_kitchen") else []),
        ["convert", str(source), out, "--stage", "base", "--vae", str(published / VAE_FILE)],
        ["train", out],
        ["score", "--save", out],
        ["render", "workflows/api/nano.json", "--output", out],
    ]
    for command in commands:
        assert main(command) in (1, 2), command
        error = capsys.readouterr().err
        assert "no folder" in error or "too long" in error or "not empty" in error, (command, error)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_may_not_be_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(PermissionError, match="may not be written"):
        check_writable(tmp_path / "a" / "b")
