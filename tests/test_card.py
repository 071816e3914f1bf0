"""`bench card`: every step in one file, whatever becomes of a step, and the rows that the documents take from it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from glm_image_pack.bench import card as cards
from glm_image_pack.bench.card import Card, Step
from glm_image_pack.cli.main import main

import gpu_rows

ROOT = Path(__file__).resolve().parents[1]
# Stands in for the pack: `python FILE bench WHAT ... --save FILE` does as WHAT says.
PROGRAM = """
import json, os, pathlib, signal, sys, time
what, file = sys.argv[2], pathlib.Path(sys.argv[-1])
rows = [{"check": "a check", "result": "failed" if what == "wrong" else "ok"}]
about = {"bench": what, "offline": os.environ["HF_HUB_OFFLINE"], "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF")}
file.write_text(json.dumps({"environment": about, "tables": [{"title": what, "rows": rows}]}))
if what == "fails":
    sys.exit(f"a warning\\nRuntimeError: no such file as {file.parent} in {pathlib.Path.home()}")
if what == "hangs":
    print("began", flush=True)
    time.sleep(60)
if what == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Has the steps be those that a test names, of a program that needs no libraries. Returns what runs them."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    monkeypatch.setattr(cards, "PACK", file)
    monkeypatch.setattr(cards, "LEAST_SECONDS", 0.1)

    def run(*steps: Step, limit: float = 30) -> dict[str, dict]:
        saved = tmp_path / "card.json"
        monkeypatch.setattr(cards, "steps", lambda card: iter(steps))
        status = main(["bench", "card", "--limit", str(limit), "--save", str(saved)])
        found = {step["step"]: step for step in json.loads(saved.read_text())["steps"]}
        assert (status == 0) == any(step["result"] == "ok" for step in found.values())
        return found

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The file of a whole run on the CPU."""
    file = tmp_path_factory.mktemp("card") / "card.json"
    assert main(["bench", "card", "--device", "cpu", "--save", str(file)]) == 0
    return file


@pytest.mark.slow
def test_on_a_cpu_every_step_that_needs_no_gpu_is_measured_and_the_others_say_why_not(tiny):
    saved = json.loads(tiny.read_text())
    results = {step["step"]: step["result"] for step in saved["steps"]}
    measured = ["checks", "AR", "AR, int8", "DiT", "VAE"]
    absent = ["checks, ComfyUI's allocator", *(f"peaks, {gib} GB" for gib in (24, 16, 12, 8))]
    assert results == dict.fromkeys(measured, "ok") | dict.fromkeys(absent, "not here")
    for step in saved["steps"]:
        assert bool(step["tables"]) == (step["step"] in measured) and (step["result"] == "ok") == (step["reason"] is None)
        assert step["command"].removeprefix("PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync ").startswith("python . bench ")
    by_name = {step["step"]: step for step in saved["steps"]}
    assert [row["batch"] for row in by_name["AR, int8"]["tables"][0]["rows"]] == [1, 2]
    assert len(by_name["VAE"]["tables"][0]["rows"]) == 8
    checked = {row["result"] for row in by_name["checks"]["tables"][0]["rows"]}
    assert checked == {"ok", "not here"}


@pytest.mark.slow
def test_the_file_has_the_versions_and_nothing_of_the_user(tiny):
    text = tiny.read_text()
    about = json.loads(text)["environment"]
    assert {"date", "device", "python", "torch", "transformers", "diffusers", "comfy-kitchen", "comfyui-glm-image"} <= set(about)
    for private in (str(ROOT), str(Path.home()), str(tiny.parent), sys.executable, os.uname().nodename):
        assert private not in text


@pytest.mark.slow
def test_the_rows_of_the_documents_come_from_the_file(tiny, monkeypatch, capsys):
    saved = json.loads(tiny.read_text())
    ar = next(step for step in saved["steps"] if step["step"] == "AR, int8")["tables"][0]["rows"][1]
    figures = gpu_rows.speeds(saved)
    assert len(figures) == 2 * 2 * 2 + 3 + 8 + 1  # AR in two formats, at two batches, in two ways; DiT; VAE; checks
    assert figures["AR int8, 192x192, 2 at once, tokens/s"] == ar["tokens/s"]
    one_a_pass = ar["tokens/s"] / ar["one a pass / this"]
    assert figures["AR int8, 192x192, 2 at once, tokens/s, one a pass"] == pytest.approx(one_a_pass)
    assert figures["what failed"] == "nothing"
    monkeypatch.setattr(sys, "argv", ["gpu_rows.py", str(tiny), str(tiny)])
    gpu_rows.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(figures) and {row.count("|") for row in rows} == {4}  # a column for each file


def test_the_rows_say_what_failed():
    steps = [{"step": "AR", "result": "failed", "reason": "out of memory"}, {"step": "VAE", "result": "not here", "reason": "-"}]
    card = {"environment": {"device": "a card"}, "steps": [step | {"environment": {}, "tables": []} for step in steps]}
    assert gpu_rows.speeds(card) == {"what failed": "AR: out of memory"}


def test_peaks_become_rows_in_gb():
    about = {"stage": "Sampler", "picture": "1024x1024", "references": 1, "quantization": "none", "placed": "block by block"}
    measured = about | {"batch": 1, "weights": 1.0, "predicted": 6000.0, "measured": 5000.0, "predicted / measured": 1.2}
    late = dict.fromkeys(measured) | {"stage": "Generate Prior"}
    step = {"step": "peaks, 8 GB", "environment": {"bench": "memory"}, "tables": [{"title": "", "rows": [measured, late]}]}
    rows = gpu_rows.peaks({"environment": {"device": "a card"}, "steps": [step]})
    assert rows[0] == {"measured on": "a card", "card": "8 GB"} | about | {
        "predicted": 6.0,
        "measured": 5.0,
        "predicted / measured": 1.2,
    }
    assert rows[1]["measured"] is None


def test_a_step_that_fails_hangs_or_dies_says_so_keeps_its_rows_and_the_others_run(program):
    asked = [Step("good", "good", 20), Step("fails", "fails", 20), Step("hangs", "hangs", 1), Step("dies", "dies", 20)]
    done = program(*asked, Step("wrong", "wrong", 20), Step("absent", "good", 20, not_here="no card"), Step("last", "good", 20))
    results = {name: (step["result"], step["reason"]) for name, step in done.items()}
    assert results == {
        "good": ("ok", None),
        "fails": ("failed", "exit status 1: RuntimeError: no such file as TEMP" + results["fails"][1].partition("TEMP")[2]),
        "hangs": ("out of time", "stopped after 1 s"),
        "dies": ("failed", "ended by SIGKILL"),
        "wrong": ("failed", "a check"),
        "absent": ("not here", "no card"),
        "last": ("ok", None),
    }
    assert str(Path.home()) not in results["fails"][1]
    assert [name for name, step in done.items() if not step["tables"]] == ["absent"]
    assert done["hangs"]["seconds"] < 10


def test_no_step_runs_longer_than_all_of_them_may(program):
    began = time.monotonic()
    done = program(Step("hangs", "hangs", 60), Step("late", "good", 60), limit=1.5)
    assert time.monotonic() - began < 10
    assert done["hangs"]["result"] == done["late"]["result"] == "out of time"
    assert done["late"]["reason"].startswith("no time left")


def test_a_step_gets_its_allocator_and_the_others_pytorchs(program, monkeypatch):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    done = program(Step("plain", "good", 20), Step("async", "good", 20, allocator="backend:cudaMallocAsync"))
    assert [step["environment"]["allocator"] for step in done.values()] == [None, "backend:cudaMallocAsync"]
    assert done["async"]["command"] == "PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync python . bench good"
    assert {step["environment"]["offline"] for step in done.values()} == {"1"}


def test_an_interrupt_leaves_what_was_measured(tmp_path):
    """In a process of its own, whose first step has written its rows and hangs."""
    saved = tmp_path / "card.json"
    (tmp_path / "program.py").write_text(PROGRAM)
    code = f"""
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import sys; sys.path[:0] = [{str(ROOT / "scripts")!r}]
import runpy; runpy.run_path({str(ROOT / "__main__.py")!r})["register_pack"]()
from pathlib import Path
from glm_image_pack.bench import card
from glm_image_pack.cli.main import main
card.PACK = Path({str(tmp_path / "program.py")!r})
card.steps = lambda _: iter([card.Step("good", "good", 20), card.Step("hangs", "hangs", 20), card.Step("never", "good", 20)])
sys.exit(main(["bench", "card", "--save", {str(saved)!r}]))
"""
    running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert any("hangs" in line for line in running.stderr)
    time.sleep(2)  # until the step has written its rows
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=20)
    assert running.returncode == 130
    steps = json.loads(saved.read_text())["steps"]
    assert [(step["step"], step["result"], bool(step["tables"])) for step in steps] == [
        ("good", "ok", True),
        ("hangs", "interrupted", True),
    ]


def found(**about) -> cards.Outcome:
    return cards.Outcome("checks", command="", result="ok", seconds=1.0, environment={"comfy-kitchen": "0.2"} | about)


def steps_on(memory: int, failing: tuple[str, ...] = (), **about) -> dict[str, Step]:
    """The steps on a GPU of so many bytes, of which some fail."""
    card, asked = Card(), {}
    for step in cards.steps(card):
        asked[step.name] = step
        result = "failed" if step.name in failing else "ok"
        card.outcomes.append(replace(found(memory=memory, **about), step=step.name, result=result))
    return asked


def test_a_gpu_gets_the_released_size_and_the_caps_that_it_has():
    asked = steps_on(25_393_692_672)  # what PyTorch says of a card sold as 24 GB
    assert "AR, nf4" not in asked and "DiT, int8" not in asked
    assert asked["AR"].arguments == "ar --size full --width 512 --batch 1,16 --rounds 1"
    caps = [float(asked[f"peaks, {gib} GB"].arguments.split()[-1]) for gib in (24, 16, 12, 8)]
    assert caps == [25.393, 17.179, 12.884, 8.589]
    assert not any(step.not_here for step in asked.values())
    asked = steps_on(12_622_168_064)
    assert asked["peaks, 16 GB"].not_here == "the card has 12.6 GB" and not asked["peaks, 12 GB"].not_here


def test_where_a_model_does_not_fit_a_smaller_format_is_measured():
    asked = steps_on(8 * 2**30, failing=("AR", "AR, int8", "DiT"))
    assert asked["AR, nf4"].arguments.endswith("--quantization nf4") and asked["DiT, int8"].arguments.endswith("int8")


def test_rocm_is_not_asked_for_an_allocator_of_cuda():
    asked = steps_on(24 * 2**30, runtime="ROCm 6.4")
    assert [name for name, step in asked.items() if step.not_here] == ["checks, ComfyUI's allocator"]


def test_without_comfy_kitchen_no_format_is_measured():
    asked = steps_on(24 * 2**30, **{"comfy-kitchen": None})
    assert {name for name, step in asked.items() if step.not_here} == {"AR, int8"}


def test_it_saves_markdown_too(tmp_path):
    card = Card(outcomes=[found(bench="checks", device="a card")])
    card.save(tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text()
    assert "device a card" in text and "| checks |     ok |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--save", "card.txt"], "must end in"), (["--save", "no/card.md"], "no folder"), (["--limit", "0"], "--limit is 0")],
)
def test_what_cannot_be_saved_exits_with_2_before_anything_runs(arguments, message, capsys):
    assert main(["bench", "card", *arguments]) == 2
    assert message in capsys.readouterr().err
