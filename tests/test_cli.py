"""The command line: what each command prints, where, and with which exit status."""

import fcntl
import logging
import os
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest
import torch
import transformers
from glm_image_pack.bench.models import FULL
from glm_image_pack.bench.table import Table
from glm_image_pack.cli import choices, info, progress
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core import libraries, version
from glm_image_pack.glmimage_core.checkpoints import report
from glm_image_pack.glmimage_core.cogview3 import base as cogview3
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.tiny import spec
from glm_image_pack.glmimage_core.weights import formats
from glm_image_pack.training import make
from glm_image_pack.workflows import template_file
from PIL import Image

from shipped import ROOT

PROGRESS = re.compile(r"([A-Z][A-Za-z, ]+: \d+/\d+) \[.+\]")
TIMING = re.compile(r" *(seconds|\d+\.\d\d)  (\S.*)")


class Command:
    """The command line, called in this process. Standard error is sorted into progress, timings and messages."""

    def __init__(self, capsys):
        self.capsys = capsys

    def __call__(self, *arguments) -> "Command":
        self.status = main([str(argument) for argument in arguments])
        self.stdout, stderr = self.capsys.readouterr()
        self.progress, self.timings, self.messages = [], [], []
        for line in stderr.splitlines():
            if match := PROGRESS.fullmatch(line):
                self.progress.append(match[1])
            elif match := TIMING.fullmatch(line):
                self.timings.append((match[1], match[2]))
            else:
                self.messages.append(line)
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
    workflow, pictures = str(template_file("lora")), []
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
    assert {"Generate Prior: 312/312", "Sampler: 2/2"} <= set(command.progress)
    assert command(*render(models, output)).stdout.splitlines() == [path.replace("00001", "00002")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "GLM-Image Sampler.steps=0"], "node 9 (GLM-Image Sampler): steps is 0"),
        (["--set", "9.cfg=high"], "node 9 (GLM-Image Sampler): cfg is 'high', which is no FLOAT"),
        (["--set", "GLM-Image Sampler.stepz=1"], "no input 'stepz'"),
        (["--set", "Nobody.steps=1"], "no node has the id or title 'Nobody'"),
        (["--set", "nonsense"], "NODE.INPUT=VALUE"),
        (["--set", "GLM-Image Generate Prior.width=1000"], "992 or 1024"),
        (["--set", "Prompt.prompt="], "GLM-Image Generate Prior): width, height, prompt: the prompt is empty"),
        (["--models", "nowhere"], "no GLM-Image checkpoint 'GLM-Image' in nowhere/diffusers"),
    ],
)
def test_a_wrong_value_exits_with_2_and_one_line(models, output, command, more, message):
    command(*render(models, output, *more))
    assert command.status == 2 and command.stdout == ""
    assert len(command.messages) == 1 and message in command.messages[0]


def test_render_ends_with_the_seconds_of_each_node_and_of_all(models, output, command):
    command(*render(models, output))
    header, *rows = command.timings
    seconds = {name: float(value) for value, name in rows}
    assert header == ("seconds", "what ran") and [*seconds][-2:] == ["checks and imports", "total"]
    assert [*seconds][-3].endswith("(Save Image)") and 0 < seconds["node 9 (GLM-Image Sampler)"] < seconds["total"]
    total = seconds.pop("total")
    assert sum(seconds.values()) == pytest.approx(total, abs=0.005 * len(rows))  # each is rounded


def test_a_render_that_fails_prints_no_timings(models, output, command):
    command(*render(models, output, "--set", "Prompt.prompt=a house <|image|>"))
    assert command.status == 2 and command.timings == [] and len(command.messages) == 1


def test_verbose_shows_the_log(models, output, command):
    line = "INFO: node 9 (GLM-Image Sampler) runs"
    for arguments, shown in (([], False), (["-v"], True)):
        done = process(*render(models, output, *arguments))
        assert done.returncode == 0 and (line in done.stderr.splitlines()) == shown
    assert process("-v", *render(models, output)).stderr.count(line) == 1


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
            raise libraries.PackageNotFoundError(name)
        return "99.0"

    monkeypatch.setattr(libraries, "version", version)
    assert command(*render(models, output)).status == 2
    assert "pip install -U diffusers" in command.messages[0]


