"""Our models in ComfyUI's memory manager: streamed without a difference, evicted in order, given back, never leaked."""

import gc
import logging
import resource
import weakref

import comfy.model_management as model_management
import pytest
import torch
from glm_image_pack.glmimage_core.checkpoints import build as checkpoints_build
from glm_image_pack.glmimage_core.glm_image.files.components import COMPONENTS
from glm_image_pack.glmimage_core.glm_image.files.load import load_ar
from glm_image_pack.glmimage_core.glm_image.memory import prior_bytes
from glm_image_pack.glmimage_core.placement.prediction import Job
from glm_image_pack.nodes.host import host
from glm_image_pack.nodes.host.comfyui import patchers, vae

RELEASED_AR = {
    "text_config": {
        **{"num_hidden_layers": 2, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 2},
        **{"intermediate_size": 13696, "vocab_size": 168064, "vision_vocab_size": 16512},
    },
    "vision_config": {"depth": 2, "hidden_size": 1536, "num_heads": 16, "intermediate_size": 6144},
    "vq_config": {"num_embeddings": 16384, "embed_dim": 2048, "latent_channels": 1536},
}


def glyph_wire(run):
    return run("GLMImageLoadGlyphEncoder", checkpoint="GLM-Image", dtype="auto")[0]


def patchers_of(*wires) -> list:
    return [getattr(wire, "patcher", wire) for wire in wires]


@pytest.fixture
def stages(ar, vae, model, conditioned, picture, prompt, run):
    """Every stage that runs a model, as name -> (patcher, what it computes)."""
    glyph = glyph_wire(run)
    positive, negative, _ = conditioned(True)
    settings = {"batch_size": 1, "seed": 5, "temperature": 0.9, "top_p": 0.75, "top_k": 50}
    sampling = {"positive": positive, "negative": negative, "seed": 1, "steps": 2, "cfg": 1.5}
    return {
        "glyphs": (
            glyph.patcher,
            lambda: run("GLMImageEncodePrompt", glyph_encoder=glyph, prompt='"A"', negative_prompt="", glyph_text="")[0][0][0],
        ),
        "vision": (
            ar.patchers["vision"],
            lambda: run("GLMImageEncodeReference", ar=ar, vae=vae, image=picture)[0][0].vision_tokens,
        ),
        "prior": (
            ar.patchers["language"],
            lambda: run("GLMImageGeneratePrior", ar=ar, prompt="a tree", width=256, height=256, **settings)[0].tokens,
        ),
        "sampler": (model, lambda: run("GLMImageSampler", model=model, **sampling)[0]["samples"]),
        "encode": (vae.patcher, lambda: run("GLMImageVAEEncode", vae=vae, image=picture)[0]["samples"]),
        "decode": (vae.patcher, lambda: run("VAEDecode", vae=vae, samples={"samples": torch.ones(1, 16, 16, 16)})[0]),
    }


def test_a_model_of_which_only_a_part_fits_computes_the_same(stages, monkeypatch, only_a_part_fits):
    """Layers are brought to the device as they are called; the result is the same to the last bit."""
    whole = {name: compute() for name, (_, compute) in stages.items()}

    only_a_part_fits()
    for name, (patcher, compute) in stages.items():
        assert torch.equal(compute(), whole[name]), name
        assert patcher.model.model_lowvram and 0 < patcher.loaded_size() < patcher.model_size(), name
        streamed = [layer for layer in patcher.model.modules() if getattr(layer, "prev_comfy_cast_weights", None) is False]
        assert len(streamed) > 3, name
    monkeypatch.undo()
    for patcher, _ in stages.values():
        patcher.detach()


def test_what_cannot_be_streamed_is_small(folder):
    """Of a model of the released widths, on the meta device: norms, and the tables that the libraries read themselves."""
    from transformers import GlmImageConfig, GlmImageForConditionalGeneration

    with torch.device("meta"):
        model = GlmImageForConditionalGeneration(GlmImageConfig(**RELEASED_AR))
    patchers.streamable(model.to(torch.bfloat16), torch.device("cpu"))
    left = {
        name: sum(p.numel() * 2 for p in layer.parameters(recurse=False))
        for name, layer in model.named_modules()
        if not hasattr(layer, "comfy_cast_weights") and list(layer.parameters(recurse=False))
    }
    assert sum(left.values()) < 150e6
    big = {name for name, size in left.items() if size > 1e6}
    assert big == {"model.visual.embeddings.position_embedding", "model.vqmodel.quantize.embedding"}
    for name in ("transformer", "vae"):
        skeleton = COMPONENTS[name].build_from(folder)
        patchers.streamable(skeleton, torch.device("cpu"))
        plain = [layer for layer in skeleton.modules() if not hasattr(layer, "comfy_cast_weights")]
        assert not [layer for layer in plain if list(layer.parameters(recurse=False))]


