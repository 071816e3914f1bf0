"""The samplers of CogView3-Plus and CogView3-Base: the library's own loops, on the device that the host places a model on."""

from typing import Any

import torch

from ....glmimage_core.cogview3 import base, plus
from ....glmimage_core.cogview3.base import CogView3Unet
from ....glmimage_core.cogview3.memory import cogview3_bytes, unet_bytes
from ....glmimage_core.cogview3.plus import CogView3
from ....glmimage_core.diffusion import image_seeds
from ....glmimage_core.placement.prediction import Job
from ..requests import CogView3BaseRequest, CogView3RelayRequest, CogView3Request, micro_conditions
from .services import StandaloneHost


def sample_plus(host: StandaloneHost, model: CogView3, request: CogView3Request) -> torch.Tensor:
    needed = cogview3_bytes(model.model.config, model.dtype.itemsize, _job(request, guided=request.cfg != 1))
    with host.placed(model, needed) as dit:
        return plus.sample(
            dit,
            width=request.width,
            height=request.height,
            denoise=request.denoise,
            latents=request.latents,
            mask=request.mask,
            **_shared(host, request),
        )


def sample_base(host: StandaloneHost, model: CogView3Unet, request: CogView3BaseRequest) -> torch.Tensor:
    with host.placed(model, _unet_bytes(model, request)) as unet:
        return base.sample(unet, width=request.width, height=request.height, **_shared(host, request))


def relay(host: StandaloneHost, model: CogView3Unet, request: CogView3RelayRequest) -> torch.Tensor:
    with host.placed(model, _unet_bytes(model, request)) as unet:
        return base.relay(unet, low=request.low, relay_steps=request.relay_steps, **_shared(host, request))


def _unet_bytes(model: CogView3Unet, request: CogView3BaseRequest | CogView3RelayRequest) -> int:
    guided = request.cfg != 1 and not model.is_distilled
    return unet_bytes(model.model.config, model.dtype.itemsize, _job(request, guided))


def _job(request: CogView3Request | CogView3BaseRequest | CogView3RelayRequest, guided: bool) -> Job:
    glyph_tokens = request.positive[0][0].shape[1]
    return Job(request.width, request.height, request.batch, glyph_tokens=glyph_tokens, guided=guided)


def _shared(host: StandaloneHost, request: CogView3Request | CogView3BaseRequest | CogView3RelayRequest) -> dict[str, Any]:
    """What the samplers of all three take."""
    (positive, options), (negative, _) = request.positive[0], request.negative[0]
    return {
        "positive": positive,
        "negative": negative,
        "seeds": image_seeds(request.seed, request.batch),
        "steps": request.steps,
        "cfg": request.cfg,
        "micro": micro_conditions(options, request.width, request.height),
        "progress": host.progress("Sampler"),
    }
