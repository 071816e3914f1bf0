"""CogView3-Plus: a 3B DiT that paints from T5's embeddings of a prompt, without a plan. GLM-Image's predecessor.

    load     the components of a folder in diffusers' layout
    sample   DDIM on a schedule without signal at its start; velocities are predicted and guided

text.py encodes the prompt. vae.py decodes: the VAE differs from GLM-Image's in its weights and the space of its latents only.

Source: Zheng et al. 2024, arXiv 2403.05121, and CogView3PlusPipeline of diffusers, whose pictures these are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..checkpoints.build import load_pretrained
from ..checkpoints.folders import PIPELINE_INDEX, find_below, find_named, is_pipeline, read_json
from ..checkpoints.report import inspect_stored, resolve_dtype
from ..component import Component
from ..diffusion import LATENT_PX, batches_cfg, dit_token_count, initial_noise, latent_grid, whole_steps
from ..progress import Progress, no_progress
from ..vae import LatentSpace, Vae, check_channels
from .text import TOKENS, MicroConditions, check_embeddings, check_text_encoder, scaled_latent_space

if TYPE_CHECKING:
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusTransformer2DModel


PIPELINE_CLASS = "CogView3PlusPipeline"
MIN_SIDE, MAX_SIDE, SIDE_STEP = 512, 2048, 32  # pixels
MAX_PIXELS = 2**21
MAX_BATCH = 4
LAYOUT = (
    f"CogView3-Plus is a folder whose {PIPELINE_INDEX} names {PIPELINE_CLASS}, with the folders text_encoder, tokenizer, "
    "transformer, vae and scheduler"
)
MODEL_CLASSES = {"transformer": "CogView3PlusTransformer2DModel", "vae": "AutoencoderKL"}  # and T5, in text.py


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
    return find_below(roots, lambda folder, files: PIPELINE_INDEX in files and is_pipeline(folder, PIPELINE_CLASS))


def find_folder(name: str, roots: Sequence[Path]) -> Path:
    """The folder of that name. Raises FileNotFoundError that says where it looked."""
    return find_named(name, list_folders(roots), roots, what="CogView3-Plus", layout=LAYOUT)


def check_folder(folder: Path) -> None:
    """Raise FileNotFoundError, ValueError or ImportError where a folder of CogView3-Plus cannot be loaded; reads no weights."""
    for part, class_name in MODEL_CLASSES.items():
        inspect_stored(folder, part, class_name)
    read_json(folder / "scheduler" / "scheduler_config.json")
    check_text_encoder(folder)


def load_dit(folder: Path, dtype: str = "auto") -> CogView3:
    """Load the DiT, on the CPU, with the schedule and the latent space of the folder's scheduler and VAE."""
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusTransformer2DModel

    report = inspect_stored(folder, "transformer", MODEL_CLASSES["transformer"])
    model = load_pretrained(CogView3PlusTransformer2DModel, folder / "transformer", torch_dtype=resolve_dtype(dtype, report))
    scheduler = CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    if scheduler.config.prediction_type != "v_prediction":
        raise ValueError(f"{folder / 'scheduler'} predicts {scheduler.config.prediction_type}; CogView3-Plus predicts velocities")
    return CogView3(model, scheduler, scaled_latent_space(folder))


def load_vae(folder: Path, dtype: str = "auto") -> Vae:
    """Load the VAE, on the CPU."""
    from diffusers import AutoencoderKL

    report = inspect_stored(folder, "vae", MODEL_CLASSES["vae"])
    return Vae(
        load_pretrained(AutoencoderKL, folder / "vae", torch_dtype=resolve_dtype(dtype, report)), scaled_latent_space(folder)
    )


def check_size(width: int, height: int) -> None:
    """Raise ValueError, with what would do, for a size that CogView3-Plus was not made for."""
    for name, side in (("width", width), ("height", height)):
        if not MIN_SIDE <= side <= MAX_SIDE or side % SIDE_STEP:
            raise ValueError(f"{name} is {side}; CogView3-Plus paints {MIN_SIDE} to {MAX_SIDE} pixels in steps of {SIDE_STEP}")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} is more than {MAX_PIXELS} pixels; 2048x1024 and 1440x1440 are not")


