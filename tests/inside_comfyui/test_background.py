"""Generate Prior runs in the background of other nodes if the AR model has a device of its own."""

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
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from glm_image_pack.nodes.host import host
from glm_image_pack.nodes.host.comfyui.background import POLL_SECONDS, WORKING_STEP, Worker
from server import PromptServer

import nodes as stock

SECONDS = 20


@pytest.fixture
def apart(monkeypatch):
    """A second device, as large as it likes: PyTorch takes cpu:0 for another one than cpu, and computes there."""
    devices = {"default": torch.device("cpu"), "gpu:1": torch.device("cpu:0")}
    monkeypatch.setattr(type(host), "device", lambda self, choice="default": devices[choice])
    monkeypatch.setattr(model_management, "is_device_cpu", lambda device: device == torch.device("cpu"))
    roomy = lambda device=None, torch_free_too=False: (10**12, 10**12) if torch_free_too else 10**12  # noqa: E731
    monkeypatch.setattr(model_management, "get_free_memory", roomy)


@pytest.fixture
def writer(folder, run, apart):
    yield run("GLMImageLoadAR", checkpoint="GLM-Image", dtype="auto", quantization="none", device="gpu:1")[0]
    gc.collect()  # ComfyUI keeps no count of what nobody holds


@pytest.fixture
def steps(monkeypatch):
    """steps["prompt"] is set when a plan for the prompt has begun; its `share` is how much of it is there."""
    from glm_image_pack.nodes import prior

    begun: dict[str, threading.Event] = {}

    def watched(writer, prompt, *size, progress, **settings):
        def step(done, total, preview=None):
            event = begun.setdefault(prompt, threading.Event())
            event.share = done / total
            event.set()
            progress(done, total, preview)

        return generate_prior(writer, prompt, *size, progress=step, **settings)

    monkeypatch.setattr(prior, "generate_prior", watched)
    return begun


def plan(writer, prompt, side=256):
    return NODES["GLMImageGeneratePrior"]().generate(writer, prompt, side, side, 1, 0)


async def begun(planning: asyncio.Task, has_begun) -> None:
    """Let a plan begin. Raises what it raises, if it fails before."""
    while not has_begun():
        assert not planning.done(), planning.result()
        await asyncio.sleep(0.001)


def test_a_plan_is_the_same_beside_others(writer, library):
    (prior,) = asyncio.run(plan(writer, "a tree"))
    assert torch.equal(prior.tokens, generate_prior(library["ar"], "a tree", 256, 256, seed=0).tokens)


def test_the_next_picture_is_planned_while_one_is_painted(writer, model, prompt, steps, monkeypatch, folder):
    """ComfyUI's own executor, two branches: the first picture is not done before the second plan has begun."""
    steps |= {"first": threading.Event(), "second": threading.Event()}
    painted = []

    class Given:
        RETURN_TYPES = ("GLM_IMAGE_AR", "MODEL", "CONDITIONING", "CONDITIONING")
        FUNCTION = "give"
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})

        def give(self):
            return (writer, model, *prompt)

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


def test_two_plans_wait_for_each_other(writer, steps):
    """They share a device: the second begins when the first is done."""
    order = []

    async def both():
        async def one(name):
            await plan(writer, name)
            order.append(name)

        first = asyncio.create_task(one("first"))
        await asyncio.sleep(0)
        second = asyncio.create_task(one("second"))
        await asyncio.sleep(0.05)
        assert "second" not in steps
        await asyncio.gather(first, second)

    asyncio.run(both())
    assert order == ["first", "second"] and set(steps) == {"first", "second"}


@pytest.fixture
def there(run, apart):
    """A DiT and a VAE on the second device."""
    (model,) = run("GLMImageLoadDiT", checkpoint="GLM-Image", dtype="auto", quantization="none", device="gpu:1")
    (vae,) = run("GLMImageLoadVAE", checkpoint="GLM-Image", dtype="auto", device="gpu:1")
    yield model, vae
    del model, vae
    gc.collect()


def encode_reference(run, writer, there, conditioned, picture):
    run("GLMImageEncodeReference", ar=writer, vae=there[1], image=picture)