# Starting quickly

CHECK_IMPORTS = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    print("status", stop.code, "torch" in sys.modules, "transformers" in sys.modules)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, "train nano"),
        (["--version"], 0, "comfyui-glm-image"),
        (["nonsense"], 2, "invalid choice: 'nonsense'"),
        *[([command, "--help"], 0, "show this help") for command in ("render", "inspect", "quantize", "convert", "tiny")],
        *[([command, "--help"], 0, "show this help") for command in ("bench", "score", "train", "info")],
        *[(["bench", name, "--help"], 0, "--rounds") for name in ("ar", "dit", "vae", "e2e", "memory", "checks")],
        (["bench", "card", "--help"], 0, "--limit"),
        (["render", "nowhere.json"], 2, "nowhere.json: No such file or directory"),
        (["inspect", "nowhere"], 2, "nowhere is neither a folder nor a file"),
        (["quantize", "nowhere", "out"], 2, "nowhere is not a folder"),
        (["convert", "nowhere", "out", "--stage", "base"], 2, "nowhere is neither a folder nor a file"),
        (["tiny", "out", "--size", "huge"], 2, "invalid choice: 'huge'"),
        (["bench", "--rounds", "0"], 2, "--rounds is 0"),
        (["score", "nowhere"], 2, "nowhere is no folder with a model_index.json"),
        (["train", "out", "hands"], 2, "there is no phase 'hands'"),
    ],
)
def test_help_and_mistakes_are_answered_without_torch(arguments, status, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CHECK_IMPORTS, str(ROOT), *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == f"status {status} False False", done.stderr
    assert message in done.stdout + done.stderr


def test_the_options_values_are_those_of_the_library():
    assert tuple(report.DTYPES) == choices.DTYPES
    assert formats.CHOICES == choices.QUANTIZATIONS
    assert tuple(spec.SPECS) == choices.SIZES and FULL == choices.FULL
    assert tuple(cogview3.STAGES) == choices.COGVIEW3_STAGES
    assert tuple(make.PHASES) == choices.TRAINED_PHASES


# Versions


def test_the_version_is_that_of_pyproject(command):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == version.NAME and version.pack_version() == project["version"]


def test_an_installed_pack_takes_its_version_from_the_metadata(tmp_path, monkeypatch):
    metadata = tmp_path / "comfyui_glm_image-9.8.7.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: comfyui-glm-image\nVersion: 9.8.7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(version, "PROJECT", tmp_path / "pyproject.toml")
    assert version.pack_version() == "9.8.7"


def test_info_says_what_a_bug_report_needs(command):
    command("info")
    assert command.status == 0 and command.messages == []
    said = dict(line.split(":", 1) for line in command.stdout.splitlines())
    said = {name: value.strip() for name, value in said.items()}
    assert said["comfyui-glm-image"] == version.pack_version()
    assert said["torch"] == torch.__version__ and said["transformers"] == transformers.__version__
    assert said["cpu"].endswith(f"{torch.get_num_threads()} threads") and "GB" in said["RAM"]
    assert "diffusers" in said and "accelerate" in said and "safetensors" in said and said["Python"].startswith("3.")
    listed = [name.split()[0] for key in ("optional", "not installed") for name in said[key].split(", ") if name != "none"]
    assert sorted(listed) == sorted(info.OPTIONAL)


# Progress


@contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """Standard error on a terminal of 80 columns. Gives a function that returns what was written there since its last call."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def written() -> str:
        screen.flush()
        read = b""
        while select.select([ours], [], [], 0.2)[0]:
            read += os.read(ours, 65536)
        return read.decode()

    with os.fdopen(theirs, "w") as screen, redirect_stderr(screen):
        yield written
    os.close(ours)


def test_a_bar_on_a_terminal_ends_its_line_before_anything_else_is_printed():
    show = progress.StageProgress()
    with terminal() as written:
        for done in range(1, 4):
            show("Sampler", done, 3)
        assert "3/3" in (drawn := written()) and drawn.endswith("\n")
        show("Enhance Prompt", 5, 64)  # which ends early, as an answer does
        show.close()
        assert "5/64" in (drawn := written()) and drawn.endswith("\n")
        show("Sampler", 1, 3)
        show("VAE Decode", 1, 3)  # another stage
        assert re.search(r"Sampler: .*1/3[^\n]*\n.*VAE Decode: .*1/3", written())
        show.close()


def test_a_message_of_the_log_stands_above_the_bar():
    show = progress.StageProgress()
    with terminal() as written:
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger().addHandler(handler)
        with progress.logging_beside_bars():
            show("Sampler", 1, 3)
            logging.getLogger().warning("hello")
            show.close()
        logging.getLogger().removeHandler(handler)
        assert "hello" in re.split(r"[\r\n]+", written())


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end_of_each_stage(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY", 0.2)
    show = progress.StageProgress()
    for done in range(1, 9):
        show("Generate Prior", done, 8)
        time.sleep(0.1)
    show("Sampler", 1, 2)
    show("Sampler", 2, 2)
    show("Sampler", 1, 2)  # of the next sampler, which stops
    show.close()
    show("Remote", 1, 1)
    written = capsys.readouterr().err
    assert "\r" not in written and written.endswith("\n") and "\n\n" not in written
    shown = [PROGRESS.fullmatch(line)[1] for line in written.splitlines()]
    assert 2 <= shown.index("Generate Prior: 8/8") <= 5  # of eight steps, three or so were worth a line
    assert shown[shown.index("Generate Prior: 8/8") + 1 :] == ["Sampler: 2/2", "Sampler: 1/2", "Remote: 1/1"]


# Tables


def test_a_table_on_a_terminal_has_columns():
    table = Table("not shown", [{"name": "a", "size": "10 B", "left": None}, {"name": "bcdef", "size": 9, "left": "x"}])
    assert table.text(left=["name", "left"]) == "name   size  left\na      10 B  -\nbcdef     9  x"


def test_a_path_that_the_terminal_cannot_show_is_printed_with_escapes(models, output):
    arguments = render(models, output, "--set", "Save Image.filename_prefix=\u56fe/\u03bb")
    done = process(*arguments, env=os.environ | {"PYTHONIOENCODING": "cp1252"})  # what a pipe has on Windows
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    written = Path(line.encode("ascii").decode("unicode_escape"))
    assert written.is_file() and written.parent.name == "\u56fe"


def test_an_error_shows_where_it_was_raised_when_asked(models, output):
    done = process("-v", *render(models, output, "--set", "Prompt.prompt=a house <|image|>"))
    assert done.returncode == 2 and "Traceback" in done.stderr and "raise ValueError" in done.stderr


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a green star on snow " * 9000, "the prompt has 189000 characters; at most 40000 are read"),
        (" ".join(f'"word {index}"' for index in range(3000)), "3000 texts"),
        ('"' * 200_001, "200001 characters"),
    ],
)
def test_a_prompt_that_would_be_read_for_minutes_is_refused_at_once(models, output, command, prompt, message):
    began = time.process_time()
    command(*render(models, output, "--set", f"Prompt.prompt={prompt}"))
    assert command.status == 2 and message in command.messages[-1]
    assert time.process_time() - began < 5  # some of it for a model of this suite to be loaded


@pytest.fixture
def interruptible():
    """Processes that are started now can be interrupted, also where this one, as in the background of a shell, ignores that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("delay", [0.3, 0.7, 1.2])
def test_an_interrupt_while_it_imports_ends_it_quietly(models, output, interruptible, delay):
    with subprocess.Popen(
        [sys.executable, ROOT, *render(models, output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate()
    assert child.returncode == 130 and stderr.decode().strip() == "interrupted"
