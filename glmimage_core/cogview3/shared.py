"""What CogView3-Plus and CogView3-Base share: guidance, the VAE with the space of its latents, checks of a run's settings."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..checkpoints.build import load_pretrained
from ..checkpoints.fill import CPU
from ..checkpoints.folders import read_json
from ..checkpoints.report import inspect_stored, resolve_dtype
from ..diffusion import LATENT_PX, batches_cfg, dit_token_count
from ..vae import LatentSpace, Vae

VAE_CLASS = "AutoencoderKL"
MAX_BATCH = 4  # pictures at once


def load_vae(folder: Path, dtype: str = "auto", *, device: torch.device = CPU, avoid_float16: bool = False) -> Vae:
    """Load the VAE of a checkpoint folder, on the CPU.

    device: the one that will compute. avoid_float16: load it in float32 where that would be float16.
    """
    from diffusers import AutoencoderKL

    chosen = resolve_dtype(dtype, inspect_stored(folder, "vae", VAE_CLASS), device)
    if avoid_float16 and chosen == torch.float16:
        chosen = torch.float32
    return Vae(load_pretrained(AutoencoderKL, folder / "vae", torch_dtype=chosen), scaled_latent_space(folder))


def scaled_latent_space(folder: Path) -> LatentSpace:
    """The latent space of a VAE that multiplies all channels by one factor."""
    config = read_json(folder / "vae" / "config.json")
    channels, scale = config["latent_channels"], config.get("scaling_factor", 0.18215)  # AutoencoderKL's own default
    return LatentSpace((0.0,) * channels, (1 / scale,) * channels)


def guided(
    predict: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timestep: int,
    *,
    positive: Mapping[str, torch.Tensor],
    negative: Mapping[str, torch.Tensor],
    cfg: float,
    text_tokens: int = 0,
) -> torch.Tensor:
    """Classifier-free guidance: negative + cfg (positive - negative), [B, C, h, w] float32.

    predict: one forward of the model, (x, timestep, **inputs) -> [B, C, h, w]. x: [B, C, h, w]. positive, negative: the inputs
    of each side, [B, ...] each. cfg 1 is the positive side alone, at half the cost. Small pictures go through the model with
    both sides in one batch; text_tokens: how many tokens the model's attention sees beside a picture's own.
    """
    if cfg == 1:
        return predict(x, timestep, **positive)
    height, width = (side * LATENT_PX for side in x.shape[2:])
    if batches_cfg(len(x) * (dit_token_count(width, height) + text_tokens)):
        both = {name: torch.cat([positive[name], negative[name]]) for name in positive}
        on_positive, on_negative = predict(torch.cat([x, x]), timestep, **both).chunk(2)
    else:
        on_positive, on_negative = predict(x, timestep, **positive), predict(x, timestep, **negative)
    return on_negative + cfg * (on_positive - on_negative)


def check_settings(family: str, *, batch: int, steps: int, cfg: float) -> None:
    """Raise ValueError for a batch, a number of steps or a guidance that no run of the family can have."""
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"{batch} pictures at once; {family} paints 1 to {MAX_BATCH}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; use 1 or more")
    if cfg < 0:
        raise ValueError(f"cfg is {cfg}; use 0 or more")
