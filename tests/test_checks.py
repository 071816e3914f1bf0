"""`bench checks`: on the CPU every comparison is of the CPU with itself, so it agrees, unless one side is disturbed."""

from argparse import Namespace
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from glm_image_pack.bench import checks, environment
from glm_image_pack.bench.checks import NotHereError
from glm_image_pack.bench.models import RandomGlmImage

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    return RandomGlmImage.make(tmp_path_factory.mktemp("checks"), "tiny", device=CPU, dtype="float32", seed=0)


@pytest.fixture
def everywhere(monkeypatch):
    """Has all comparisons run on the CPU."""
    monkeypatch.setattr(checks, "_needs", lambda *needed: None)
    monkeypatch.setattr(checks, "_needs_other_than_cpu", lambda glm: None)


def names(glm) -> list[str]:
    return [name for name in checks.checks(glm, 0) if not name.startswith("no memory")]


def test_every_comparison_agrees_where_both_sides_are_the_same(glm, everywhere):
    pytest.importorskip("comfy_kitchen", reason="compares quantized weights")
    compared = checks.checks(glm, 0)
    assert len(names(glm)) == 1 + 3 + 1 + 2 + 2 + 3 + 3
    assert {name: compared[name]() for name in names(glm)} == dict.fromkeys(names(glm))


def shifted(result: torch.Tensor) -> torch.Tensor:
    return result.roll(1)


@contextmanager
def streamed_wrongly(model, blocks, *, resident, device):
    weight = blocks[0].ff.net[0].proj.weight
    weight.data = -weight
    try:
        yield
    finally:
        weight.data = -weight


def every_second(function, change):
    """The same function, but each second result is changed."""
    calls = count()
    return lambda *args, **kwargs: change(function(*args, **kwargs)) if next(calls) % 2 else function(*args, **kwargs)


@pytest.mark.parametrize(
    ("disturbed", "replacement", "fails"),
    [
        (
            "generate_prior",
            every_second(checks.generate_prior, lambda prior: replace(prior, tokens=shifted(prior.tokens))),
            ["a recorded pass of 4 draws as a plain one", "several tokens a pass are those of one, float32"],
        ),
        ("streamed", streamed_wrongly, ["a streamed DiT paints as a resident one, edit"]),
        (
            "quantize_weight",
            every_second(checks.quantize_weight, lambda weight: checks.quantize_weight(-weight.dequantize(), "int8")),
            ["int8 has the CPU's codes and scales"],
        ),
        ("PRODUCT_ERROR", -1.0, ["nf4 has the CPU's products"]),
        ("LEVELS", -1.0, ["plan and picture are the CPU's, float32, edit"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_comparison_fails_where_one_side_is_disturbed(glm, everywhere, monkeypatch, disturbed, replacement, fails):
    pytest.importorskip("comfy_kitchen", reason="compares quantized weights")
    monkeypatch.setattr(checks, disturbed, replacement)
    for name in fails:
        assert checks.checks(glm, 0)[name]()


def test_a_plan_that_differs_from_the_cpus_is_told(glm, everywhere, monkeypatch):
    plan = RandomGlmImage.plan
    moved = every_second(plan, lambda prior: replace(prior, tokens=shifted(prior.tokens)))
    monkeypatch.setattr(RandomGlmImage, "plan", lambda self, *args, **kwargs: moved(self, *args, **kwargs))
    assert "tokens of the plan" in checks.checks(glm, 0)["plan and picture are the CPU's, float32, text"]()


def test_recording_that_fails_is_told_with_the_packs_warning(glm, everywhere, monkeypatch):
    def plan(ar, *args, **kwargs):
        checks.logging.getLogger("glm_image_pack.anything").warning("decoding without a CUDA graph")
        ar.cannot_record.add(CPU)
        return SimpleNamespace(tokens=torch.zeros(1))

    monkeypatch.setattr(checks, "generate_prior", plan)
    outcome = checks._outcome(checks.checks(glm, 0)["a recorded pass of 1 draws as a plain one"])
    glm.ar.cannot_record.clear()
    assert outcome["result"] == "failed" and outcome["reason"].startswith("recording failed; decoding without a CUDA graph")


def test_a_format_that_a_device_cannot_compute_with_is_not_here(glm, everywhere, monkeypatch):
    def refuse(quantization, device):
        raise ValueError(f"{quantization} needs another card")

    monkeypatch.setattr(checks, "check_format", refuse)
    outcome = checks._outcome(checks.checks(glm, 0)["int8 has the CPU's products"])
    assert (outcome["result"], outcome["reason"]) == ("not here", "int8 needs another card")


@pytest.mark.parametrize(("left", "reason"), [([5, 5, 5], None), ([5, 6, 7], "2 bytes more after 2 more runs")])
def test_memory_that_stays_after_a_run_is_told(glm, everywhere, monkeypatch, left, reason):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: left.pop(0))
    assert checks.checks(glm, 0)["no memory stays after a run"]() == reason


def raises(error: Exception):
    def check():
        raise error

    return check


@pytest.mark.parametrize(
    ("check", "result", "reason"),
    [
        (lambda: None, "ok", None),
        (lambda: "3 of 4 differ", "failed", "3 of 4 differ"),
        (raises(NotHereError("needs a GPU")), "not here", "needs a GPU"),
        (raises(RuntimeError("CUDA error: lost\nmore")), "failed", "RuntimeError: CUDA error: lost"),
        (raises(torch.OutOfMemoryError()), "failed", "OutOfMemoryError: "),
    ],
)
def test_what_a_check_comes_to_is_one_line(check, result, reason):
    outcome = checks._outcome(check)
    assert (outcome["result"], outcome["reason"]) == (result, reason)


def test_the_environment_tells_of_a_gpu(monkeypatch):
    properties = SimpleNamespace(total_memory=25_393_692_672, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    monkeypatch.setattr(environment.collect_env, "get_nvidia_driver_version", lambda run: "570.86")
    options = Namespace(size="tiny", dtype=torch.bfloat16, device=torch.device("cuda", 0), rounds=1, seed=0)
    about = environment.environment("ar", options)
    assert about["memory"] == 25_393_692_672 and about["capability"] == "8.9" and about["driver"] == "570.86"
    assert about["device"] == "a card" and about["allocator"] == "native"