def test_a_streamed_ar_model_computes_on_its_device(folder, monkeypatch, only_a_part_fits):
    """On PyTorch's meta device, where only a part of the model fits: the rest is brought there layer by layer, and what cannot
    be streamed is there already."""
    from glm_image_pack.glmimage_core.glm_image import decoder, recording
    from glm_image_pack.glmimage_core.glm_image.draw import Sampling

    there = torch.device("meta")
    monkeypatch.setattr(model_management, "get_torch_device", lambda: there)
    monkeypatch.setattr(model_management, "is_device_cpu", lambda device: device.type == "cpu")
    wire = patchers.managed(load_ar(folder, "bfloat16"), there)

    only_a_part_fits()
    patcher, vision = (wire.patchers[half] for half in ("language", "vision"))
    patchers.load(patcher, 0)
    placed = {parameter.device for parameter in patcher.model.parameters()}
    assert placed == {there, torch.device("cpu")} and patcher.model.model_lowvram
    assert {parameter.device for parameter in vision.model.parameters()} == {torch.device("cpu")}
    for layer in patcher.model.modules():
        if not hasattr(layer, "comfy_cast_weights"):
            assert all(tensor.device == there for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))
    with torch.inference_mode():
        positions, following = torch.arange(9).expand(3, -1), torch.full((3, 1), 9)
        logits, run = decoder.prefill(wire.component, torch.arange(9), positions, following, batch=1)
        token, noise = logits.argmax(dim=-1)[:, None], torch.ones(1, 1, logits.shape[-1], device=there)
        with recording.decoder(run, Sampling()) as step:
            drawn = step(token, torch.zeros(1, dtype=torch.int64, device=there), noise)
    assert drawn.device == there and wire.component.device == there


class SmallDevice:
    """A pretend device with `budget` bytes: cpu:0, which ComfyUI takes for another device than cpu."""

    def __init__(self, budget: int, monkeypatch):
        self.budget, self.device, self.most = budget, torch.device("cpu", 0), 0
        monkeypatch.setattr(model_management, "get_free_memory", self.free)
        monkeypatch.setattr(model_management, "minimum_inference_memory", lambda *args: 0)
        monkeypatch.setattr(model_management, "extra_reserved_memory", lambda: 0)
        monkeypatch.setattr(model_management, "soft_empty_cache", lambda *args: None)

    def loaded(self) -> list:
        return [loaded.model for loaded in model_management.current_loaded_models if loaded.device == self.device]

    def free(self, device=None, torch_free_too=False):
        used = sum(patcher.loaded_size() for patcher in self.loaded())
        self.most = max(self.most, used)
        return (self.budget - used, 0) if torch_free_too else self.budget - used


def test_two_halves_are_on_the_device_together_only_where_they_fit(stages, monkeypatch):
    halves = {name: stages[name][0] for name in ("prior", "sampler")}
    sizes = {name: patcher.model_size() for name, patcher in halves.items()}
    for patcher in halves.values():
        monkeypatch.setattr(patcher, "load_device", torch.device("cpu", 0))
    model_management.unload_all_models()
    roomy = SmallDevice(2 * sum(sizes.values()), monkeypatch)
    for patcher in halves.values():
        patchers.load(patcher, 0)
    assert len(roomy.loaded()) == 2
    model_management.free_memory(1e30, roomy.device)
    assert not roomy.loaded() and all(patcher.loaded_size() == 0 for patcher in halves.values())

    tight = SmallDevice(round(1.15 * max(sizes.values())), monkeypatch)
    order = []
    for name in ("prior", "sampler", "sampler", "prior"):
        patchers.load(halves[name], 0)
        here = {patcher.model.__class__.__name__: patcher.loaded_size() for patcher in tight.loaded()}
        order.append(halves[name].loaded_size() == sizes[name])
        assert sum(here.values()) <= tight.budget
    assert order == [True] * 4  # whoever was asked for is there as a whole
    model_management.free_memory(1e30, tight.device)


