"""The command line: what each command prints, where, and with which exit status."""

import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.checkpoints import build
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from PIL import Image
from shipped import ROOT

PROGRESS = re.compile(r"[A-Z][A-Za-z, ]+: \d+/\d+")


class Command:
    """The command line, called in this process."""

    def __init__(self, capsys):
        self.capsys = capsys

    def __call__(self, *arguments) -> "Command":
        self.status = main([str(argument) for argument in arguments])
        self.stdout, stderr = self.capsys.readouterr()
        self.progress = [line for line in stderr.splitlines() if PROGRESS.fullmatch(line)]
        self.messages = [line for line in stderr.splitlines() if not PROGRESS.fullmatch(line)]
        return self


@pytest.fixture
def command(capsys):
    return Command(capsys)


def render(models, output, *more, workflow="text_to_image") -> list:
    """Arguments that render a shipped workflow at a size for tests."""
    arguments = ["render", ROOT / "workflows" / "api" / f"{workflow}.json", "--models", models, "--output", output]
    arguments += ["--input", ROOT / "workflows" / "input", "--set", "GLM-Image Sampler.steps=2"]
    return [*arguments, "--set", "GLM-Image Generate Prior.width=256", "--set", "GLM-Image Generate Prior.height=288", *more]


def test_a_bypassed_node_can_be_switched_on(models, folder, tmp_path, command):
    from safetensors.torch import save_file

    layer = "transformer.transformer_blocks.0.attn1.to_v"
    width = checkpoints.load_dit(folder).model.transformer_blocks[0].attn1.to_v.weight.shape[0]
    (models / "loras").mkdir(exist_ok=True)
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, width), f"{layer}.lora_B.weight": torch.ones(width, 2)}
    save_file(tensors, models / "loras" / "mine.safetensors")
    small = [f"--set=GLM-Image {key}" for key in ("Generate Prior.width=256", "Generate Prior.height=256", "Sampler.steps=2")]
    workflow, pictures = str(ROOT / "workflows" / "lora.json"), []
    choose = "--set=Load GLM-Image LoRA.lora_name=mine.safetensors"
    for extra in ([], ["--enable", "Load GLM-Image LoRA", choose]):
        ran = command("render", workflow, "--models", str(models), "--output", str(tmp_path / str(len(pictures))), *small, *extra)
        assert ran.status == 0, ran.messages
        pictures.append(Image.open(ran.stdout.split()[-1]).tobytes())
    assert pictures[0] != pictures[1]
    for enable, message in (("Prompt", "those are: .*Load GLM-Image LoRA"), ("nobody", "not one node that is switched off")):
        ran = command("render", workflow, "--models", str(models), "--enable", enable)
        assert ran.status == 2 and re.search(message, ran.messages[-1])
    ran = command("render", str(ROOT / "workflows" / "api" / "lora.json"), "--models", str(models), "--enable", "1")
    assert ran.status == 2 and "give the UI format" in ran.messages[-1]


def process(*arguments, **options) -> subprocess.CompletedProcess:
    """The command line in a process of its own."""
    return subprocess.run([sys.executable, str(ROOT), *map(str, arguments)], capture_output=True, text=True, **options)


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "output"


def test_render_prints_each_written_path_and_keeps_progress_apart(models, output, command):
    command(*render(models, output))
    assert command.status == 0 and command.messages == []
    (path,) = command.stdout.splitlines()
    with Image.open(path) as picture:
        assert picture.size == (256, 288)
    assert {"Generate Prior: 312/312", "Sampler: 2/2"} < set(command.progress)
    assert command(*render(models, output)).stdout.splitlines() == [path.replace("00001", "00002")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "GLM-Image Sampler.steps=0"], "node 10 (GLM-Image Sampler): steps is 0"),
        (["--set", "10.cfg=high"], "node 10 (GLM-Image Sampler): cfg is 'high', which is no FLOAT"),
        (["--set", "GLM-Image Sampler.stepz=1"], "no input 'stepz'"),
        (["--set", "Nobody.steps=1"], "no node has the id or title 'Nobody'"),
        (["--set", "nonsense"], "NODE.INPUT=VALUE"),
        (["--set", "GLM-Image Generate Prior.width=1000"], "992 or 1024"),
        (["--set", "Prompt.value="], "GLM-Image Generate Prior): width, height, prompt: the prompt is empty"),
        (["--models", "nowhere"], "no GLM-Image checkpoint 'GLM-Image' in nowhere/diffusers"),
    ],
)
def test_a_wrong_value_exits_with_2_and_one_line(models, output, command, more, message):
    command(*render(models, output, *more))
    assert command.status == 2 and command.stdout == ""
    assert len(command.messages) == 1 and message in command.messages[0]


def test_a_changed_workflow_does_not_carry_the_graph_it_no_longer_is(models, output, command):
    path = command(*render(models, output)).stdout.strip()
    assert set(Image.open(path).text) == {"prompt"}


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_refused_before_anything_runs(models, output, command, device):
    command(*render(models, output, "--device", device))
    assert command.status == 2 and command.progress == []
    assert len(command.messages) == 1 and f"--device {device} cannot be used" in command.messages[0]


def test_a_title_that_several_nodes_have_is_refused(models, output, command):
    workflow = ROOT / "workflows" / "api" / "several_references.json"
    command("render", workflow, "--models", models, "--set", "GLM-Image Encode Reference.image=x")
    assert command.status == 2 and "all have the id or title" in command.messages[0]


def test_a_full_disk_names_the_file_and_leaves_no_part_of_it(models, output):
    def limit():  # no file may grow beyond this, as if the disk were full
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = process(*render(models, output), preexec_fn=limit)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "text_to_image_00001_.png" in last and "Save Image" in last
    assert [path for path in output.rglob("*") if path.is_file()] == []


def test_inspect_describes_a_checkpoint(folder, command):
    command("inspect", folder, "--width", 512, "--height", 512)
    assert command.status == 0
    for word in ("vision_language_encoder", "transformer", "267,648", "float32", "peak, one model at a time"):
        assert word in command.stdout


def test_inspect_says_what_is_broken(folder, tmp_path, command):
    shutil.copytree(folder, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "vae")
    file = next((tmp_path / "broken" / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    assert command("inspect", tmp_path / "broken").status == 1
    assert "vae/config.json is missing" in command.stdout and "truncated or corrupt" in command.stdout
    assert command("inspect", tmp_path / "nothing").status == 2


def test_tiny_writes_a_checkpoint_that_renders_and_does_not_overwrite(tmp_path, output, command):
    folder = tmp_path / "models" / "diffusers" / "GLM-Image"
    assert command("tiny", folder).status == 0
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5_000_000
    assert command(*render(tmp_path / "models", output, workflow="image_edit")).status == 0
    assert command("tiny", folder).status == 2 and "not empty" in command.messages[0]


def test_the_command_line_runs_from_anywhere(models, output, tmp_path):
    done = process(*render(models, output), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_library_missing_is_named(models, output, command, monkeypatch):
    def version(name):
        if name == "diffusers":
            raise build.PackageNotFoundError(name)
        return "99.0"

    monkeypatch.setattr(build, "version", version)
    assert command(*render(models, output)).status == 2
    assert "pip install -U diffusers" in command.messages[0]
