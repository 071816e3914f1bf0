"""CogView3-Plus: a 3B DiT that reads T5's embeddings of a prompt, sampled by DDIM.

    load     the DiT with its schedule and latent space, from a folder in diffusers' layout
    sample   noise, guided velocities, DDIM steps

text.py encodes the prompt; vae.py, one floor up, decodes the latents.

Source: Zheng et al. 2024, arXiv 2403.05121, and CogView3PlusPipeline of diffusers. With equal settings the pictures are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..checkpoints.build import load_pretrained
from ..checkpoints.fill import CPU
from ..checkpoints.folders import PIPELINE_INDEX, find_named, find_pipelines, read_json
from ..checkpoints.report import inspect_stored, resolve_dtype
from ..component import Component
from ..diffusion import check_start, initial_noise, latent_grid, merge_masked, whole_steps
from ..progress import Progress, no_progress
from ..vae import LatentSpace, check_channels
from .shared import VAE_CLASS, check_settings, guided, scaled_latent_space
from .text import TOKENS, MicroConditions, check_embeddings, check_text_encoder

if TYPE_CHECKING:
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusTransformer2DModel


PIPELINE_CLASS = "CogView3PlusPipeline"
DIT_CLASS = "CogView3PlusTransformer2DModel"
MIN_SIDE, MAX_SIDE, SIDE_STEP = 512, 2048, 32  # pixels
MAX_PIXELS = 2**21
LAYOUT = (
    f"CogView3-Plus is a folder whose {PIPELINE_INDEX} names {PIPELINE_CLASS}, with the folders text_encoder, tokenizer, "
    "transformer, vae and scheduler, as of THUDM/CogView3-Plus-3B"
)


@dataclass(frozen=True, eq=False)
class CogView3(Component):
    """The DiT, the schedule it was trained on, and the space of its latents."""

    model: "CogView3PlusTransformer2DModel"
    scheduler: "CogVideoXDDIMScheduler"
    space: LatentSpace

    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        return self.model.transformer_blocks


def list_folders(roots: Sequence[Path]) -> dict[str, Path]:
    """The folders of CogView3-Plus below the roots, by name."""
    return find_pipelines(roots, PIPELINE_CLASS)


def find_folder(name: str, roots: Sequence[Path]) -> Path:
    """The folder of that name. Raises FileNotFoundError that says where it looked."""
    return find_named(name, list_folders(roots), roots, what="CogView3-Plus", layout=LAYOUT)


def check_folder(folder: Path) -> None:
    """Raise FileNotFoundError, ValueError or ImportError if a folder cannot be loaded. Reads no weights."""
    inspect_stored(folder, "transformer", DIT_CLASS)
    inspect_stored(folder, "vae", VAE_CLASS)
    read_json(folder / "scheduler" / "scheduler_config.json")
    check_text_encoder(folder)


def load_dit(folder: Path, dtype: str = "auto", *, device: torch.device = CPU) -> CogView3:
    """Load the DiT, on the CPU, with the schedule and the latent space of the folder's scheduler and VAE.

    device: the one that will compute.
    """
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusTransformer2DModel

    report = inspect_stored(folder, "transformer", DIT_CLASS)
    model = load_pretrained(
        CogView3PlusTransformer2DModel, folder / "transformer", torch_dtype=resolve_dtype(dtype, report, device)
    )
    scheduler = CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    if scheduler.config.prediction_type != "v_prediction":
        raise ValueError(f"{folder / 'scheduler'} predicts {scheduler.config.prediction_type}; CogView3-Plus predicts velocities")
    return CogView3(model, scheduler, scaled_latent_space(folder))


@torch.inference_mode()
def sample(
    dit: CogView3,
    positive: torch.Tensor,
    negative: torch.Tensor,
    *,
    width: int,
    height: int,
    seeds: Sequence[int],
    steps: int = 50,
    cfg: float = 5.0,
    denoise: float = 1.0,
    latents: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    micro: MicroConditions | None = None,
    progress: Progress = no_progress,
) -> torch.Tensor:
    """Paint one picture for each seed.

    positive, negative: embeddings [1, 224, D]. latents: [1 or B, 16, height / 8, width / 8] in the VAE's space, where a denoise
    below 1 starts from. mask: [1 or B, 1, height / 8, width / 8], 1 where the picture may change and 0 where `latents` must come
    out again. micro: by default an uncropped picture of this size. Image i starts from the first noise of a generator seeded
    with seeds[i]. Returns [B, 16, height / 8, width / 8] float32 in the VAE's space, on the CPU.

    Raises ValueError, before the model runs, for sizes, latents and settings that mean nothing.
    """
    batch = len(seeds)
    check_run(dit, width=width, height=height, batch=batch, steps=steps, cfg=cfg, denoise=denoise, latents=latents, mask=mask)
    check_text(dit, positive, negative)
    if denoise == 0:
        return latents.expand(batch, -1, -1, -1).clone()
    scheduler = type(dit.scheduler).from_config(dit.scheduler.config)  # a scheduler remembers the timesteps of one run
    timesteps = timesteps_of(scheduler, steps, denoise)
    noise = initial_noise(seeds, len(dit.space.mean), latent_grid(width, height)).to(dit.device)
    start = None if latents is None else dit.space.normalise(latents.to(dit.device).float()).expand_as(noise)
    mask = None if mask is None else mask.to(dit.device, torch.float32)
    x = noise if denoise == 1 else scheduler.add_noise(start, noise, torch.tensor(timesteps[0]))
    inputs = partial(model_inputs, dit, micro=micro or MicroConditions.uncropped(width, height), batch=batch)
    conditions = {"positive": inputs(positive), "negative": inputs(negative), "cfg": cfg, "text_tokens": TOKENS}

    progress(0, len(timesteps))
    for step, timestep in enumerate(timesteps):
        signal, sigma = signal_and_sigma(scheduler, timestep)
        x_in = x if mask is None else merge_masked(signal * start + sigma * noise, x, mask)
        v = guided(partial(velocity, dit), x_in, timestep, **conditions)
        if mask is not None:  # where the mask is 0 the clean latents are known, and v follows from them: x = signal clean + ...
            clean = merge_masked(start, signal * x_in - sigma * v, mask)
            v = (signal * x - clean) / sigma
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
        progress(step + 1, len(timesteps))
    return dit.space.denormalise(x).float().cpu()


def timesteps_of(scheduler: "CogVideoXDDIMScheduler", steps: int, denoise: float = 1.0) -> list[int]:
    """The timesteps of a run, falling: the last `steps` of a schedule of about steps / denoise.

    Sets the scheduler's own timesteps. For some step counts diffusers appends a negative timestep; it is dropped.
    """
    scheduler.set_timesteps(min(whole_steps(steps, denoise), scheduler.config.num_train_timesteps))
    return [timestep for timestep in scheduler.timesteps.tolist() if timestep >= 0][-steps:]


def signal_and_sigma(scheduler: "CogVideoXDDIMScheduler", timestep: int) -> tuple[float, float]:
    """The factors of clean latents and noise in noised latents at a timestep; the sum of their squares is 1."""
    alpha_cumprod = float(scheduler.alphas_cumprod[timestep])
    return alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5


def model_inputs(dit: CogView3, text: torch.Tensor, *, micro: MicroConditions, batch: int) -> dict[str, torch.Tensor]:
    """One side of the guidance as `velocity` takes it, on the DiT's device. text: [1, 224, D]."""
    sizes = {
        name: torch.tensor([size], dtype=torch.float32, device=dit.device).expand(batch, -1)
        for name, size in zip(("original_size", "crop_coords", "target_size"), micro, strict=True)
    }
    return {"text": text.to(dit.device, dit.dtype).expand(batch, -1, -1), **sizes}


