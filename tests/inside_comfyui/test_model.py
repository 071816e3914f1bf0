"""The DiT as a MODEL: the same pictures as the library's own loop, through ComfyUI's samplers, schedulers and patches."""

import comfy.samplers
import pytest
import torch
from glm_image_pack.glmimage_core.diffusion import Grid, initial_noise
from glm_image_pack.glmimage_core.glm_image.denoise import Approximations, sample
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.latent_preview import colour_chart
from glm_image_pack.glmimage_core.vae import decode, encode
from glm_image_pack.nodes.host.comfyui.glm_image import dit_patcher

SIZE = {"width": 256, "height": 288}
GRID = Grid(36, 32)
EMPTY = {"samples": torch.zeros(1, 16, *GRID)}


def painted(library, positive, negative, prior, steps=4, **settings) -> torch.Tensor:
    """What the library's own Euler loop paints."""
    (glyphs, options), (unwanted, _) = positive[0], negative[0]
    references = options["glm_image_references"]
    return sample(library["dit"], prior, glyphs, unwanted, seeds=[3], steps=steps, references=references, **settings)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a - b).abs().max() < 1e-4


@pytest.fixture(scope="module")
def latent(library) -> torch.Tensor:
    return library["dit"].space.denormalise(initial_noise([9], 16, GRID))


@pytest.mark.parametrize("edit", [False, True], ids=["text", "edit"])
@pytest.mark.parametrize("cfg", [1.0, 1.5])
def test_our_sampler_equals_the_librarys_loop(library, model, conditioned, run, edit, cfg):
    positive, negative, prior = conditioned(edit)
    (out,) = run("GLMImageSampler", model=model, positive=positive, negative=negative, seed=3, steps=4, cfg=cfg)
    assert near(out["samples"], painted(library, positive, negative, prior, cfg=cfg))
    assert out["samples"].device.type == "cpu" and out["samples"].dtype == torch.float32


@pytest.mark.parametrize("edit", [False, True], ids=["text", "edit"])
@pytest.mark.parametrize("approximations", [{"cfg_start": 0.2, "cfg_end": 0.7}, {"step_cache": 0.8}], ids=lambda s: next(iter(s)))
def test_the_approximations_of_our_sampler_are_the_librarys(library, model, conditioned, run, edit, approximations):
    positive, negative, prior = conditioned(edit)
    settings = {"model": model, "positive": positive, "negative": negative, "seed": 3, "steps": 10, "cfg": 1.5}
    (exact,) = run("GLMImageSampler", **settings)
    (out,) = run("GLMImageSampler", **settings, **approximations)
    expected = painted(library, positive, negative, prior, steps=10, approximations=Approximations(**approximations))
    assert near(out["samples"], expected)
    assert not near(out["samples"], exact["samples"])
    (again,) = run("GLMImageSampler", **settings)
    assert torch.equal(again["samples"], exact["samples"])  # nothing stays on the MODEL


@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_the_interval_of_guidance_is_a_part_of_the_run(model, conditioned, latent, run, monkeypatch, denoise):
    """Ten steps, guided from 0.2 to 0.6 of the run, wherever in the schedule it begins."""
    positive, negative, _ = conditioned(False)
    seen, guide = [], comfy.samplers.CFGGuider.predict_noise

    def watch(guider, *inputs, **options):
        seen.append(guider.cfg)
        return guide(guider, *inputs, **options)

    monkeypatch.setattr(comfy.samplers.CFGGuider, "predict_noise", watch)
    settings = {"seed": 3, "steps": 10, "cfg": 1.5, "denoise": denoise, "latent_image": {"samples": latent}}
    run("GLMImageSampler", model=model, positive=positive, negative=negative, cfg_start=0.2, cfg_end=0.6, **settings)
    assert seen == [1.0] * 2 + [1.5] * 4 + [1.0] * 4


def test_a_run_that_begins_in_the_schedule_limits_guidance_as_the_library_does(library, model, conditioned, latent, run):
    positive, negative, prior = conditioned(False)
    settings = {"seed": 3, "steps": 10, "cfg": 1.5, "denoise": 0.5, "latent_image": {"samples": latent}}
    interval = {"cfg_start": 0.2, "cfg_end": 0.6}
    (out,) = run("GLMImageSampler", model=model, positive=positive, negative=negative, **interval, **settings)
    approximations = Approximations(**interval)
    expected = painted(library, positive, negative, prior, 10, denoise=0.5, latents=latent, approximations=approximations)
    assert near(out["samples"], expected)