def stock_sampler(run, writer, there, conditioned, picture):
    positive, negative, _ = conditioned
    settings = {"seed": 0, "steps": 1, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    latent = {"samples": torch.zeros(1, 16, 36, 32)}
    run("KSampler", model=there[0], positive=positive, negative=negative, latent_image=latent, **settings)


def own_sampler(run, writer, there, conditioned, picture):
    positive, negative, _ = conditioned
    run("GLMImageSampler", model=there[0], positive=positive, negative=negative, seed=0, steps=1, cfg=1.5)


def stock_decoder(run, writer, there, conditioned, picture):
    run("VAEDecode", vae=there[1], samples={"samples": torch.zeros(1, 16, 32, 32)})


def stock_encoder(run, writer, there, conditioned, picture):
    run("VAEEncode", vae=there[1], pixels=picture)


@pytest.mark.parametrize("use", [encode_reference, stock_sampler, own_sampler, stock_decoder, stock_encoder])
def test_no_model_is_placed_on_a_device_that_computes(use, writer, there, conditioned, picture, run, monkeypatch):
    """ComfyUI may move what is there to make room."""
    from glm_image_pack.nodes import prior

    planning_now, placed = threading.Event(), []
    given = conditioned(False)

    def planned(*arguments, **settings):
        planning_now.set()
        try:
            return generate_prior(*arguments, **settings)
        finally:
            planning_now.clear()

    def watched(needed, device, *arguments, **options):
        placed.append((device, planning_now.is_set()))
        return free_memory(needed, device, *arguments, **options)

    free_memory = model_management.free_memory
    monkeypatch.setattr(prior, "generate_prior", planned)
    monkeypatch.setattr(model_management, "free_memory", watched)

    async def both():
        planning = asyncio.create_task(plan(writer, "a tree", 512))
        await begun(planning, planning_now.is_set)
        placed.clear()
        use(run, writer, there, given, picture)  # holds up the loop, as in ComfyUI
        return await planning

    (prior,) = asyncio.run(both())
    assert prior.tokens.shape == (1, 16, 16)
    assert (torch.device("cpu:0"), False) in placed and (torch.device("cpu:0"), True) not in placed


def test_on_the_cpu_only_the_model_at_work_is_waited_for(folder, run, steps, monkeypatch):
    """Nothing there has to make room."""
    monkeypatch.setattr(
        type(host), "device", lambda self, choice="default": torch.device("meta" if choice == "default" else "cpu")
    )
    (writer,) = run("GLMImageLoadAR", checkpoint="GLM-Image", dtype="auto", quantization="none", device="cpu")
    (glyphs,) = run("GLMImageLoadGlyphEncoder", checkpoint="GLM-Image", dtype="auto", device="cpu")

    async def both():
        planning = asyncio.create_task(plan(writer, "first", 512))
        await begun(planning, lambda: "first" in steps)
        run("GLMImageEncodePrompt", glyph_encoder=glyphs, prompt='a sign "OPEN"', negative_prompt="", glyph_text="")
        share = steps["first"].share
        await planning
        return share

    assert asyncio.run(both()) < 1


# The worker alone


class Patcher:
    load_device = torch.device("cpu")


def test_a_job_joins_one_for_the_same_model_that_needs_no_less_room():
    worker, one, other, placed = Worker(), Patcher(), Patcher(), []

    async def jobs():
        def place(room):
            placed.append(room)
            return object()

        first = await worker.component(one, 1, place)
        assert await worker.component(one, WORKING_STEP, place) is first  # rounded up
        waiting = [asyncio.create_task(worker.component(*what, place)) for what in ((one, WORKING_STEP + 1), (other, 1))]
        await asyncio.sleep(3 * POLL_SECONDS)
        assert not any(task.done() for task in waiting)
        waiting[1].cancel()
        for _ in range(2):
            worker.give_up()
        assert await waiting[0] is not first and placed == [WORKING_STEP, 2 * WORKING_STEP]
        worker.give_up()

    asyncio.run(jobs())
    assert not worker.at_work.locked()


def test_a_model_that_cannot_be_placed_leaves_the_device_free():
    worker = Worker()

    def place(room):
        raise torch.OutOfMemoryError("too small")

    with pytest.raises(torch.OutOfMemoryError):
        asyncio.run(worker.component(Patcher(), 1, place))
    assert not worker.at_work.locked()


def test_a_job_that_is_given_up_before_it_begins_is_not_done():
    worker, done, hold = Worker(), [], threading.Event()

    async def jobs():
        for _ in range(2):
            await worker.component(patcher, 1, lambda room: object())
        first, second = worker.begin(lambda: hold.wait(SECONDS)), worker.begin(lambda: done.append(1))
        assert second.cancel()
        hold.set()
        await asyncio.wrap_future(first)

    patcher = Patcher()
    asyncio.run(jobs())
    while worker.at_work.locked():
        time.sleep(0.001)
    assert done == []


def test_a_stop_reaches_the_plan_and_stays_for_the_node_beside_it(writer, steps):
    async def stopped():
        planning = asyncio.create_task(plan(writer, "first", 512))
        await begun(planning, lambda: "first" in steps)
        model_management.interrupt_current_processing(True)
        await planning

    try:
        with pytest.raises(model_management.InterruptProcessingException):
            asyncio.run(stopped())
        assert model_management.processing_interrupted()
    finally:
        model_management.interrupt_current_processing(False)
    asyncio.run(plan(writer, "second"))  # the device is free again


def test_a_plan_that_nobody_waits_for_stops(writer, steps):
    async def left():
        planning = asyncio.create_task(plan(writer, "first", 1024))
        await begun(planning, lambda: "first" in steps)
        planning.cancel()
        await asyncio.gather(planning, return_exceptions=True)

    asyncio.run(left())
    asyncio.run(plan(writer, "second"))  # waits until the device is free
    assert steps["first"].share < 0.9 and steps["second"].share == 1


def test_a_failure_leaves_the_device_free(writer, monkeypatch):
    from glm_image_pack.nodes import prior

    def fails(*arguments, **settings):
        raise ValueError("no plan")

    with monkeypatch.context() as broken:
        broken.setattr(prior, "generate_prior", fails)
        with pytest.raises(ValueError, match="no plan"):
            asyncio.run(plan(writer, "a tree"))
    asyncio.run(plan(writer, "a tree"))
