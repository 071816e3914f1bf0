"""CogView3-Base: a UNet that paints 512 x 512 pixels from T5's embeddings, and a second UNet that relays them to 1024 x 1024.

    load     the UNet of a folder in diffusers' layout, as convert.py writes it, with its schedule and latent space
    sample   noise, guided noise predictions, Euler steps
    relay    the last steps only, from an enlarged picture with noise added

text.py encodes the prompt, one token more than for Plus; vae.py, one floor up, decodes the latents. A distilled UNet takes the
strength of the guidance as an input, so a step is one pass instead of two.

Source: Zheng et al. 2024, arXiv 2403.05121, and the sampler that was published with the weights. From three steps on that
sampler differs from the paper's algorithm 1: it always blends with the enlarged picture, not with the previous blend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..checkpoints.build import load_pretrained
from ..checkpoints.fill import CPU
from ..checkpoints.folders import PIPELINE_INDEX, find_named, find_pipelines, read_json
from ..checkpoints.report import inspect_stored, resolve_dtype
from ..component import Component
from ..diffusion import LATENT_PX, initial_noise, latent_grid
from ..progress import Progress, no_progress
from ..vae import LatentSpace, Vae, check_channels
from . import shared
from .shared import VAE_CLASS, check_settings, guided, scaled_latent_space
from .text import MicroConditions, check_embeddings

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

PIPELINE_CLASS = "CogView3BasePipeline"  # not one of diffusers' pipelines: it names the layout
UNET_CLASS = "UNet2DConditionModel"
TOKENS = 225  # of a prompt, the end mark included
SIDE_STEP = 32  # pixels
GUIDANCE = 7.5  # of the published configuration, and what the distilled UNets are run with
LAYOUT = (
    f"CogView3-Base is a folder whose {PIPELINE_INDEX} names {PIPELINE_CLASS}: `python . convert` writes one from a published "
    "checkpoint"
)
SIZE_VALUES = 6  # height and width, three times: MicroConditions


class StageSizes(NamedTuple):
    """Sides in pixels: the one that the stage was trained for, and the least and most that it takes."""

    side: int
    least: int
    most: int


STAGES = {"base": StageSizes(512, 256, 1024), "relay": StageSizes(1024, 512, 2048)}


@dataclass(frozen=True, eq=False)
class CogView3Unet(Component):
    """One of the two UNets, the sigma of each timestep, [1000] float32, and the space of its latents. stage: one of STAGES."""

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


def list_folders(roots: Sequence[Path]) -> dict[str, Path]:
    """The folders of CogView3-Base below the roots, by name."""
    return find_pipelines(roots, PIPELINE_CLASS)


def find_folder(name: str, roots: Sequence[Path]) -> Path:
    """The folder of that name. Raises FileNotFoundError that says where it looked."""
    return find_named(name, list_folders(roots), roots, what="CogView3-Base", layout=LAYOUT)


def check_folder(folder: Path) -> None:
    """Raise FileNotFoundError, ValueError or ImportError if a folder cannot be loaded. Reads no weights."""
    inspect_stored(folder, "unet", UNET_CLASS)
    inspect_stored(folder, "vae", VAE_CLASS)
    read_json(folder / "scheduler" / "scheduler_config.json")
    _stage_of(folder)


def load_unet(folder: Path, dtype: str = "auto", *, device: torch.device = CPU) -> CogView3Unet:
    """Load the UNet of a folder, on the CPU, with its schedule and latent space. device: the one that will compute."""
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    report = inspect_stored(folder, "unet", UNET_CLASS)
    model = load_pretrained(UNet2DConditionModel, folder / "unet", torch_dtype=resolve_dtype(dtype, report, device))
    scheduler = EulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    alphas_cumprod = scheduler.alphas_cumprod.double()
    sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt().float()
    return CogView3Unet(model, sigmas, scaled_latent_space(folder), _stage_of(folder))


def load_vae(folder: Path, dtype: str = "auto", *, device: torch.device = CPU) -> Vae:
    """Load the VAE of a folder, on the CPU. float16 becomes float32: in float16 SDXL's VAE overflows."""
    return shared.load_vae(folder, dtype, device=device, avoid_float16=True)


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
    *,
    width: int,
    height: int,
    seeds: Sequence[int],
    steps: int = 50,
    cfg: float = GUIDANCE,
    micro: MicroConditions | None = None,
    progress: Progress = no_progress,
) -> torch.Tensor:
    """Paint one picture for each seed with a UNet of the stage base.

    positive, negative: embeddings [1, 225, D]; a distilled UNet does not read the negative ones. micro: by default an uncropped
    picture of this size. Image i starts from the first noise of a generator seeded with seeds[i]. Returns
    [B, 4, height / 8, width / 8] float32 in the VAE's space, on the CPU.

    Raises ValueError, before the model runs, for sizes and settings that mean nothing.
    """
    check_run(unet, "base", width=width, height=height, batch=len(seeds), steps=steps, cfg=cfg)
    check_text(unet, positive, negative)
    noise = initial_noise(seeds, len(unet.space.mean), latent_grid(width, height)).to(unet.device)
    run = steps_of(unet, steps)
    x = noise * (1 + unet.sigmas[run[0].timestep] ** 2).sqrt()
    return _denoise(unet, x, run, positive=positive, negative=negative, cfg=cfg, micro=micro, progress=progress)