def test_our_sampler_equals_the_librarys_loop_from_a_masked_latent(library, model, conditioned, latent, run):
    positive, negative, prior = conditioned(False)
    mask = torch.linspace(0, 1, 32).expand(1, 1, *GRID).clone()
    mask[..., :8] = 0
    image = {"samples": latent, "noise_mask": mask[0]}
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 4, "cfg": 1.5}
    (out,) = run("GLMImageSampler", model=model, denoise=0.6, latent_image=image, **settings)
    assert near(out["samples"], painted(library, positive, negative, prior, denoise=0.6, latents=latent, mask=mask))
    assert near(out["samples"][..., :8], latent[..., :8])
    (kept,) = run("GLMImageSampler", model=model, denoise=0.0, latent_image=image, **settings)
    assert torch.equal(kept["samples"], latent)


def test_a_batch_has_its_own_priors_and_seeds(library, model, conditioned, run):
    positive, negative, prior = conditioned(False, batch_size=2)
    (out,) = run("GLMImageSampler", model=model, positive=positive, negative=negative, seed=3, steps=3, cfg=1.5)
    (glyphs, _), (unwanted, _) = positive[0], negative[0]
    assert near(out["samples"], sample(library["dit"], prior, glyphs, unwanted, seeds=[3, 4], steps=3))


def test_a_negative_without_a_prior_serves_our_sampler(library, model, conditioned, prompt, run):
    positive, negative, prior = conditioned(True)
    (out,) = run("GLMImageSampler", model=model, positive=positive, negative=prompt[1], seed=3, steps=3, cfg=1.5)
    assert near(out["samples"], painted(library, positive, negative, prior, steps=3))