def test_the_ar_model_runs_by_halves_where_the_whole_of_it_does_not_fit(ar, stages, monkeypatch):
    """Where the language half and its work fit, and hardly more."""
    computed = {stage: stages[stage][1]() for stage in ("vision", "prior")}
    working = prior_bytes(ar.component.model.config, 4, Job(256, 256, prompt_tokens=len("a tree")))
    sizes = {half: patcher.model_size() for half, patcher in ar.patchers.items()}
    for patcher in ar.patchers.values():
        monkeypatch.setattr(patcher, "load_device", torch.device("cpu", 0))
    model_management.unload_all_models()
    small = SmallDevice(round(1.15 * sizes["language"]) + working, monkeypatch)
    assert small.budget < model_management.module_size(ar.component.model) + working
    for stage, half in (("vision", "vision"), ("prior", "language"), ("vision", "vision")):
        assert torch.equal(stages[stage][1](), computed[stage])
        assert ar.patchers[half].loaded_size() == sizes[half]
        assert stage == "vision" or small.free() >= working  # the other half has left
    model_management.free_memory(1e30, small.device)


def test_working_memory_is_asked_for_with_every_stage(stages, monkeypatch):
    asked = []
    original = model_management.load_models_gpu

    def watch(models, memory_required=0, **settings):
        asked.append(memory_required)
        return original(models, memory_required=memory_required, **settings)

    monkeypatch.setattr(model_management, "load_models_gpu", watch)
    for name in ("vision", "prior", "sampler", "encode", "decode", "glyphs"):
        asked.clear()
        stages[name][1]()
        assert max(asked) > (1000 if name == "glyphs" else 100_000), name  # a text of one letter


def test_unloaded_models_run_again_without_reading_the_disk(stages, monkeypatch):
    before = {name: compute() for name, (_, compute) in stages.items()}
    model_management.unload_all_models()
    assert not model_management.current_loaded_models
    monkeypatch.setattr(checkpoints_build, "load_pretrained", lambda *args, **kwargs: pytest.fail("read the disk"))
    for name, (_, compute) in stages.items():
        assert torch.equal(compute(), before[name]), name


def test_a_model_that_nobody_holds_is_gone(folder, run, conditioned, picture):
    positive, negative, _ = conditioned(True)
    ar, vae = (
        run("GLMImageLoadAR", checkpoint="GLM-Image", dtype="auto", quantization="none")[0],
        run("GLMImageLoadVAE", checkpoint="GLM-Image", dtype="auto")[0],
    )
    model = run("GLMImageLoadDiT", checkpoint="GLM-Image", dtype="auto", quantization="none")[0]
    glyph = glyph_wire(run)
    run("GLMImageEncodeReference", ar=ar, vae=vae, image=picture)
    run("GLMImageEncodePrompt", glyph_encoder=glyph, prompt='"A"', negative_prompt="", glyph_text="")
    run("GLMImageSampler", model=model, positive=positive, negative=negative, seed=1, steps=1, cfg=1.5)
    modules = [weakref.ref(patcher.model) for patcher in (*patchers_of(vae, model, glyph), *ar.get_models())]
    modules += [weakref.ref(wire.component.model) for wire in (ar, vae, glyph)]
    gc.collect()
    gc.disable()  # nothing may wait for the collector
    try:
        del ar, vae, model, glyph
        model_management.cleanup_models()
        assert [ref() for ref in modules] == [None] * 8
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [RuntimeError("broken"), model_management.InterruptProcessingException()])
def test_an_error_leaves_nothing_behind(model, conditioned, run, monkeypatch, error):
    positive, negative, _ = conditioned(True)
    settings = {"positive": positive, "negative": negative, "seed": 1, "steps": 3, "cfg": 1.5}
    (expected,) = run("GLMImageSampler", model=model, **settings)
    block = model.model.diffusion_model.transformer_blocks[1]

    def count() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    before = count()
    with monkeypatch.context() as broken, pytest.raises(type(error)) as raised:

        def stop(*args, **kwargs):
            raise error

        broken.setattr(block, "forward", stop)
        run("GLMImageSampler", model=model, **settings)
    error.__traceback__ = None
    del raised
    assert count() <= before
    (again,) = run("GLMImageSampler", model=model, **settings)
    assert torch.equal(again["samples"], expected["samples"])


