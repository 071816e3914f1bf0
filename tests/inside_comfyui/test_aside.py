"""A plan is made beside other nodes where the AR model has a device of its own."""

import asyncio
import gc
import inspect
import threading
import time
from collections import defaultdict

import comfy.model_management as model_management
import pytest
import torch
from execution import PromptExecutor
from glm_image_pack.glmimage_core.prior import generate_prior
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from glm_image_pack.nodes.host import host
from server import PromptServer

import nodes as stock

SECONDS = 20


@pytest.fixture
def apart(monkeypatch):
    """A second device: PyTorch takes cpu:0 for another one than cpu, and computes there."""
    devices = {"default": torch.device("cpu"), "gpu:1": torch.device("cpu:0")}
    monkeypatch.setattr(type(host), "device", lambda self, choice="default": devices[choice])


@pytest.fixture
def ar(folder, run, apart):
    yield run("GLMImageLoadAR", checkpoint="GLM-Image", dtype="auto", quantization="none", device="gpu:1")[0]
    gc.collect()  # ComfyUI keeps no count of what nobody holds


@pytest.fixture
def steps(monkeypatch):
    """steps["prompt"] is set when a plan for the prompt has begun."""
    from glm_image_pack.nodes import prior

    begun: dict[str, threading.Event] = {}

    def watched(writer, prompt, *arguments):
        def step(done, total, preview=None):
            begun.setdefault(prompt, threading.Event()).set()
            arguments[-1](done, total, preview)

        return generate_prior(writer, prompt, *arguments[:-1], step)

    monkeypatch.setattr(prior, "generate_prior", watched)
    return begun


def plan(ar, prompt, side=256):
    return NODES["GLMImageGeneratePrior"]().generate(ar, prompt, side, side, 1, 0)


def test_a_plan_is_the_same_beside_others(ar, library):
    (prior,) = asyncio.run(plan(ar, "a tree"))
    assert torch.equal(prior.tokens, generate_prior(library["ar"], "a tree", 256, 256, seed=0).tokens)


def test_the_next_picture_is_planned_while_one_is_painted(ar, model, prompt, steps, monkeypatch, folder):
    """ComfyUI's own executor, two branches: the first picture is not done before the second plan has begun."""
    steps |= {"first": threading.Event(), "second": threading.Event()}
    painted = []

    class Given:
        RETURN_TYPES = ("GLM_IMAGE_AR", "MODEL", "CONDITIONING", "CONDITIONING")
        FUNCTION = "give"
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})

        def give(self):
            return (ar, model, *prompt)

    class Painted:
        RETURN_TYPES = ()
        OUTPUT_NODE = True
        FUNCTION = "paint"
        INPUT_TYPES = classmethod(lambda cls: {"required": {"prior": ("GLM_IMAGE_PRIOR",), "model": ("MODEL",)}})

        def paint(self, prior, model):
            other = "second" if prior.prompt == "first" else "first"
            sides = NODES["GLMImageApplyPrior"]().apply(*prompt, prior)
            NODES["GLMImageSampler"]().sample(model, *sides, 0, 2, 1.5)
            painted.append((prior.prompt, steps[other].wait(SECONDS)))
            return ()

    monkeypatch.setitem(stock.NODE_CLASS_MAPPINGS, "Given", Given)
    monkeypatch.setitem(stock.NODE_CLASS_MAPPINGS, "Painted", Painted)
    monkeypatch.setitem(stock.NODE_CLASS_MAPPINGS, "GLMImageGeneratePrior", NODES["GLMImageGeneratePrior"])
    graph = {"given": {"class_type": "Given", "inputs": {}}}
    for name in ("first", "second"):
        settings = {"width": 256, "height": 256, "batch_size": 1, "seed": 0, "temperature": 0.9, "top_p": 0.75, "top_k": 50}
        inputs = {"ar": ["given", 0], "prompt": name, **settings}
        graph[name] = {"class_type": "GLMImageGeneratePrior", "inputs": inputs}
        graph[f"{name} picture"] = {"class_type": "Painted", "inputs": {"prior": [name, 0], "model": ["given", 1]}}

    class Server:
        client_id = last_node_id = last_prompt_id = None

        def send_sync(self, event, data, client=None):
            assert event != "execution_error", data

        def send_progress_text(self, text, node_id):
            assert node_id in graph

    server = Server()
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    known = inspect.signature(PromptExecutor).parameters
    executor = PromptExecutor(server, **{"cache_args": defaultdict(int)} if "cache_args" in known else {})
    executor.execute(graph, "prompt", {}, ["first picture", "second picture"])
    assert executor.success and sorted(painted) == [("first", True), ("second", True)]


