"""CogView3-Base: a UNet that paints 512 x 512 pixels from T5's embeddings, and a second one that relays them to twice the sides.

    load      a folder in diffusers' layout, as `sat_checkpoint` writes it from what was published
    sample    Euler's steps from noise; noise is predicted, and guided
    relay     the later steps from an enlarged picture with noise on it, each nearer to what comes out
    encode    by cogview3.py, which reads one token less
    decode    by vae.py

A distilled UNet takes the strength of the guidance as an input, and needs one pass for a step instead of two.

Source: Zheng et al. 2024, arXiv 2403.05121, and the sampler that was published with the weights: for three and more steps it
is not the paper's algorithm 1, since the blend is always rebuilt from the enlarged picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..checkpoints.build import load_pretrained
from ..checkpoints.folders import PIPELINE_INDEX, find_below, find_named, is_pipeline, read_json
from ..checkpoints.report import inspect_stored, resolve_dtype
from ..component import Component
from ..diffusion import LATENT_PX, batches_cfg, dit_token_count, initial_noise, latent_grid
from ..progress import Progress, no_progress
from ..vae import LatentSpace, Vae, check_channels
from .text import MicroConditions, check_embeddings, scaled_latent_space

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

PIPELINE_CLASS = "CogView3BasePipeline"  # which diffusers does not have: a name for the layout
TOKENS = 225  # of a prompt, the end mark included
SIDE_STEP = 32  # pixels
GUIDANCE = 7.5  # usual, and what the published distilled ones are run with
MAX_BATCH = 4
LAYOUT = (
    f"CogView3-Base is a folder whose {PIPELINE_INDEX} names {PIPELINE_CLASS}: `python . convert` writes one from a published "
    "checkpoint"
)
MODEL_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
SIZE_VALUES = 6  # height and width of the original, of what was cut off, and of the picture


class StageSizes(NamedTuple):
    """side: what the stage was trained for, in pixels; least and most: sides that it takes."""

    side: int
    least: int
    most: int


STAGES = {"base": StageSizes(512, 256, 1024), "relay": StageSizes(1024, 512, 2048)}


@dataclass(frozen=True, eq=False)
class CogView3Unet(Component):
    """One of the two UNets, the space of its latents, and how strong the noise is at each timestep: [1000] float32."""

    model: "UNet2DConditionModel"
    sigmas: torch.Tensor
    space: LatentSpace
    stage: str

    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        return [*self.model.down_blocks, self.model.mid_block, *self.model.up_blocks]

    @property
    def is_distilled(self) -> bool:
        return self.model.config.time_cond_proj_dim is not None


class Step(NamedTuple):
    """A step from a noised latent x with a prediction D of what comes out, beside the enlarged picture L:

    x = keep x + (1 - keep + pull) D - pull L.
    """

    timestep: int
    keep: float
    pull: float

    def taken(self, x: torch.Tensor, predicted: torch.Tensor, low: torch.Tensor | None) -> torch.Tensor:
        x = self.keep * x + (1 - self.keep + self.pull) * predicted
        return x if low is None else x - self.pull * low


def list_folders(roots: Sequence[Path]) -> dict[str, Path]:
    """The folders of CogView3-Base below the roots, by name."""
    return find_below(roots, lambda folder, files: PIPELINE_INDEX in files and is_pipeline(folder, PIPELINE_CLASS))


def find_folder(name: str, roots: Sequence[Path]) -> Path:
    """The folder of that name. Raises FileNotFoundError that says where it looked."""
    return find_named(name, list_folders(roots), roots, what="CogView3-Base", layout=LAYOUT)


def check_folder(folder: Path) -> None:
    """Raise FileNotFoundError, ValueError or ImportError where a folder cannot be loaded; reads no weights."""
    for part, class_name in MODEL_CLASSES.items():
        inspect_stored(folder, part, class_name)
    read_json(folder / "scheduler" / "scheduler_config.json")
    _stage_of(folder)


def load_unet(folder: Path, dtype: str = "auto") -> CogView3Unet:
    """Load the UNet of a folder, on the CPU, with its schedule and latent space."""
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    report = inspect_stored(folder, "unet", MODEL_CLASSES["unet"])
    model = load_pretrained(UNet2DConditionModel, folder / "unet", torch_dtype=resolve_dtype(dtype, report))
    kept = EulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True).alphas_cumprod.double()
    return CogView3Unet(model, ((1 - kept) / kept).sqrt().float(), scaled_latent_space(folder), _stage_of(folder))


def load_vae(folder: Path, dtype: str = "auto") -> Vae:
    """Load the VAE of a folder, on the CPU; in float32 instead of float16, in which SDXL's runs over."""
    from diffusers import AutoencoderKL

    chosen = resolve_dtype(dtype, inspect_stored(folder, "vae", MODEL_CLASSES["vae"]))
    chosen = torch.float32 if chosen == torch.float16 else chosen
    return Vae(load_pretrained(AutoencoderKL, folder / "vae", torch_dtype=chosen), scaled_latent_space(folder))