def test_fifty_runs_of_text_and_edit_leave_memory_flat(ar, vae, model, prompt, picture, run):
    def once(seed: int) -> None:
        edit = seed % 2
        extra = {"references": run("GLMImageEncodeReference", ar=ar, vae=vae, image=picture)[0]} if edit else {}
        plan = {"batch_size": 1, "seed": seed, "temperature": 0.9, "top_p": 0.75, "top_k": 50}
        (prior,) = run("GLMImageGeneratePrior", ar=ar, prompt="a tree", width=256, height=256, **plan, **extra)
        positive, negative = run("GLMImageApplyPrior", positive=prompt[0], negative=prompt[1], prior=prior, **extra)
        (latent,) = run("GLMImageSampler", model=model, positive=positive, negative=negative, seed=seed, steps=1, cfg=1.5)
        run("VAEDecode", vae=vae, samples=latent)

    def state() -> tuple[int, int]:
        gc.collect()
        return len(gc.get_objects()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MB, the most so far

    for seed in range(10):
        once(seed)
    objects, megabytes = state()
    for seed in range(10, 50):
        once(seed)
    objects_after, megabytes_after = state()
    assert objects_after - objects < 200
    assert megabytes_after - megabytes < 20


def test_streaming_the_language_half_is_said(ar, monkeypatch, caplog):
    monkeypatch.setattr("glm_image_pack.nodes.host.comfyui.services.streamed_bytes", lambda patcher, working: 5_000_000_000)
    with caplog.at_level(logging.WARNING), host.placed(ar, part="vision"):  # in one pass, which costs little
        pass
    assert not caplog.text
    with caplog.at_level(logging.WARNING), host.placed(ar, part="language"):
        pass
    assert "5.00 GB of the AR model do not fit" in caplog.text and "quantization" in caplog.text


def test_streamed_bytes_are_those_that_are_not_there(ar, monkeypatch):
    patcher = ar.patcher
    monkeypatch.setattr(model_management, "is_device_cpu", lambda device: False)
    patcher.detach()
    patcher.partially_load(patcher.load_device, extra_memory=patcher.model_size() // 3)
    assert patchers.streamed_bytes(patcher, 0) == patcher.model_size() - patcher.loaded_size() > 0
    patcher.detach()
    patcher.partially_load(patcher.load_device, extra_memory=10 * patcher.model_size())
    assert patchers.streamed_bytes(patcher, 0) == 0


@pytest.fixture
def on_demand(monkeypatch):
    """ComfyUI's patcher that streams on demand, which it uses on GPUs only, made to take the CPU for one: no memory of its own
    there, so every layer is cast as it is called."""
    import types

    import comfy.model_patcher as model_patcher

    if not hasattr(model_patcher, "ModelPatcherDynamic"):
        pytest.skip("this ComfyUI has no patcher that streams on demand")

    class HostBuffer:
        def __init__(self, *sizes):
            self.size = 0

    class OnDemand(model_patcher.ModelPatcherDynamic):
        def __new__(cls, *args, **kwargs):
            return object.__new__(cls)

        def partially_unload(self, *args, **kwargs):
            return 0

    monkeypatch.setattr(model_patcher.comfy_aimdo, "host_buffer", types.SimpleNamespace(HostBuffer=HostBuffer), raising=False)
    monkeypatch.setattr(model_management, "pinned_hostbuf_size", lambda *args: 0)

    def load_on_demand(models, **settings):
        for patcher in models:
            patcher.partially_load(patcher.load_device)

    monkeypatch.setattr(model_management, "load_models_gpu", load_on_demand)
    for module in (patchers, vae):
        monkeypatch.setattr(module, "Patcher", OnDemand)


def test_the_patcher_that_streams_on_demand_gives_the_same(on_demand, library, folder, picture, conditioned, run):
    from glm_image_pack.glmimage_core.glm_image.ar_model import fit, vision_tokens
    from glm_image_pack.glmimage_core.glm_image.denoise import sample
    from glm_image_pack.glmimage_core.glm_image.glyphs import encode_glyph_texts
    from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
    from glm_image_pack.glmimage_core.images import to_pictures
    from glm_image_pack.glmimage_core.vae import encode

    settings = {"checkpoint": "GLM-Image", "dtype": "auto"}
    (ar,) = run("GLMImageLoadAR", **settings, quantization="none")
    (model,) = run("GLMImageLoadDiT", **settings, quantization="none")
    (vae,) = run("GLMImageLoadVAE", **settings)
    glyph = glyph_wire(run)
    assert all(patcher.is_dynamic() for patcher in patchers_of(model, vae, glyph))
    assert ar.patchers["vision"].is_dynamic()
    assert not ar.patchers["language"].is_dynamic()  # every token reads all of it
    assert set(ar.patchers.values()) == {ar.patcher, *ar.get_models()}  # where ComfyUI looks for those that do
    (reference,) = run("GLMImageEncodeReference", ar=ar, vae=vae, image=picture)[0]
    assert torch.equal(reference.vision_tokens, vision_tokens(library["ar"], fit(library["ar"], to_pictures(picture)[0])))
    (latent,) = run("VAEEncode", pixels=picture, vae=vae)
    assert torch.allclose(latent["samples"].float(), encode(library["vae"], picture), atol=1e-5)
    plan = {"batch_size": 1, "seed": 5, "temperature": 0.9, "top_p": 0.75, "top_k": 50}
    (prior,) = run("GLMImageGeneratePrior", ar=ar, prompt="a tree", width=256, height=256, **plan)
    assert torch.equal(prior.tokens, generate_prior(library["ar"], "a tree", 256, 256, seed=5).tokens)
    text = run("GLMImageEncodePrompt", glyph_encoder=glyph, prompt='"A"', negative_prompt="", glyph_text="")[0][0][0]
    assert torch.allclose(text, encode_glyph_texts(library["glyph"], ["A"]), atol=1e-5)

    positive, negative, prior = conditioned(True)
    expected = sample(
        *(library["dit"], prior, positive[0][0], negative[0][0]),
        **{"seeds": [1], "steps": 2, "references": positive[0][1]["glm_image_references"]},
    )
    inputs = {"positive": positive, "negative": negative, "seed": 1, "steps": 2, "cfg": 1.5}
    for _ in range(2):
        (out,) = run("GLMImageSampler", model=model, **inputs)
        assert (out["samples"] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("quantization", ["int8", "fp8", "nf4"])
def test_the_patcher_that_streams_on_demand_brings_quantized_weights(on_demand, folder, conditioned, run, quantization):
    pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
    positive, negative, _ = conditioned(True)
    inputs = {"positive": positive, "negative": negative, "seed": 1, "steps": 2, "cfg": 1.5}
    (model,) = run("GLMImageLoadDiT", checkpoint="GLM-Image", dtype="auto", quantization=quantization)
    assert model.is_dynamic()
    reload, arguments = model.cached_patcher_init
    whole = reload(*arguments, disable_dynamic=True)
    (expected,) = run("GLMImageSampler", model=whole, **inputs)
    for _ in range(2):
        (out,) = run("GLMImageSampler", model=model, **inputs)
        assert torch.allclose(out["samples"], expected["samples"], atol=1e-4)


def test_the_patcher_that_streams_on_demand_keeps_the_schedules_of_two_sizes_apart(on_demand, folder, run):
    import comfy.samplers

    (model,) = run("GLMImageLoadDiT", checkpoint="GLM-Image", dtype="auto", quantization="none")
    sized = [run("GLMImageModelSampling", model=model, width=side, height=side)[0] for side in (2048, 512)]

    def sigmas() -> list:
        return [comfy.samplers.calculate_sigmas(one.get_model_object("model_sampling"), "simple", 4).tolist() for one in sized]

    expected = sigmas()
    for one in (*sized, sized[0]):
        one.partially_load(one.load_device)
        assert sigmas() == expected


def test_caches_that_do_not_fit_beside_the_weights_come_layer_by_layer(library, model, conditioned, run, monkeypatch):
    from glm_image_pack.glmimage_core.glm_image import kv_cache

    positive, negative, _ = conditioned(True)
    shape, shapes = (1, 16, 36, 32), {"cache": [[256, 256]], "glyphs": [list(positive[0][0].shape)]}
    roomy = model.model.memory_required(shape, shapes)
    settings = {"model": model, "positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
    (expected,) = run("GLMImageSampler", **settings)
    seen = []
    get = kv_cache.LayerKVCache.get
    on = kv_cache.LayerKVCache.on
    monkeypatch.setattr(kv_cache.LayerKVCache, "on", lambda *inputs: seen.append("on") or on(*inputs))
    monkeypatch.setattr(kv_cache.LayerKVCache, "get", lambda *inputs: seen.append("get") or get(*inputs))
    weights = model_management.module_size(model.model)
    monkeypatch.setattr(model_management, "get_total_memory", lambda *inputs, **options: weights)
    monkeypatch.setattr(model_management, "extra_reserved_memory", lambda: 0)
    assert model.model.memory_required(shape, shapes) < roomy
    (out,) = run("GLMImageSampler", **settings)
    assert torch.equal(out["samples"], expected["samples"])
    assert set(seen) == {"get"}
    monkeypatch.setattr(model_management, "get_total_memory", lambda *inputs, **options: 10**12)
    run("GLMImageSampler", **settings)
    assert set(seen) == {"get", "on"}
