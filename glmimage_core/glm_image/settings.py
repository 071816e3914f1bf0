"""How to load GLM-Image's models on a card."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from ..placement.prediction import Job, Setting, setting_for
from ..weights.linear import parameter_bytes
from .ar_model import ArLanguage
from .memory import dit_bytes, predict


class Settings(NamedTuple):
    """How to load the AR model and the DiT, None for one that does not fit, and whether VAE Decode has to tile."""

    ar: Setting | None
    dit: Setting | None
    tiled: bool


def settings_for(models: Mapping[str, torch.nn.Module], job: Job, *, room: int, itemsize: int = 2) -> Settings:
    """The most exact settings in which every stage of a run fits in `room` bytes, one model at a time.

    models: on the meta device, by component. itemsize: bytes of each number that is not quantized.
    """
    ar, dit, vae = (models[name] for name in ("vision_language_encoder", "transformer", "vae"))
    stages = predict({name: model.config for name, model in models.items()}, dict.fromkeys(models, itemsize), job)
    working = {stage: needs.working for stage, needs in stages.items()}
    vae_weights = sum(parameter_bytes(vae, "none", itemsize).values())
    return Settings(
        ar=setting_for(ArLanguage(ar), room=room, itemsize=itemsize, working=working["Generate Prior"]),
        dit=setting_for(
            dit,
            room=room,
            itemsize=itemsize,
            working=working["Sampler"],
            streamed_working=dit_bytes(dit.config, itemsize, job, caches_on_device=False),
            blocks="transformer_blocks.",
        ),
        tiled=vae_weights + working["VAE Decode"] > room,
    )