def test_only_the_positive_side_reads_references(library, model, conditioned, references, run):
    """Also where the positive conditioning is wired to both sides, and where conditioning went through Apply Prior before."""
    positive, negative, prior = conditioned(True)
    expected = painted(library, positive, positive, prior)
    (out,) = run("GLMImageSampler", model=model, positive=positive, negative=positive, seed=3, steps=4, cfg=1.5)
    assert near(out["samples"], expected)
    crossed = run("GLMImageApplyPrior", positive=negative, negative=positive, prior=prior, references=references)
    (out,) = run("GLMImageSampler", model=model, positive=crossed[0], negative=crossed[1], seed=3, steps=4, cfg=1.5)
    assert near(out["samples"], painted(library, *crossed, prior))
    settings = {"seed": 3, "steps": 8, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    (sized,) = run("GLMImageModelSampling", model=model, **SIZE)
    (out,) = run("KSampler", model=sized, positive=crossed[0], negative=crossed[1], latent_image=EMPTY, **settings)
    assert near(out["samples"].float(), painted(library, *crossed, prior, steps=8))


@pytest.mark.parametrize("edit", [False, True], ids=["text", "edit"])
def test_ksampler_equals_the_librarys_loop(library, model, conditioned, run, edit):
    """With simple, whose spacing is GLM-Image's own to within a thousandth."""
    positive, negative, prior = conditioned(edit)
    (sized,) = run("GLMImageModelSampling", model=model, **SIZE)
    settings = {"seed": 3, "steps": 8, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    (out,) = run("KSampler", model=sized, positive=positive, negative=negative, latent_image=EMPTY, **settings)
    assert near(out["samples"].float(), painted(library, positive, negative, prior, steps=8))


@pytest.mark.parametrize("edit", [False, True], ids=["text", "edit"])
def test_the_advanced_sampler_with_our_sigmas_equals_the_librarys_loop(library, model, conditioned, run, edit):
    positive, negative, prior = conditioned(edit)
    (sigmas,) = run("GLMImageScheduler", model=model, steps=4, denoise=1.0, **SIZE)
    (guider,) = run("CFGGuider", model=model, positive=positive, negative=negative, cfg=1.5)
    (sampler,) = run("KSamplerSelect", sampler_name="euler")
    (noise,) = run("RandomNoise", noise_seed=3)
    inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": EMPTY}
    out, denoised = run("SamplerCustomAdvanced", **inputs)
    assert near(out["samples"].float(), painted(library, positive, negative, prior))
    assert near(denoised["samples"].float(), out["samples"].float())


def test_ksampler_advanced_in_two_halves_equals_one_run(model, conditioned, run):
    positive, negative, _ = conditioned(False)
    settings = {
        **{"model": model, "noise_seed": 3, "steps": 6, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple"},
        **{"positive": positive, "negative": negative},
    }
    on, off = "enable", "disable"
    (whole,) = run(
        "KSamplerAdvanced",
        **settings,
        **{"add_noise": on, "latent_image": EMPTY, "start_at_step": 0, "end_at_step": 99, "return_with_leftover_noise": off},
    )
    (half,) = run(
        "KSamplerAdvanced",
        **settings,
        **{"add_noise": on, "latent_image": EMPTY, "start_at_step": 0, "end_at_step": 3, "return_with_leftover_noise": on},
    )
    (rest,) = run(
        "KSamplerAdvanced",
        **settings,
        **{"add_noise": off, "latent_image": half, "start_at_step": 3, "end_at_step": 99, "return_with_leftover_noise": off},
    )
    assert near(whole["samples"].float(), rest["samples"].float())


def test_the_dits_clock_follows_the_size_of_the_picture_whatever_the_schedule(model, conditioned, run, monkeypatch):
    """The same sigmas on a MODEL with the schedule of another size: the DiT is told the same timesteps."""
    positive, negative, _ = conditioned(False)
    seen = []
    dit = model.model.diffusion_model
    embed_time = dit.embed_time
    monkeypatch.setattr(dit, "embed_time", lambda *inputs: seen.append(inputs) or embed_time(*inputs))
    (sigmas,) = run("GLMImageScheduler", model=model, steps=3, denoise=1.0, **SIZE)
    (sampler,) = run("KSamplerSelect", sampler_name="euler")
    for width in (256, 2048):
        (sized,) = run("GLMImageModelSampling", model=model, width=width, height=width)
        inputs = {"model": sized, "add_noise": True, "noise_seed": 3, "cfg": 1.0, "sampler": sampler, "sigmas": sigmas}
        run("SamplerCustom", positive=positive, negative=negative, latent_image=EMPTY, **inputs)
    clocks = [timesteps[0].item() for timesteps, *_ in seen]
    assert clocks == pytest.approx([999, 666, 333] * 2, abs=0.01)  # int(linspace(1000, 1, 4)) - 1
    assert {(width, height) for _, width, height, _ in seen} == {(256, 288)}


def test_model_sampling_maps_timesteps_to_sigmas_and_back(model, run):
    (sized,) = run("GLMImageModelSampling", model=model, width=1024, height=1024)
    sampling = sized.get_model_object("model_sampling")
    assert sampling.shift == 3.25 and model.get_model_object("model_sampling").shift == 3.25
    assert sampling.sigma(torch.tensor(499.0)).item() == pytest.approx(3.25 / (3.25 + 1), abs=1e-6)  # sigma 0.5, shifted
    timesteps = torch.tensor([0.0, 1, 499, 998, 999])
    assert torch.allclose(sampling.timestep(sampling.sigma(timesteps)), timesteps, atol=1e-2)
    assert not list(sampling.buffers())  # which the patcher that streams on demand would carry over to another size
    assert len(sampling.sigmas) == 1000 and sampling.sigma_max == 1 and 0 < sampling.sigma_min < 0.01
    assert sampling.percent_to_sigma(0) == 1 and sampling.percent_to_sigma(1) == 0
    assert sampling.percent_to_sigma(0.5) == pytest.approx(3.25 / 4.25, abs=1e-6)


def test_a_schedule_that_a_stock_node_put_on_the_model_is_used(model, conditioned, run):
    positive, negative, _ = conditioned(False)
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 4, "cfg": 1.5}
    (plain,) = run("GLMImageSampler", model=model, **settings)
    for shift, same in ((model.model.component.shift.of_tokens(16 * 18), True), (6.0, False)):
        (shifted,) = run("ModelSamplingSD3", model=model, shift=shift)
        (out,) = run("GLMImageSampler", model=shifted, **settings)
        assert torch.isfinite(out["samples"]).all()
        assert ((out["samples"] - plain["samples"]).abs().max() < 0.2) == same


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # in ComfyUI's own deis
@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_sampler_and_scheduler_gives_a_finite_picture(model, conditioned, run, scheduler):
    positive, negative, _ = conditioned(True)
    (sized,) = run("GLMImageModelSampling", model=model, **SIZE)
    for name in comfy.samplers.KSampler.SAMPLERS:
        settings = {"seed": 3, "steps": 3, "cfg": 1.5, "sampler_name": name, "scheduler": scheduler, "denoise": 1.0}
        (out,) = run("KSampler", model=sized, positive=positive, negative=negative, latent_image=EMPTY, **settings)
        assert torch.isfinite(out["samples"]).all(), name
        assert out["samples"].abs().max() > 0.1, name


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # in ComfyUI's own deis
@pytest.mark.parametrize("name", comfy.samplers.KSampler.SAMPLERS)
def test_our_sampler_takes_every_sampler(model, conditioned, run, name):
    positive, negative, _ = conditioned(False)
    inputs = {"positive": positive, "negative": negative, "seed": 3, "steps": 3, "cfg": 1.5, "sampler_name": name}
    (out,) = run("GLMImageSampler", model=model, **inputs)
    assert torch.isfinite(out["samples"]).all()


def test_a_latent_can_be_upscaled_and_painted_again(model, ar, prompt, conditioned, run):
    positive, negative, _ = conditioned(False)
    settings = {"seed": 3, "cfg": 1.5}
    (small,) = run("GLMImageSampler", model=model, positive=positive, negative=negative, steps=2, **settings)
    size = {"width": 512, "height": 576}
    (large,) = run("LatentUpscale", samples=small, upscale_method="nearest-exact", crop="disabled", **size)
    plan = {"ar": ar, "prompt": "a house", "batch_size": 1, "seed": 1, **size}
    (prior,) = run("GLMImageGeneratePrior", **plan)
    positive, negative = run("GLMImageApplyPrior", positive=prompt[0], negative=prompt[1], prior=prior)
    stock = {"sampler_name": "euler", "scheduler": "simple", "steps": 2, "denoise": 0.5, **settings}
    (out,) = run("KSampler", model=model, positive=positive, negative=negative, latent_image=large, **stock)
    assert out["samples"].shape == (1, 16, 72, 64) and torch.isfinite(out["samples"]).all()


def test_an_empty_sd3_latent_fits(model, conditioned, run):
    positive, negative, _ = conditioned(False)
    (empty,) = run("EmptySD3LatentImage", batch_size=1, **SIZE)
    settings = {"seed": 3, "steps": 2, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    (out,) = run("KSampler", model=model, positive=positive, negative=negative, latent_image=empty, **settings)
    assert out["samples"].shape == EMPTY["samples"].shape


@pytest.mark.parametrize("edit", [False, True], ids=["text", "edit"])
def test_easycache_skips_steps_and_changes_little(model, conditioned, run, edit, caplog):
    positive, negative, _ = conditioned(edit)
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 20, "cfg": 1.5}
    (plain,) = run("GLMImageSampler", model=model, **settings)
    limits = {"start_percent": 0.0, "end_percent": 1.0, "verbose": False}
    (careful,) = run("EasyCache", model=model, reuse_threshold=0.0, **limits)
    (out,) = run("GLMImageSampler", model=careful, **settings)
    assert near(out["samples"], plain["samples"])
    (eager,) = run("EasyCache", model=model, reuse_threshold=1.0, **limits)
    caplog.set_level("INFO")
    (out,) = run("GLMImageSampler", model=eager, **settings)
    (line,) = [record.message for record in caplog.records if "skipped" in record.message]
    assert not line.startswith("EasyCache - skipped 0/")
    assert torch.isfinite(out["samples"]).all() and not near(out["samples"], plain["samples"])


def test_a_step_cache_may_write_into_what_it_is_given(model, conditioned, run):
    """As EasyCache does when it skips a step."""
    from comfy.patcher_extension import WrappersMP

    positive, negative, _ = conditioned(False)
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
    (plain,) = run("GLMImageSampler", model=model, **settings)

    def overwrite(executor, x, *args, **kwargs):
        out = executor(x, *args, **kwargs)
        x.zero_()
        return out

    wrapped = model.clone()
    wrapped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", overwrite)
    (out,) = run("GLMImageSampler", model=wrapped, **settings)
    assert torch.equal(out["samples"], plain["samples"])


def test_attention_patches_see_the_image_part(model, conditioned, run):
    """What NAG and others hook into."""
    positive, negative, _ = conditioned(False)
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
    (plain,) = run("GLMImageSampler", model=model, **settings)
    seen = []

    def patch(out, options):
        seen.append((tuple(out.shape), options["img_slice"], options["n_heads"] * options["dim_head"], options["block"]))
        return out * 0.5

    halved = model.clone()
    halved.set_model_attn1_output_patch(patch)
    (out,) = run("GLMImageSampler", model=halved, **settings)
    assert not near(out["samples"], plain["samples"])
    for shape, image, width, (_, block) in seen:
        assert image[1] - image[0] == 18 * 16 and image[1] == shape[1] and width == shape[2] and block in (0, 1)
    (again,) = run("GLMImageSampler", model=model, **settings)
    assert torch.equal(again["samples"], plain["samples"])  # nothing of the patch stays on the model


@pytest.mark.parametrize("edit", [False, True])
def test_the_attention_that_a_node_chooses_computes(model, conditioned, run, edit):
    """As ModelAttentionBackend does."""
    positive, negative, _ = conditioned(edit)
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
    (plain,) = run("GLMImageSampler", model=model, **settings)
    seen, chosen = [], model.clone()

    def override(function, query, key, *args, **kwargs):
        seen.append(key.shape[2] - query.shape[2])
        return function(query, key, *args, **kwargs)

    options = chosen.model_options["transformer_options"]
    options["optimized_attention_override"] = override
    (out,) = run("GLMImageSampler", model=chosen, **settings)
    assert near(out["samples"], plain["samples"])
    assert len(seen) == 2 * 2 * 2 and (max(seen) > 0) == edit and min(seen) == 0  # steps, sides, blocks; references are keys too
    options["optimized_attention_override"] = lambda function, query, *others, **given: 0 * query
    (nothing,) = run("GLMImageSampler", model=chosen, **settings)
    assert not near(nothing["samples"], plain["samples"])
    (again,) = run("GLMImageSampler", model=model, **settings)
    assert torch.equal(again["samples"], plain["samples"])


def test_auto_follows_the_attention_that_a_flag_chose(model, conditioned, run, monkeypatch):
    from comfy.ldm.modules import attention

    positive, negative, _ = conditioned(False)
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
    (plain,) = run("GLMImageSampler", model=model, **settings)
    calls = []

    def by_flag(*args, **kwargs):
        calls.append(args)
        return attention.attention_pytorch(*args, **kwargs)

    monkeypatch.setattr(attention, "optimized_attention", by_flag)
    (out,) = run("GLMImageSampler", model=model, **settings)
    assert calls and near(out["samples"], plain["samples"])
    calls.clear()
    (own,) = run("GLMImageLoadDiT", checkpoint="GLM-Image", dtype="auto", quantization="none", attention="sdpa")
    run("GLMImageSampler", model=own, **settings)
    assert not calls  # the loader chose


def test_nag_changes_the_picture_where_both_sides_run_together(model, conditioned, prompt, run):
    stock = pytest.importorskip("nodes").NODE_CLASS_MAPPINGS
    if "NAGuidance" not in stock:
        pytest.skip("this ComfyUI has no NAGuidance")
    positive, negative, _ = conditioned(False)
    negative = [[positive[0][0], negative[0][1]]]  # glyph texts of one length, so that one pass does both
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
    (plain,) = run("GLMImageSampler", model=model, **settings)
    (guided,) = run("NAGuidance", model=model, nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)
    (out,) = run("GLMImageSampler", model=guided, **settings)
    assert torch.isfinite(out["samples"]).all() and not near(out["samples"], plain["samples"])


def test_blocks_that_were_compiled_honour_attention_patches(folder, conditioned, run):
    (model,) = run("GLMImageLoadDiT", checkpoint="GLM-Image", dtype="auto", quantization="none")
    for block in model.model.diffusion_model.transformer_blocks:
        block.compile(backend="eager")
    positive, negative, _ = conditioned(False)
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
    (exact,) = run("GLMImageSampler", model=model, **settings)
    patched, seen = model.clone(), []
    patched.set_model_attn1_output_patch(lambda out, options: seen.append(1) or 0 * out)
    (out,) = run("GLMImageSampler", model=patched, **settings)
    assert seen and not near(out["samples"], exact["samples"])
    (again,) = run("GLMImageSampler", model=model, **settings)
    assert near(again["samples"], exact["samples"])


def test_a_compiled_model_paints_the_same(model, conditioned, run):
    positive, negative, _ = conditioned(True)
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
    (plain,) = run("GLMImageSampler", model=model, **settings)
    compiled = model.clone()
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    set_torch_compile_wrapper(compiled, backend="eager")  # what TorchCompileModel calls, without a C++ compiler
    (out,) = run("GLMImageSampler", model=compiled, **settings)
    assert near(out["samples"], plain["samples"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": "prompt"}, "the positive conditioning carries no prior tokens.*Apply Prior"),
        ({"positive": "negative"}, "positive is the negative output of Apply Prior.*swap"),
        ({"latent_image": {"samples": torch.ones(1, 16, 1, *GRID)}}, "another model family"),
        ({"latent_image": {"samples": torch.zeros(1, 16, 32, 32)}}, "plans 256x288 pixels, but the latent image is of 256x256"),
        ({"latent_image": {"samples": torch.ones(1, 4, *GRID)}}, "another model family"),
        ({"latent_image": {"samples": torch.ones(3, 16, *GRID)}, "batch": 2}, "the prior plans 2 images and 3"),
    ],
)
def test_what_a_stock_sampler_cannot_paint_is_refused(model, conditioned, prompt, run, change, message):
    positive, negative, _ = conditioned(False, batch_size=change.pop("batch", 1))
    inputs = {"positive": positive, "negative": negative, "latent_image": EMPTY} | {
        name: {"prompt": prompt[0], "negative": negative}[value] if isinstance(value, str) else value
        for name, value in change.items()
    }
    settings = {"seed": 3, "steps": 2, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    with pytest.raises(ValueError, match=message):
        run("KSampler", model=model, **inputs, **settings)


def test_memory_is_asked_for_by_size_batch_references_and_drawn_text(model, conditioned):
    needed = model.model.memory_required
    small = needed([1, 16, 64, 64])
    assert small < needed([2, 16, 64, 64]) < needed([2, 16, 128, 128])
    assert small < needed([1, 16, 64, 64], {"cache": [[1024, 1024]]}) < needed([1, 16, 64, 64], {"cache": [[1024, 1024] * 2]})
    assert needed([1, 16, 64, 64], {"glyphs": [[1, 64, 32]]}) == small < needed([1, 16, 64, 64], {"glyphs": [[1, 2048, 32]]})
    positive, _, _ = conditioned(True)
    shapes = model.model.extra_conds_shapes(cross_attn=positive[0][0], **positive[0][1])
    reference = positive[0][1]["glm_image_references"][0]
    assert shapes == {"cache": [reference.width, reference.height], "glyphs": list(positive[0][0].shape)}


@pytest.mark.parametrize("name", ["GLMImageSampler", "KSampler"])
def test_a_negative_needs_no_apply_prior_and_has_no_plan(model, conditioned, prompt, run, name):
    """Whatever is wired to the negative side, it is painted without prior and references."""
    positive, negative, _ = conditioned(True)
    settings = {"seed": 3, "steps": 3, "cfg": 1.5, "sampler_name": "euler", "denoise": 1.0}
    if name == "KSampler":
        settings |= {"scheduler": "simple", "latent_image": EMPTY}
    pictures = []
    for other in (negative, prompt[1], [[negative[0][0], positive[0][1]]]):
        (out,) = run(name, model=model, positive=positive, negative=other, **settings)
        pictures.append(out["samples"].float())
    assert near(pictures[0], pictures[1]) and near(pictures[0], pictures[2])


def test_positive_and_negative_swapped_are_refused(model, conditioned, run):
    positive, negative, _ = conditioned(False)
    with pytest.raises(ValueError, match="swap positive and negative"):
        run("GLMImageSampler", model=model, positive=negative, negative=positive, seed=3, steps=2, cfg=1.5)


def test_patches_without_effect_are_said_once(model, conditioned, run, caplog):
    positive, negative, _ = conditioned(False)
    settings = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
    patched = model.clone()
    patched.set_model_patch_replace(lambda *args: None, "dit", "double_block", 0)
    patched.set_model_attn1_output_patch(lambda out, options: out)
    for _ in range(2):
        run("GLMImageSampler", model=patched, **settings)
    said = [record.message for record in caplog.records if "no effect" in record.message]
    assert len(said) == 2 and any("replaced dit blocks" in text for text in said) and any("NAG" in text for text in said)
    patched.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
    with pytest.raises(ValueError, match="TomePatchModel.*remove it"):
        run("GLMImageSampler", model=patched, **settings)


def test_an_area_is_refused(model, conditioned, run):
    positive, negative, _ = conditioned(False)
    (area,) = run("ConditioningSetArea", conditioning=positive, width=128, height=128, x=0, y=0, strength=1.0)
    settings = {"seed": 3, "steps": 2, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    with pytest.raises(ValueError, match="whole pictures"):
        run("KSampler", model=model, positive=area, negative=negative, latent_image=EMPTY, **settings)


@pytest.mark.parametrize("wrong", ["vae", "ar", "other"])
def test_a_model_of_another_family_is_refused(model, vae, ar, conditioned, run, wrong):
    positive, negative, _ = conditioned(False)
    wrong = {"vae": vae, "ar": ar, "other": vae.patcher}[wrong]
    inputs = {"positive": positive, "negative": negative, "seed": 3, "steps": 2, "cfg": 1.5}
    with pytest.raises(ValueError, match="model is not a GLM-Image DiT"):
        run("GLMImageSampler", model=wrong, **inputs)
    with pytest.raises(ValueError, match="model is not a GLM-Image DiT"):
        run("GLMImageModelSampling", model=wrong, **SIZE)


def test_everything_reaches_the_device(folder, conditioned, monkeypatch):
    """Without having one: on PyTorch's meta device an operation on a tensor that was left on the CPU raises."""
    import comfy.model_management as model_management

    from watch import watch_inputs

    there = torch.device("meta")
    monkeypatch.setattr(model_management, "get_torch_device", lambda: there)
    monkeypatch.setattr(model_management, "get_total_memory", lambda *inputs, **options: 10**12)
    dit = checkpoints.load_dit(folder, "bfloat16")
    patcher = dit_patcher(dit, there)
    model = patcher.model.to(there)
    model.current_patcher = patcher
    positive, negative, _ = conditioned(True)
    x = torch.empty(1, 16, *GRID, device=there)
    sigma = torch.full((1,), 0.5, device=there)
    reference = positive[0][1]["glm_image_references"][0]
    heads = (dit.model.config.num_attention_heads, dit.model.config.attention_head_dim)
    cached = torch.empty(1, reference.grid.tokens * 4, *heads, dtype=torch.bfloat16)
    dit.cached_references[f"{patcher.patches_uuid} {reference.id}"] = [
        (cached, cached)
    ] * dit.model.config.num_layers  # as an earlier run left it, on the CPU
    outputs = []
    seen = watch_inputs(dit.model)
    for side in (positive, negative):
        conds = model.extra_conds(noise=x, device=there, cross_attn=side[0][0], **side[0][1])
        conds = {name: cond.process_cond(batch_size=1, area=None).cond for name, cond in conds.items()}
        outputs.append(model.apply_model(x, sigma, transformer_options={}, **conds))
    assert [(out.device, out.dtype, out.shape) for out in outputs] == [(there, torch.float32, x.shape)] * 2
    assert seen == {there}


def test_previews_have_the_colours_of_the_decoded_picture(library, model):
    """What KSampler and our sampler draw for normalised latents is what the VAE decodes, averaged over 8 x 8 pixels, as far as
    a linear guess goes: a random VAE is far from linear, so it explains a quarter of the variance."""
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    method, args.preview_method = args.preview_method, LatentPreviewMethod.Latent2RGB
    try:
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    finally:
        args.preview_method = method
    latents = encode(library["vae"], colour_chart())
    image_format, drawn, _ = previewer.decode_latent_to_preview_image("JPEG", model.model.process_latent_in(latents))
    assert image_format == "JPEG" and drawn.size == (16, 16)
    small = torch.nn.functional.avg_pool2d(decode(library["vae"], latents).movedim(-1, 1), 8)[0]
    shown = torch.frombuffer(bytearray(drawn.tobytes()), dtype=torch.uint8).reshape(16, 16, 3).movedim(-1, 0) / 255
    constant = small.mean(dim=(1, 2), keepdim=True)
    assert (shown - small).pow(2).mean() < 0.8 * (small - constant).pow(2).mean()
