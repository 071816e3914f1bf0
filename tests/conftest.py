"""Loads the pack as a package, as ComfyUI does, and writes one tiny checkpoint for the whole run.

Everything in the suite runs the real model classes of transformers and diffusers at tiny size.
"""

import logging
import os
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: a test that reaches for the net fails
# Before torch is imported: models this small gain nothing from threads, and lose tenfold where another program has a core.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

import _pack  # noqa: E402, F401
import torch  # noqa: E402
import transformers  # noqa: E402
from glm_image_pack.cli.graph.nodes import ALL_NODES  # noqa: E402
from glm_image_pack.cli.graph.runner import Runner  # noqa: E402
from glm_image_pack.cli.graph.stock import Folders  # noqa: E402
from glm_image_pack.glmimage_core.checkpoints import report  # noqa: E402
from glm_image_pack.glmimage_core.cogview3.convert import convert  # noqa: E402
from glm_image_pack.glmimage_core.glm_image import references as reference_images  # noqa: E402
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints  # noqa: E402
from glm_image_pack.glmimage_core.glm_image.glyphs import encode_glyph_texts  # noqa: E402
from glm_image_pack.glmimage_core.libraries import started  # noqa: E402
from glm_image_pack.glmimage_core.placement.residency import Residency  # noqa: E402
from glm_image_pack.glmimage_core.tiny.cogview3_base import CHECKPOINTS, VAE_FILE, write_cogview3_base  # noqa: E402
from glm_image_pack.glmimage_core.tiny.cogview3_plus import write_cogview3  # noqa: E402
from glm_image_pack.glmimage_core.tiny.glm_image import write_checkpoint  # noqa: E402
from glm_image_pack.glmimage_core.tiny.vlm import write_vlm  # noqa: E402
from glm_image_pack.nodes.host import host  # noqa: E402

from endpoint_server import Server  # noqa: E402

if started("comfy_kitchen.tensor") is None:
    sys.modules["comfy_kitchen"] = None  # so that tests which need it skip, also where it is installed and has no driver


class Deprecations(logging.Handler):
    """Raises what the libraries log of deprecations; of what they warn, pytest makes errors."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in record.getMessage():
            raise DeprecationWarning(record.getMessage())


@pytest.fixture(scope="session", autouse=True)
def deprecations():
    for library in ("transformers", "diffusers"):
        logging.getLogger(library).addHandler(Deprecations())


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """Both stages of CogView3-Base, full and distilled, with their VAE, as they were published."""
    folder = tmp_path_factory.mktemp("published") / "sat"
    write_cogview3_base(folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory, published) -> Path:
    """Tiny checkpoints: GLM-Image, CogView3-Plus-3B, CogView3-Base in two stages, full and distilled, and where transformers
    has it, the vision-language model Glmga."""
    folder = tmp_path_factory.mktemp("models")
    write_checkpoint(folder / "diffusers" / "GLM-Image")
    write_cogview3(folder / "diffusers" / "CogView3-Plus-3B")
    for name in CHECKPOINTS:
        convert(published / name, folder / "diffusers" / name, "relay" if "relay" in name else "base", published / VAE_FILE)
    if hasattr(transformers, "GlmgaConfig"):
        write_vlm(folder / "LLM" / "Glmga")
    return folder


@pytest.fixture(scope="session")
def folder(models) -> Path:
    return models / "diffusers" / "GLM-Image"


@pytest.fixture(scope="session")
def ar(folder):
    return checkpoints.load_ar(folder)


@pytest.fixture(scope="session")
def encoder(folder):
    return checkpoints.load_glyph_encoder(folder)


@pytest.fixture(scope="session")
def glyphs(encoder):
    """The glyph embeddings of both sides of the guidance, [1, L, D] each: of one text, and of none."""
    return encode_glyph_texts(encoder, ["OPEN"]), encode_glyph_texts(encoder, [])


@pytest.fixture
def dit(folder):
    """Loaded anew for each test, since it keeps reference caches."""
    return checkpoints.load_dit(folder)


@pytest.fixture(scope="session")
def vae(folder):
    return checkpoints.load_vae(folder)


@pytest.fixture
def encode_reference(ar, vae):
    """A PIL picture to a Reference."""
    return partial(reference_images.encode_reference, ar, vae)


@pytest.fixture(autouse=True)
def any_machine(monkeypatch):
    """Every CPU computes in what is stored, so that a test means the same on each."""
    monkeypatch.setattr(report, "emulates", lambda device, dtype: False)


@pytest.fixture(autouse=True)
def quiet_host(models):
    """The standalone host over the tiny checkpoint, as it was before after each test."""
    host.models = models
    host.residency = Residency(torch.device("cpu"))  # also on a machine with a GPU: tests look at what they gave it
    host.on_progress = lambda label, done, total: None
    yield host
    host.residency = None
    host.on_progress = lambda label, done, total: None


@pytest.fixture
def folders(tmp_path, quiet_host, monkeypatch) -> Folders:
    """The shipped reference pictures to read, a folder of the test's own to write; also for nodes that ask the host."""
    folders = Folders(ROOT / "workflows" / "input", tmp_path / "output", [])
    for name, value in (("input", folders.input), ("output", folders.output), ("on_saved", folders.written.append)):
        monkeypatch.setattr(quiet_host, name, value)
    return folders


@pytest.fixture
def runner(folders) -> Runner:
    """Keeps results from run to run."""
    return Runner(ALL_NODES, folders, keep=True)


@pytest.fixture
def chat_server():
    """A chat endpoint on the loopback."""
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