def velocity(
    dit: CogView3,
    x: torch.Tensor,
    timestep: int | torch.Tensor,
    *,
    text: torch.Tensor,
    original_size: torch.Tensor,
    crop_coords: torch.Tensor,
    target_size: torch.Tensor,
) -> torch.Tensor:
    """One forward of the DiT, [B, 16, h, w] float32. x: [B, 16, h, w] noised latents, text: [B, 224, D], sizes: [B, 2] each."""
    out = dit.model(
        x.to(dit.dtype),
        encoder_hidden_states=text,
        timestep=torch.as_tensor(timestep, device=x.device).expand(len(x)),
        original_size=original_size,
        target_size=target_size,
        crop_coords=crop_coords,
        return_dict=False,
    )
    return out[0].float()


def check_size(width: int, height: int) -> None:
    """Raise ValueError, with what would do, for a size that CogView3-Plus was not made for."""
    for name, side in (("width", width), ("height", height)):
        if not MIN_SIDE <= side <= MAX_SIDE or side % SIDE_STEP:
            raise ValueError(f"{name} is {side}; CogView3-Plus paints {MIN_SIDE} to {MAX_SIDE} pixels in steps of {SIDE_STEP}")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} is more than {MAX_PIXELS} pixels; use 2048x1024 or 1440x1440 at most")


def check_run(
    dit: CogView3,
    *,
    width: int,
    height: int,
    batch: int,
    steps: int,
    cfg: float,
    denoise: float,
    latents: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> None:
    """Raise ValueError for arguments of `sample` that mean nothing. Runs nothing, so it can go before a model is moved."""
    check_size(width, height)
    check_settings("CogView3-Plus", batch=batch, steps=steps, cfg=cfg)
    if latents is not None:
        check_channels(dit.space, latents)
        if latents.shape[2:] != tuple(latent_grid(width, height)):
            raise ValueError(f"the latent image is {list(latents.shape)}, which is not of {width}x{height} pixels")
    check_start(latents, mask, batch=batch, denoise=denoise)


def check_text(dit: CogView3, *embeddings: torch.Tensor) -> None:
    """Raise ValueError for embeddings that CogView3-Plus cannot read."""
    check_embeddings(embeddings, (TOKENS, dit.model.config.text_embed_dim), "CogView3-Plus", "CogView3 Encode Prompt")
