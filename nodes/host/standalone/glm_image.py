"""GLM-Image's sampler: the library's own loop, on the device that the host places the DiT on."""

import torch

from ....glmimage_core.diffusion import image_seeds
from ....glmimage_core.glm_image import denoise
from ....glmimage_core.glm_image.dit import Dit
from ....glmimage_core.glm_image.memory import dit_bytes
from ....glmimage_core.glm_image.references import sizes_of
from ....glmimage_core.placement.prediction import Job
from ..requests import GlmImageRequest
from .services import StandaloneHost


def sample(
    host: StandaloneHost,
    model: Dit,
    request: GlmImageRequest,
    *,
    noise: torch.Tensor | None = None,
    sigmas: torch.Tensor | None = None,
) -> torch.Tensor:
    """noise, sigmas: in place of those that follow from the request, as `denoise.sample` takes them."""
    (positive, _), (negative, _) = request.positive[0], request.negative[0]
    tile, *_ = model.tiles(request.prior.width, request.prior.height)
    job = Job(
        width=tile.width,
        height=tile.height,
        batch=request.batch,
        references=sizes_of(request.references),
        glyph_tokens=positive.shape[1],
        guided=request.cfg != 1,
        one_length=positive.shape == negative.shape,
        step_cache=request.approximations.step_cache > 0,
    )
    whole_bytes, streamed_bytes = (
        dit_bytes(model.model.config, model.dtype.itemsize, job, caches_on_device=whole) for whole in (True, False)
    )
    fits = host.fits(model, whole_bytes)
    with host.placed(model, whole_bytes if fits else streamed_bytes) as dit:
        return denoise.sample(
            dit,
            request.prior,
            positive,
            negative,
            seeds=image_seeds(request.seed, request.batch),
            steps=request.steps,
            cfg=request.cfg,
            denoise=request.denoise,
            latents=request.latents,
            mask=request.mask,
            references=request.references,
            progress=host.progress("Sampler"),
            approximations=request.approximations,
            caches_on_device=fits,
            noise=noise,
            sigmas=sigmas,
        )