@torch.inference_mode()
def sample(
    dit: CogView3,
    positive: torch.Tensor,
    negative: torch.Tensor,
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
    out again. micro: by default the whole picture. Image i starts from the first noise of a generator seeded with
    seeds[i]. Returns [B, 16, height / 8, width / 8] float32 in the VAE's space, on the CPU.

    Raises ValueError, before the model runs, for a size, a batch, a latent or settings that mean nothing.
    """
    check_size(width, height)
    check_run(dit, width, height, len(seeds), steps, cfg, denoise, latents, mask)
    check_text(dit, positive, negative)
    if denoise == 0:
        return latents.expand(len(seeds), -1, -1, -1).clone()
    scheduler = type(dit.scheduler).from_config(dit.scheduler.config)  # it keeps the steps of one run
    timesteps = timesteps_of(scheduler, steps, denoise)
    noise = initial_noise(seeds, len(dit.space.mean), latent_grid(width, height)).to(dit.device)
    start = None if latents is None else dit.space.normalise(latents.to(dit.device).float()).expand_as(noise)
    mask = None if mask is None else mask.to(dit.device, torch.float32)
    x = noise if denoise == 1 else scheduler.add_noise(start, noise, torch.tensor(timesteps[0]))
    guide = guide_of(dit, positive, negative, micro or MicroConditions((height, width), (0, 0), (height, width)), len(seeds))
    for done, timestep in enumerate(timesteps):
        progress(done, len(timesteps))
        signal, rest = _shares(scheduler, timestep)
        seen = x if mask is None else torch.lerp(signal * start + rest * noise, x, mask)
        v = guided_velocity(dit, guide, seen, timestep, cfg)
        if mask is not None:  # what is masked out is known, before and after
            v = (signal * x - torch.lerp(start, signal * seen - rest * v, mask)) / rest
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    progress(len(timesteps), len(timesteps))
    return dit.space.denormalise(x).float().cpu()


def timesteps_of(scheduler: "CogVideoXDDIMScheduler", steps: int, denoise: float = 1.0) -> list[int]:
    """The timesteps of a run, falling: the last `steps` of as many as a whole run has that begins at 1 / denoise of them.

    Sets the scheduler's own. For some numbers diffusers counts one more, below zero, which is none.
    """
    scheduler.set_timesteps(min(whole_steps(steps, denoise), scheduler.config.num_train_timesteps))
    return [timestep for timestep in scheduler.timesteps.tolist() if timestep >= 0][-steps:]


def _shares(scheduler: "CogVideoXDDIMScheduler", timestep: int) -> tuple[float, float]:
    """How much of a noised latent is the latent, and how much noise: their squares add up to 1."""
    power = float(scheduler.alphas_cumprod[timestep])
    return power**0.5, (1 - power) ** 0.5


def check_text(dit: CogView3, *embeddings: torch.Tensor) -> None:
    """Raise ValueError for embeddings that are not of CogView3-Plus."""
    check_embeddings(embeddings, TOKENS, dit.model.config.text_embed_dim, "CogView3-Plus", "CogView3 Encode Prompt")


def check_run(
    dit: CogView3,
    width: int,
    height: int,
    batch: int,
    steps: int,
    cfg: float,
    denoise: float,
    latents: torch.Tensor | None,
    mask: torch.Tensor | None = None,
) -> None:
    """Raise ValueError for settings of `sample` that mean nothing."""
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"{batch} pictures at once; CogView3-Plus paints 1 to {MAX_BATCH}")
    if steps < 1 or not 0 <= denoise <= 1 or cfg < 0:
        raise ValueError(f"steps {steps}, denoise {denoise} or cfg {cfg} is out of range")
    if denoise < 1 and latents is None:
        raise ValueError(f"denoise is {denoise}, and there is no latent to start from; connect one or set denoise to 1")
    if latents is not None:
        check_channels(dit.space, latents)
        grid = latent_grid(width, height)
        if latents.shape[2:] != tuple(grid) or latents.shape[0] not in (1, batch):
            raise ValueError(f"the latent is {list(latents.shape)}, for {batch} pictures of {width}x{height} pixels")
    if mask is not None and latents is None:
        raise ValueError("there is a mask, and no latent that it masks")


class CfgInputs(NamedTuple):
    """Both sides of the guidance on the DiT's device: embeddings [B, 224, D], and sizes [B, 2] as MicroConditions has them."""

    positive: torch.Tensor
    negative: torch.Tensor
    sizes: dict[str, torch.Tensor]


def guide_of(dit: CogView3, positive: torch.Tensor, negative: torch.Tensor, micro: MicroConditions, batch: int) -> CfgInputs:
    sides = (side.to(dit.device, dit.dtype).expand(batch, -1, -1) for side in (positive, negative))
    names = ("original_size", "crop_coords", "target_size")
    sizes = {
        name: torch.tensor([size], dtype=torch.float32, device=dit.device).expand(batch, -1)
        for name, size in zip(names, micro, strict=True)
    }
    return CfgInputs(*sides, sizes)


def guided_velocity(dit: CogView3, guide: CfgInputs, x: torch.Tensor, timestep: int, cfg: float) -> torch.Tensor:
    """negative + cfg (positive - negative), [B, 16, h, w] float32. Both in one pass where they are small; one where cfg is 1."""
    if cfg == 1:
        return velocity(dit, x, timestep, guide.positive, guide.sizes)
    height, width = (side * LATENT_PX for side in x.shape[2:])
    if batches_cfg(len(x) * (dit_token_count(width, height) + guide.positive.shape[1])):
        both = torch.cat([guide.positive, guide.negative])
        sizes = {name: torch.cat([size, size]) for name, size in guide.sizes.items()}
        positive, negative = velocity(dit, torch.cat([x, x]), timestep, both, sizes).chunk(2)
    else:
        positive, negative = (velocity(dit, x, timestep, side, guide.sizes) for side in (guide.positive, guide.negative))
    return negative + cfg * (positive - negative)


def velocity(
    dit: CogView3, x: torch.Tensor, timestep: int | torch.Tensor, text: torch.Tensor, sizes: dict[str, torch.Tensor]
) -> torch.Tensor:
    """One forward. x: [B, 16, h, w] noised latents, text: [B, 224, D]. Returns [B, 16, h, w] float32."""
    time = torch.as_tensor(timestep, device=x.device).expand(len(x))
    out = dit.model(x.to(dit.dtype), text, time, **sizes, return_dict=False)[0]
    return out.float()