def _stage_of(folder: Path) -> str:
    stage = read_json(folder / PIPELINE_INDEX).get("stage")
    if stage not in STAGES:
        raise ValueError(f"{folder / PIPELINE_INDEX} names stage {stage!r}, which is none of {', '.join(STAGES)}")
    return stage


@torch.inference_mode()
def sample(
    unet: CogView3Unet,
    positive: torch.Tensor,
    negative: torch.Tensor,
    width: int,
    height: int,
    seeds: Sequence[int],
    steps: int = 50,
    cfg: float = GUIDANCE,
    micro: MicroConditions | None = None,
    progress: Progress = no_progress,
) -> torch.Tensor:
    """Paint one picture for each seed with a UNet of the stage base.

    positive, negative: embeddings [1, 225, D]; a distilled UNet does not read the negative ones. micro: by default the whole
    picture. Image i starts from the first noise of a generator seeded with seeds[i]. Returns [B, 4, height / 8, width / 8]
    float32 in the VAE's space, on the CPU.

    Raises ValueError, before the model runs, for sizes and settings that mean nothing.
    """
    check_run(unet, "base", width, height, len(seeds), steps, cfg)
    check_text(unet, positive, negative)
    noise = initial_noise(seeds, len(unet.space.mean), latent_grid(width, height)).to(unet.device)
    run = steps_of(unet, steps)
    x = noise * (1 + unet.sigmas[run[0].timestep] ** 2).sqrt()
    return _painted(unet, x, None, run, positive, negative, cfg, micro, progress)


@torch.inference_mode()
def relay(
    unet: CogView3Unet,
    positive: torch.Tensor,
    negative: torch.Tensor,
    low: torch.Tensor,
    seeds: Sequence[int],
    steps: int = 24,
    relay_steps: int = 12,
    cfg: float = GUIDANCE,
    micro: MicroConditions | None = None,
    progress: Progress = no_progress,
) -> torch.Tensor:
    """Paint enlarged pictures anew with a UNet of the stage relay, one for each seed.

    low: [B, 4, h, w], their latents in the VAE's space: each is the last stage's picture, made twice as large in pixels
    (`enlarged`) and encoded. relay_steps: how many of the last of `steps` are taken. The rest as `sample` has it.
    """
    height, width = (side * LATENT_PX for side in low.shape[2:])
    check_run(unet, "relay", width, height, len(seeds), steps, cfg, relay_steps, low)
    check_text(unet, positive, negative)
    noise = initial_noise(seeds, len(unet.space.mean), latent_grid(width, height)).to(unet.device)
    low = unet.space.normalise(low.to(unet.device).float())
    run = steps_of(unet, steps, relay_steps)
    x = low + noise * unet.sigmas[run[0].timestep]
    return _painted(unet, x, low, run, positive, negative, cfg, micro, progress)


def enlarged(image: torch.Tensor) -> torch.Tensor:
    """Pictures [B, H, W, 3] with twice the sides, as the relay was trained to see them: [B, 2 H, 2 W, 3]."""
    pixels = torch.nn.functional.interpolate(image.movedim(-1, 1), scale_factor=2, mode="bilinear", align_corners=False)
    return pixels.movedim(1, -1)


def steps_of(unet: CogView3Unet, steps: int, relay_steps: int | None = None) -> list[Step]:
    """The steps of a run: all of them, or the last ones as a relay takes them.

    With j of P relay steps to go, the latent is blended from what is predicted and j / P of the enlarged picture.
    """
    whole = np.linspace(len(unet.sigmas) - 1, 0, steps, endpoint=False).astype(int).tolist()
    timesteps = whole[-(relay_steps or steps) :]
    strengths = [*unet.sigmas[timesteps].tolist(), 0.0]
    run = []
    for i, timestep in enumerate(timesteps):
        keep = strengths[i + 1] / strengths[i]
        to_go = len(timesteps) - i
        run.append(Step(timestep, keep, (keep * to_go - (to_go - 1)) / relay_steps if relay_steps else 0.0))
    return run


def check_run(
    unet: CogView3Unet,
    stage: str,
    width: int,
    height: int,
    batch: int,
    steps: int,
    cfg: float,
    relay_steps: int = 1,
    low: torch.Tensor | None = None,
) -> None:
    """Raise ValueError for a UNet of the other stage and for sizes and settings that mean nothing."""
    if unet.stage != stage:
        raise ValueError(f"this UNet is of the stage {unet.stage}, and what it is connected to is the stage {stage}")
    sizes = STAGES[stage]
    times, of_what = (2, " of the picture before it is enlarged") if stage == "relay" else (1, "")
    for name, side in (("width", width), ("height", height)):
        if not sizes.least <= side <= sizes.most or side % SIDE_STEP:
            raise ValueError(
                f"{name}{of_what} is {side // times}; this stage takes {sizes.least // times} to {sizes.most // times} pixels in "
                f"steps of {SIDE_STEP // times}"
            )
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"{batch} pictures at once; CogView3-Base paints 1 to {MAX_BATCH}")
    if not 1 <= steps < len(unet.sigmas):
        raise ValueError(f"steps is {steps}; it must lie between 1 and {len(unet.sigmas) - 1}")
    if not 1 <= relay_steps <= steps:
        raise ValueError(f"relay_steps is {relay_steps}; it must lie between 1 and steps, which is {steps}")
    if cfg < 0:
        raise ValueError(f"cfg is {cfg}; it must be 0 or above")
    if low is not None:
        check_channels(unet.space, low)
        if len(low) != batch:
            raise ValueError(f"{len(low)} pictures and {batch} seeds")