@torch.inference_mode()
def relay(
    unet: CogView3Unet,
    positive: torch.Tensor,
    negative: torch.Tensor,
    low: torch.Tensor,
    *,
    seeds: Sequence[int],
    steps: int = 24,
    relay_steps: int = 12,
    cfg: float = GUIDANCE,
    micro: MicroConditions | None = None,
    progress: Progress = no_progress,
) -> torch.Tensor:
    """Paint enlarged pictures anew with a UNet of the stage relay, one for each seed.

    low: [B, 4, h, w] in the VAE's space: the pictures of the stage base, `enlarged` and encoded. relay_steps: how many of the
    last of `steps` are taken. The rest as in `sample`.
    """
    height, width = (side * LATENT_PX for side in low.shape[2:])
    settings = {"steps": steps, "relay_steps": relay_steps, "cfg": cfg}
    check_run(unet, "relay", width=width, height=height, batch=len(seeds), low=low, **settings)
    check_text(unet, positive, negative)
    noise = initial_noise(seeds, len(unet.space.mean), latent_grid(width, height)).to(unet.device)
    low = unet.space.normalise(low.to(unet.device).float())
    run = steps_of(unet, steps, relay_steps)
    x = low + noise * unet.sigmas[run[0].timestep]
    return _denoise(unet, x, run, positive=positive, negative=negative, low=low, cfg=cfg, micro=micro, progress=progress)


def enlarged(image: torch.Tensor) -> torch.Tensor:
    """Pictures [B, H, W, 3] enlarged as the relay was trained to see them: bilinear, [B, 2 H, 2 W, 3]."""
    pixels = torch.nn.functional.interpolate(image.movedim(-1, 1), scale_factor=2, mode="bilinear", align_corners=False)
    return pixels.movedim(1, -1)


class Step(NamedTuple):
    """One Euler step from noised latents x with a prediction D of the clean ones; in a relay also from the enlarged picture L:

    x = keep x + (1 - keep + pull) D - pull L.
    """

    timestep: int
    keep: float
    pull: float

    def taken(self, x: torch.Tensor, predicted: torch.Tensor, low: torch.Tensor | None) -> torch.Tensor:
        x = self.keep * x + (1 - self.keep + self.pull) * predicted
        return x if low is None else x - self.pull * low


def steps_of(unet: CogView3Unet, steps: int, relay_steps: int | None = None) -> list[Step]:
    """The steps of a run: all of them, or the last ones for a relay.

    With j of P relay steps to go, the latents are noise on a blend of (1 - j / P) of the prediction and j / P of the enlarged
    picture.
    """
    schedule = np.linspace(len(unet.sigmas) - 1, 0, steps, endpoint=False).astype(int).tolist()
    timesteps = schedule[-(relay_steps or steps) :]
    sigmas = [*unet.sigmas[timesteps].tolist(), 0.0]
    run = []
    for i, timestep in enumerate(timesteps):
        keep = sigmas[i + 1] / sigmas[i]
        to_go = len(timesteps) - i
        run.append(Step(timestep, keep, (keep * to_go - (to_go - 1)) / relay_steps if relay_steps else 0.0))
    return run


def _denoise(
    unet: CogView3Unet,
    x: torch.Tensor,
    run: Sequence[Step],
    *,
    positive: torch.Tensor,
    negative: torch.Tensor,
    cfg: float,
    micro: MicroConditions | None,
    progress: Progress,
    low: torch.Tensor | None = None,
) -> torch.Tensor:
    """The steps of a run from the noised latents x [B, 4, h, w]. Returns latents in the VAE's space, on the CPU."""
    height, width = (side * LATENT_PX for side in x.shape[2:])
    inputs = partial(model_inputs, unet, micro=micro or MicroConditions.uncropped(width, height), cfg=cfg, batch=len(x))
    conditions = {"positive": inputs(positive), "negative": inputs(negative), "cfg": 1.0 if unet.is_distilled else cfg}
    progress(0, len(run))
    for done, step in enumerate(run, 1):
        sigma = unet.sigmas[step.timestep].item()
        noise = guided(partial(predicted_noise, unet), x / (sigma**2 + 1) ** 0.5, step.timestep, **conditions)
        x = step.taken(x, x - sigma * noise, low)
        progress(done, len(run))
    return unet.space.denormalise(x).float().cpu()