def test_two_plans_wait_for_each_other(ar, steps):
    """They share a device: the second begins when the first is done."""
    order = []

    async def both():
        async def one(name):
            await plan(ar, name)
            order.append(name)

        first = asyncio.create_task(one("first"))
        await asyncio.sleep(0)
        second = asyncio.create_task(one("second"))
        await asyncio.sleep(0.05)
        assert "second" not in steps
        await asyncio.gather(first, second)

    asyncio.run(both())
    assert order == ["first", "second"] and set(steps) == {"first", "second"}


def test_no_model_is_placed_on_a_device_that_computes(ar, vae, picture, run, monkeypatch):
    """ComfyUI may move what is there to make room."""
    from glm_image_pack.nodes import prior
    from glm_image_pack.nodes.host import comfyui

    computing, placed = threading.Event(), []

    def planned(*arguments):
        computing.set()
        try:
            return generate_prior(*arguments)
        finally:
            computing.clear()

    def watched(patcher, working_bytes):
        placed.append(patcher.load_device == torch.device("cpu:0") and computing.is_set())
        load(patcher, working_bytes)

    load = comfyui.load
    monkeypatch.setattr(prior, "generate_prior", planned)
    monkeypatch.setattr(comfyui, "load", watched)

    async def both():
        planning = asyncio.create_task(plan(ar, "a tree", 512))
        while not computing.is_set():
            await asyncio.sleep(0.001)
        run("GLMImageEncodeReference", ar=ar, vae=vae, image=picture)  # holds up the loop, as in ComfyUI
        return await planning

    (prior,) = asyncio.run(both())
    assert prior.tokens.shape == (1, 16, 16) and placed == [False, False, False]


def test_a_stop_reaches_the_plan_and_stays_for_the_node_beside_it(ar, steps):
    async def stopped():
        planning = asyncio.create_task(plan(ar, "first", 512))
        while "first" not in steps:
            await asyncio.sleep(0.01)
        model_management.interrupt_current_processing(True)
        await planning

    try:
        with pytest.raises(model_management.InterruptProcessingException):
            asyncio.run(stopped())
        assert model_management.processing_interrupted()
    finally:
        model_management.interrupt_current_processing(False)
    asyncio.run(plan(ar, "second"))  # the device is free again


def test_a_plan_that_nobody_waits_for_stops(ar, steps):
    async def left():
        planning = asyncio.create_task(plan(ar, "first", 1024))
        while "first" not in steps:
            await asyncio.sleep(0.01)
        planning.cancel()
        await asyncio.gather(planning, return_exceptions=True)

    asyncio.run(left())
    began = time.monotonic()
    asyncio.run(plan(ar, "second"))
    assert "second" in steps and time.monotonic() - began < SECONDS


def test_a_failure_leaves_the_device_free(ar, monkeypatch):
    from glm_image_pack.nodes import prior

    def fails(*arguments):
        raise ValueError("no plan")

    with monkeypatch.context() as broken:
        broken.setattr(prior, "generate_prior", fails)
        with pytest.raises(ValueError, match="no plan"):
            asyncio.run(plan(ar, "a tree"))
    asyncio.run(plan(ar, "a tree"))