def check_text(unet: CogView3Unet, *embeddings: torch.Tensor) -> None:
    """Raise ValueError for embeddings that are not of CogView3-Base."""
    width, source = unet.model.config.cross_attention_dim, "CogView3 Encode Prompt with family CogView3-Base"
    check_embeddings(embeddings, TOKENS, width, "CogView3-Base", source)


class CfgInputs(NamedTuple):
    """Both sides of the guidance on the UNet's device: embeddings [B, 225, D], sizes [B, S], and the strength [B, G] for a
    distilled one."""

    positive: torch.Tensor
    negative: torch.Tensor
    sizes: torch.Tensor
    strength: torch.Tensor | None


def _painted(
    unet: CogView3Unet,
    x: torch.Tensor,
    low: torch.Tensor | None,
    run: Sequence[Step],
    positive: torch.Tensor,
    negative: torch.Tensor,
    cfg: float,
    micro: MicroConditions | None,
    progress: Progress,
) -> torch.Tensor:
    height, width = (side * LATENT_PX for side in x.shape[2:])
    sides = (side.to(unet.device, unet.dtype).expand(len(x), -1, -1) for side in (positive, negative))
    sizes = sizes_embedding(unet, micro or MicroConditions((height, width), (0, 0), (height, width)))
    strength = strength_embedding(unet, cfg) if unet.is_distilled else None
    guide = CfgInputs(*sides, *(each if each is None else each.to(unet.device).expand(len(x), -1) for each in (sizes, strength)))
    for done, step in enumerate(run):
        progress(done, len(run))
        sigma = unet.sigmas[step.timestep].item()
        noise = guided_noise(unet, guide, x / (sigma**2 + 1) ** 0.5, step.timestep, cfg)
        x = step.taken(x, x - sigma * noise, low)
    progress(len(run), len(run))
    return unet.space.denormalise(x).float().cpu()


def guided_noise(unet: CogView3Unet, guide: CfgInputs, x: torch.Tensor, timestep: int, cfg: float) -> torch.Tensor:
    """negative + cfg (positive - negative), [B, 4, h, w] float32; a distilled UNet guides itself."""
    if cfg == 1 or unet.is_distilled:
        return predicted_noise(unet, x, timestep, guide.positive, guide.sizes, guide.strength)
    height, width = (side * LATENT_PX for side in x.shape[2:])
    if batches_cfg(len(x) * dit_token_count(width, height)):
        both = torch.cat([guide.positive, guide.negative])
        positive, negative = predicted_noise(unet, x.repeat(2, 1, 1, 1), timestep, both, guide.sizes.repeat(2, 1)).chunk(2)
    else:
        sides = (guide.positive, guide.negative)
        positive, negative = (predicted_noise(unet, x, timestep, side, guide.sizes) for side in sides)
    return negative + cfg * (positive - negative)


def predicted_noise(
    unet: CogView3Unet,
    x: torch.Tensor,
    timestep: int | torch.Tensor,
    text: torch.Tensor,
    sizes: torch.Tensor,
    strength: torch.Tensor | None = None,
) -> torch.Tensor:
    """One forward. x: [B, 4, h, w] latents and noise, scaled to unit strength. Returns [B, 4, h, w] float32."""
    inputs = {"class_labels": sizes.to(unet.dtype), "timestep_cond": None if strength is None else strength.to(unet.dtype)}
    return unet.model(x.to(unet.dtype), timestep, text, **inputs, return_dict=False)[0].float()


def sizes_embedding(unet: CogView3Unet, micro: MicroConditions) -> torch.Tensor:
    """The six sizes, each as a timestep is embedded: [1, S] float32."""
    from diffusers.models.embeddings import get_timestep_embedding

    values = torch.tensor([value for pair in micro for value in pair], dtype=torch.float32)
    width = unet.model.config.projection_class_embeddings_input_dim // SIZE_VALUES
    return get_timestep_embedding(values, width, flip_sin_to_cos=True, downscale_freq_shift=0).flatten()[None]


def strength_embedding(unet: CogView3Unet, cfg: float) -> torch.Tensor:
    """The strength of the guidance for a distilled UNet: [1, G] float32. Embedded as latent consistency models do."""
    from diffusers.models.embeddings import get_timestep_embedding

    return get_timestep_embedding(torch.tensor([1000.0 * cfg]), unet.model.config.time_cond_proj_dim, downscale_freq_shift=1)
