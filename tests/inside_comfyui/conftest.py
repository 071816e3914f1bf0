"""Tests that run in ComfyUI's interpreter, with ComfyUI's own classes in this process and no server.

tests/test_comfyui.py starts them; the working directory is the ComfyUI checkout.
"""

import asyncio
import inspect
import os
import runpy
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [os.getcwd(), str(ROOT / "tests")]

import comfy.cli_args  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    comfy.cli_args.args.cpu = True

import comfy.model_management  # noqa: E402
import folder_paths  # noqa: E402
import pytest  # noqa: E402
import utils.install_util  # noqa: E402, F401  before nodes puts comfy/utils.py before it

import nodes as stock  # noqa: E402

pack = runpy.run_path(str(ROOT / "__main__.py"))["load_pack"]("glm_image_pack")

from glm_image_pack.glmimage_core.cogview3.convert import convert  # noqa: E402
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints  # noqa: E402
from glm_image_pack.glmimage_core.tiny.cogview3_base import VAE_FILE, write_cogview3_base  # noqa: E402
from glm_image_pack.glmimage_core.tiny.cogview3_plus import write_cogview3  # noqa: E402
from glm_image_pack.glmimage_core.tiny.glm_image import write_checkpoint  # noqa: E402
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES  # noqa: E402

asyncio.run(stock.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The tiny checkpoint, where ComfyUI finds it."""
    models = tmp_path_factory.mktemp("models")
    write_checkpoint(models / "diffusers" / "GLM-Image")
    folder_paths.add_model_folder_path("diffusers", str(models / "diffusers"))
    folder_paths.add_model_folder_path("loras", str(models / "loras"))
    (models / "loras").mkdir()
    return models / "diffusers" / "GLM-Image"


@pytest.fixture(scope="session")
def cogview3(folder, tmp_path_factory, run) -> dict:
    """What the loaders of tiny CogView3s give, by the checkpoint's name: CogView3-Plus-3B and both stages of CogView3-Base."""
    diffusers, published = folder.parent, tmp_path_factory.mktemp("published") / "sat"
    write_cogview3(diffusers / "CogView3-Plus-3B")
    write_cogview3_base(published, dtype=torch.float32)
    loaded = {"CogView3-Plus-3B": run("GLMImageLoadCogView3", checkpoint="CogView3-Plus-3B", dtype="auto")}
    for name in ("cogview3-base-3b", "cogview3-relay-3b"):
        convert(published / name, diffusers / name, "relay" if "relay" in name else "base", published / VAE_FILE)
        loaded[name] = run("GLMImageLoadCogView3Base", checkpoint=name, dtype="auto")
    return loaded


@pytest.fixture(autouse=True)
def no_gradients():
    """As ComfyUI runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture
def browser(monkeypatch):
    """What is sent to the browser: `texts`, each with the id of its node, and `messages`, each with its kind."""
    from server import PromptServer

    class Browser:
        client_id = "browser"

        def __init__(self):
            self.texts, self.messages = [], []

        def send_progress_text(self, text, node_id):
            self.texts.append((node_id, text))

        def send_sync(self, event, data, client=None):
            self.messages.append((event, data, client))

        def __getattr__(self, name):  # the rest of a server: nobody listens
            return lambda *arguments, **named: None

    browser = Browser()
    monkeypatch.setattr(PromptServer, "instance", browser, raising=False)
    return browser


@pytest.fixture
def texts(browser):
    """Texts as they are sent to the browser, each with the id of its node."""
    return browser.texts


@pytest.fixture
def only_a_part_fits(monkeypatch):
    """Call it, and from then on half of every model is loaded and the rest is streamed."""
    import comfy.model_management as model_management

    def load_a_part(models, **settings):
        for patcher in models:
            patcher.detach()
            patcher.partially_load(patcher.load_device, extra_memory=patcher.model_size() // 2)

    return lambda: monkeypatch.setattr(model_management, "load_models_gpu", load_a_part)


@pytest.fixture(scope="session")
def run():
    """run("Node", input=...) runs a node, of this pack or of ComfyUI, and gives its outputs."""

    def run_node(name: str, **inputs):
        node = (NODES | stock.NODE_CLASS_MAPPINGS)[name]
        out = getattr(node() if isinstance(node.FUNCTION, str) else node, node.FUNCTION)(**inputs)
        out = asyncio.run(out) if inspect.iscoroutine(out) else out
        return out if isinstance(out, tuple) else out.args

    return run_node


@pytest.fixture(scope="session")
def ar(folder, run):
    return run("GLMImageLoadAR", checkpoint="GLM-Image", dtype="auto", quantization="none")[0]


@pytest.fixture(scope="session")
def vae(folder, run):
    return run("GLMImageLoadVAE", checkpoint="GLM-Image", dtype="auto")[0]


@pytest.fixture
def model(folder, run):
    return run("GLMImageLoadDiT", checkpoint="GLM-Image", dtype="auto", quantization="none")[0]


@pytest.fixture(scope="session")
def library(folder):
    """The components as the library itself loads them, for comparison."""
    return {
        "ar": checkpoints.load_ar(folder),
        "dit": checkpoints.load_dit(folder),
        "vae": checkpoints.load_vae(folder),
        "glyph": checkpoints.load_glyph_encoder(folder),
    }


@pytest.fixture(scope="session")
def prompt(folder, run):
    """Positive and negative conditioning of a prompt with and without text to be drawn."""
    encoder = run("GLMImageLoadGlyphEncoder", checkpoint="GLM-Image", dtype="auto")[0]
    return run("GLMImageEncodePrompt", glyph_encoder=encoder, prompt='a sign "OPEN"', negative_prompt="", glyph_text="")[:2]


@pytest.fixture(scope="session")
def picture() -> torch.Tensor:
    from glm_image_pack.glmimage_core.images import from_picture

    from pictures import pattern

    return from_picture(pattern(160, 128, 3))


@pytest.fixture(scope="session")
def references(ar, vae, picture, run):
    return run("GLMImageEncodeReference", ar=ar, vae=vae, image=picture)[0]


@pytest.fixture(scope="session")
def conditioned(ar, prompt, references, run):
    """conditioned(edit): positive, negative and prior of 256 x 288 pixels."""

    def build(edit: bool, batch_size: int = 1):
        extra = {"references": references} if edit else {}
        settings = {"temperature": 0.9, "top_p": 0.75, "top_k": 50}
        prior = run(
            "GLMImageGeneratePrior",
            **dict(ar=ar, prompt="a house", width=256, height=288, batch_size=batch_size, seed=1, **settings, **extra),
        )[0]
        return *run("GLMImageApplyPrior", positive=prompt[0], negative=prompt[1], prior=prior, **extra), prior

    return build
