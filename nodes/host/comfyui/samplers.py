"""A run of ComfyUI's samplers, and what we change in them."""

import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher

from ....glmimage_core.cogview3.base import Step
from ....glmimage_core.glm_image.denoise import Approximations
from ....glmimage_core.glm_image.schedule import run_progress
from ..requests import SampleRequest


def run_sampler(
    guider: comfy.samplers.CFGGuider,
    request: SampleRequest,
    *,
    noise: torch.Tensor,
    sampler: comfy.samplers.Sampler,
    sigmas: torch.Tensor,
    latents: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sample along sigmas, with every patch on the guider's MODEL in effect.

    noise: [B, channels, h, w]. latents, mask: where the run starts from and where it may change the picture, as the library's
    samplers take them. Returns latents as `Host.sample` does.
    """
    guider.set_conds(request.positive, request.negative)
    guider.set_cfg(request.cfg)
    samples = guider.sample(
        noise,
        torch.zeros_like(noise) if latents is None else latents.expand_as(noise),
        sampler,
        sigmas,
        denoise_mask=mask,
        callback=latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=request.seed,
    )
    return samples.float().cpu()


class IntervalGuider(comfy.samplers.CFGGuider):
    """Guidance in a part of the run only, whatever sampler and schedule the run has."""

    def __init__(self, model: ModelPatcher, approximations: Approximations, sigmas: torch.Tensor):
        """sigmas: [steps + 1], those of the run. Its first timestep is progress 0, the end of the schedule progress 1."""
        super().__init__(model)
        self._approximations = approximations
        self._first_sigma = sigmas[:1]

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006, ComfyUI's signature
        cfg = self.cfg
        self.cfg = self._approximations.cfg_at(self._run_progress(timestep[:1], x, model_options), cfg)
        try:
            return super().predict_noise(x, timestep, model_options, seed)
        finally:
            self.cfg = cfg

    def _run_progress(self, sigma: torch.Tensor, x: torch.Tensor, model_options: dict) -> float:
        """How much of the run is done at a sigma."""
        options = model_options.get("transformer_options", {})
        return run_progress(*(float(self.inner_model.timestep_at(one, x, options)) for one in (self._first_sigma, sigma)))


class RelaySampler(comfy.samplers.KSAMPLER):
    """The steps of CogView3's relay: from the enlarged picture with noise on it to the picture painted again."""

    def __init__(self, run: list[Step], low: torch.Tensor):
        """low: [B, 4, h, w], normalised latents of the enlarged picture."""
        super().__init__(_relay, extra_options={"run": run, "low": low})

    def max_denoise(self, model_wrap, sigmas):
        """False: noise is added to the latent, even where the run's first sigma is the schedule's largest."""
        return False


def _relay(model, x, sigmas, extra_args=None, callback=None, disable=None, *, run: list[Step], low: torch.Tensor):
    """A sampler function with ComfyUI's signature."""
    low = low.to(x)
    for done, step in enumerate(run):
        predicted = model(x, sigmas[done].expand(len(x)), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": done, "sigma": sigmas[done], "sigma_hat": sigmas[done], "denoised": predicted})
        x = step.taken(x, predicted, low)
    return x