def model_inputs(
    unet: CogView3Unet, text: torch.Tensor, *, micro: MicroConditions, cfg: float, batch: int
) -> dict[str, torch.Tensor]:
    """One side of the guidance as `predicted_noise` takes it, on the UNet's device. text: [1, 225, D]."""
    inputs = {"text": text.to(unet.dtype), "sizes": sizes_embedding(unet, micro)}
    if unet.is_distilled:
        inputs["strength"] = strength_embedding(unet, cfg)
    return {name: value.to(unet.device).expand(batch, *value.shape[1:]) for name, value in inputs.items()}


def predicted_noise(
    unet: CogView3Unet,
    x: torch.Tensor,
    timestep: int | torch.Tensor,
    *,
    text: torch.Tensor,
    sizes: torch.Tensor,
    strength: torch.Tensor | None = None,
) -> torch.Tensor:
    """One forward of the UNet, [B, 4, h, w] float32.

    x: [B, 4, h, w] noised latents, scaled to unit variance. text: [B, 225, D]. sizes: [B, S] and, of a distilled UNet, strength:
    [B, G], as the functions below embed them.
    """
    out = unet.model(
        x.to(unet.dtype),
        timestep,
        encoder_hidden_states=text,
        class_labels=sizes.to(unet.dtype),
        timestep_cond=None if strength is None else strength.to(unet.dtype),
        return_dict=False,
    )
    return out[0].float()


def sizes_embedding(unet: CogView3Unet, micro: MicroConditions) -> torch.Tensor:
    """The six numbers of the micro-conditions, each embedded as a timestep is: [1, S] float32."""
    from diffusers.models.embeddings import get_timestep_embedding

    values = torch.tensor([value for pair in micro for value in pair], dtype=torch.float32)
    width = unet.model.config.projection_class_embeddings_input_dim // SIZE_VALUES
    return get_timestep_embedding(values, width, flip_sin_to_cos=True, downscale_freq_shift=0).flatten()[None]


def strength_embedding(unet: CogView3Unet, cfg: float) -> torch.Tensor:
    """The strength of the guidance for a distilled UNet, embedded as in latent consistency models: [1, G] float32."""
    from diffusers.models.embeddings import get_timestep_embedding

    return get_timestep_embedding(torch.tensor([1000.0 * cfg]), unet.model.config.time_cond_proj_dim, downscale_freq_shift=1)


def check_run(
    unet: CogView3Unet,
    stage: str,
    *,
    width: int,
    height: int,
    batch: int,
    steps: int,
    cfg: float,
    relay_steps: int = 1,
    low: torch.Tensor | None = None,
) -> None:
    """Raise ValueError for a UNet of the other stage and for arguments of `sample` or `relay` that mean nothing.

    width, height: of the picture that comes out, in pixels.
    """
    if unet.stage != stage:
        raise ValueError(f"this UNet is of the stage {unet.stage}, and what it is connected to is the stage {stage}")
    sizes = STAGES[stage]
    scale, before = (2, " of the picture before it is enlarged") if stage == "relay" else (1, "")
    for name, side in (("width", width), ("height", height)):
        if not sizes.least <= side <= sizes.most or side % SIDE_STEP:
            raise ValueError(
                f"{name}{before} is {side // scale}; this stage takes {sizes.least // scale} to {sizes.most // scale} pixels in "
                f"steps of {SIDE_STEP // scale}"
            )
    check_settings("CogView3-Base", batch=batch, steps=steps, cfg=cfg)
    if steps >= len(unet.sigmas):
        raise ValueError(f"steps is {steps}; use {len(unet.sigmas) - 1} or fewer")
    if not 1 <= relay_steps <= steps:
        raise ValueError(f"relay_steps is {relay_steps}; it must lie between 1 and steps, which is {steps}")
    if low is not None:
        check_channels(unet.space, low)
        if len(low) != batch:
            raise ValueError(f"{len(low)} pictures and {batch} seeds")


def check_text(unet: CogView3Unet, *embeddings: torch.Tensor) -> None:
    """Raise ValueError for embeddings that CogView3-Base cannot read."""
    shape = (TOKENS, unet.model.config.cross_attention_dim)
    check_embeddings(embeddings, shape, "CogView3-Base", "CogView3 Encode Prompt with family CogView3-Base")
