"""Libraries of others: too old, missing, or present and unable to start."""

import importlib.metadata
import os
import re
import subprocess
import sys

import pytest
from glm_image_pack.glmimage_core import libraries
from glm_image_pack.glmimage_core.placement.compute import comfy_kitchen_with
from glm_image_pack.glmimage_core.weights.formats import check_installed

from shipped import ROOT

NANO = ["render", str(ROOT / "workflows" / "api" / "nano.json")]


HIDE = """
import importlib.metadata as metadata, runpy, sys
found, package = metadata.version, {package!r}
def version(name):
    if name == package:
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version, sys.modules[{module!r}], sys.argv[0] = version, None, {root!r}
runpy.run_path({root!r}, run_name="__main__")
"""


def command(*arguments: str, hide: str = "", path: str = "", **environment: str) -> subprocess.CompletedProcess:
    """The command line in a process of its own. hide: a module that is not there. path: where modules are found first."""
    code = HIDE.format(package=libraries.PACKAGES.get(hide, hide), module=hide, root=str(ROOT))
    start = ["-c", code] if hide else [str(ROOT)]
    environment = os.environ | {"PYTHONPATH": path} | environment
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture
def broken(tmp_path):
    """broken(name, code) puts a library that runs the code when it is imported where Python looks first."""

    def make(name: str, code: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
        (tmp_path / f"{name}-9.dist-info").mkdir()
        (tmp_path / f"{name}-9.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9\n")
        return str(tmp_path)

    return make


@pytest.fixture
def fresh(monkeypatch):
    """As if comfy-kitchen had not been imported yet."""
    for name in [name for name in sys.modules if name.split(".")[0] == "comfy_kitchen"]:
        monkeypatch.delitem(sys.modules, name)
    libraries.started.cache_clear()
    yield
    libraries.started.cache_clear()


@pytest.mark.parametrize(
    ("hide", "package"),
    [("tqdm", "tqdm"), ("PIL", "pillow"), ("numpy", "numpy"), ("typing_extensions", "typing_extensions"), ("torch", "torch")],
)
def test_a_missing_library_is_one_line_that_says_what_to_install(hide, package, tmp_path):
    done = command(*NANO, "--output", str(tmp_path), hide=hide)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.search(rf"is missing: pip install -U {package}$", line)


@pytest.mark.slow
@pytest.mark.parametrize("hide", ["accelerate", "tokenizers"])
def test_so_is_a_missing_one_that_a_node_finds_out(hide, tmp_path):
    done = command(*NANO, "--output", str(tmp_path), hide=hide)
    assert done.returncode == 2 and re.search(rf"is missing: pip install -U {hide}$", done.stderr.strip())
    assert "Traceback" not in done.stderr


def test_a_torchvision_that_does_not_fit_is_named(broken, tmp_path):
    path = broken("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    done = command(*NANO, "--output", str(tmp_path), path=path)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith("reinstall torchvision, from where torch came from")


@pytest.mark.parametrize("version", ["2.6.0", "1.13.1+cu117"])
def test_a_torch_that_is_too_old_is_refused_in_one_line(version, monkeypatch):
    monkeypatch.setattr(libraries, "version", lambda name: version)
    with pytest.raises(ImportError, match=rf"needs torch 2\.7 or newer, not {version.replace('+', '.')}: pip install -U torch"):
        libraries.check_version("torch")


@pytest.mark.parametrize("version", ["2.7.1+cu128", "2.10.0a0+git1234", "3.0"])
def test_a_torch_of_any_kind_that_is_new_enough_is_taken(version, monkeypatch):
    monkeypatch.setattr(libraries, "version", lambda name: version)
    libraries.check_version("torch")


def test_the_command_line_and_comfyui_refuse_an_old_torch(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nfound = m.version\n"
        "m.version = lambda name: '2.4.1' if name == 'torch' else found(name)\n"
    )
    done = command(*NANO, path=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "GLM-Image needs torch 2.7 or newer, not 2.4.1: pip install -U torch\n"
    load = f"import runpy; runpy.run_path({str(ROOT / '__main__.py')!r})['load_pack']('pack')"
    done = subprocess.run(
        [sys.executable, "-c", load], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert done.stderr.splitlines()[-1] == "ImportError: GLM-Image needs torch 2.7 or newer, not 2.4.1: pip install -U torch"
    assert command("info", path=str(tmp_path)).returncode == 0  # which a report about it needs


def test_what_pyproject_asks_for_is_what_is_checked():
    asked = dict(line.partition(">=")[::2] for line in (ROOT / "requirements.txt").read_text().split())
    for library, oldest in libraries.OLDEST.items():
        assert importlib.metadata.version(library)
        assert library == "torch" or asked[library] == ".".join(map(str, oldest))


@pytest.mark.parametrize(
    "error", [RuntimeError("0 active drivers ([])"), OSError("libcuda.so.1: cannot open"), AttributeError("x")]
)
def test_a_quicker_way_that_does_not_start_is_told_and_gone_without(broken, fresh, monkeypatch, caplog, error):
    monkeypatch.syspath_prepend(broken("comfy_kitchen", f"raise {type(error).__name__}({str(error)!r})"))
    assert comfy_kitchen_with("apply_rope1") is None and comfy_kitchen_with("adaln") is None
    (record,) = caplog.records  # said once
    assert f"comfy_kitchen does not start ({error}); going on without it" in record.getMessage()
    with pytest.raises(ImportError, match="quantized weights need comfy-kitchen: comfy_kitchen does not start"):
        check_installed()


def test_a_quicker_way_that_is_not_installed_is_gone_without_in_silence(fresh, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    assert comfy_kitchen_with("apply_rope1") is None and caplog.records == []
    with pytest.raises(
        ImportError, match="quantized weights need comfy-kitchen: comfy-kitchen is missing: pip install -U comfy-kitchen"
    ):
        check_installed()


@pytest.mark.parametrize("name", ["", "render", "inspect", "quantize", "convert", "tiny", "bench", "score", "train", "info"])
def test_every_command_answers_without_docstrings(name):
    done = command(*([name] if name else []), "--help", PYTHONOPTIMIZE="2")
    assert done.returncode == 0 and "usage" in done.stdout and done.stderr == ""


@pytest.mark.slow
def test_a_picture_is_painted_without_docstrings_and_with_warnings_as_errors(tmp_path):
    environment = {"PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error::FutureWarning"}
    done = command(*NANO, "--set", "GLM-Image Sampler.steps=1", "--output", str(tmp_path), **environment)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
