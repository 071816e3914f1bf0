"""CogView3-Base and its relay as published, brought into diffusers' layout.

Published is a PyTorch file of SwissArmyTransformer: an entry `module` holds the whole engine, whose UNet is SDXL's by its blocks.
What differs is what enters: T5's embeddings (4096 wide), sizes without a pooled text (1536), and, in a distilled one, the
strength of a guidance. All of it UNet2DConditionModel can carry, so tensors are only renamed.
"""

import json
import pickle
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ..checkpoints.folders import PIPELINE_INDEX, check_empty, read_json
from ..diffusion import LATENT_PX
from .base import PIPELINE_CLASS, STAGES

UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
WEIGHTS = "mp_rank_00_model_states.pt"
RESNETS = 2  # of each level on the way down; one more on the way up
HEAD_CHANNELS = 64
CHANNELS, VAE_SCALE = 4, 0.13025  # of SDXL's latents

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_WHOLE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "w_proj",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_PART = re.compile(r"(?:(down|up)_blocks\.(\d)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


class _Skipped:
    """Stands for what a training run leaves beside the weights: nothing of it is made, whatever a file asks for."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        pass


_LEFT_BY_TRAINING = ["argparse.Namespace", "numpy.ndarray", "numpy.dtype", "_codecs.encode"] + [
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")
]


def published_name(name: str) -> str:
    """What the published UNet calls a parameter of diffusers'. Raises ValueError for one that it does not have."""
    layer, _, kind = name.rpartition(".")
    if layer in _WHOLE:
        return f"{_WHOLE[layer]}.{kind}"
    if (found := _PART.fullmatch(name)) is None:
        raise ValueError(f"the published UNet has no {name}")
    way, level, part, index, rest = found.groups()
    if part == "resnets":
        inner, _, kind = rest.rpartition(".")
        rest = f"{_RESNET[inner]}.{kind}"
    if way is None:
        return f"middle_block.{1 if part == 'attentions' else 2 * int(index)}.{rest}"
    column = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2}[part]
    if way == "down":
        block = (RESNETS + 1) * int(level) + (RESNETS if part == "downsamplers" else int(index)) + 1
        return f"input_blocks.{block}.{column}." + (rest.replace("conv", "op") if part == "downsamplers" else rest)
    block = (RESNETS + 1) * int(level) + (RESNETS if part == "upsamplers" else int(index))
    return f"output_blocks.{block}.{column}.{rest}"


def convert(source: Path, target: Path, stage: str, vae: Path | None = None) -> list[str]:
    """Write a published checkpoint as a folder that `cogview3_base` loads.

    source: the PyTorch file, or the folder whose file `latest` names the one below it. stage: base or relay, which the weights do
    not tell. vae: SDXL's VAE, a safetensors file as published or a folder of diffusers; not asked for where the source holds
    one. Returns what was left out, in words.

    Raises FileNotFoundError or ValueError for what is not such a checkpoint or not whole, before anything is written.
    """
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}; choose from {', '.join(STAGES)}")
    check_empty(target)
    state = _read(find_weights(source))
    unet = _unet({name.removeprefix(UNET): tensor for name, tensor in state.items() if name.startswith(UNET)}, stage)
    first_stage = {name.removeprefix(FIRST_STAGE): tensor for name, tensor in state.items() if name.startswith(FIRST_STAGE)}
    decoder = _vae(first_stage or vae)
    unet.save_pretrained(target / "unet")
    decoder.save_pretrained(target / "vae")
    _write_index(target, stage)
    others = Counter(name.split(".")[0] for name in state if not name.startswith((UNET, FIRST_STAGE)))
    left_out = [f"{count} tensors of {part}" for part, count in others.items()]
    return left_out + ([f"{vae}, since the checkpoint holds a VAE"] if first_stage and vae else [])


def find_weights(source: Path) -> Path:
    """The PyTorch file of a published checkpoint. Raises FileNotFoundError that says what should be there."""
    for folder in (source, source / "transformer"):
        latest = folder / "latest"
        if latest.is_file() and (file := folder / latest.read_text("utf-8").strip() / WEIGHTS).is_file():
            return file
    if source.is_file():
        return source
    raise FileNotFoundError(f"{source} is not a CogView3-Base as published: a folder with a file `latest`, and 1/{WEIGHTS}")


def _read(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of the entry `module`. What a file would run when it is opened is never run."""
    try:
        with torch.serialization.safe_globals([(_Skipped, name) for name in _LEFT_BY_TRAINING]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds {refused[1]}, which no checkpoint needs" if refused else str(error).splitlines()[0]
        raise ValueError(f"{file} cannot be read as a checkpoint of PyTorch: {why}") from error
    module = content.get("module") if isinstance(content, dict) else None
    if not isinstance(module, dict) or not any(name.startswith(UNET) for name in module):
        raise ValueError(f"{file} is no checkpoint of CogView3-Base: no tensor of {UNET} in an entry `module`")
    return module


def _unet(state: Mapping[str, torch.Tensor], stage: str):
    """diffusers' UNet with the published tensors. Raises ValueError where one is missing, left over or of another shape."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        unet = unet_of(**_shape(state), side=STAGES[stage].side)
    wanted = {name: published_name(name) for name in unet.state_dict()}
    missing, unknown = wanted.values() - state.keys(), state.keys() - wanted.values()
    if missing or unknown:
        which = f"{min(missing)} is missing" if missing else f"{min(unknown)} is unknown"
        raise ValueError(f"not a UNet of CogView3-Base: {which} ({len(missing)} missing, {len(unknown)} unknown)")
    try:
        unet.load_state_dict({name: state[published] for name, published in wanted.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"not a UNet of CogView3-Base: {' '.join(str(error).split())[:300]}") from error
    return unet


def unet_of(channels: Sequence[int], depths: Sequence[int], text: int, sizes: int, guidance: int | None, side: int = 512):
    """diffusers' UNet of that shape: SDXL's, with other inputs.

    channels, depths: of its three levels, and of their transformers. text, sizes: widths of what it is told of the prompt and of
    the picture's sizes; guidance: how wide a distilled one embeds the strength of the guidance. side: pixels.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=side // LATENT_PX,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=tuple(channels),
        layers_per_block=RESNETS,
        transformer_layers_per_block=list(depths),
        attention_head_dim=[max(1, width // HEAD_CHANNELS) for width in channels],  # in diffusers that is how many heads
        cross_attention_dim=text,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=sizes,
        time_cond_proj_dim=guidance,
    )


def _shape(state: Mapping[str, torch.Tensor]) -> dict:
    """The arguments of `unet_of` that tensors tell by their shapes."""
    levels = (1, 4, 7)  # the first block of each
    try:
        return {
            "channels": [state[f"input_blocks.{block}.0.out_layers.3.weight"].shape[0] for block in levels],
            "depths": [max(1, _count(state, f"input_blocks.{block}.1.transformer_blocks.")) for block in levels],
            "text": state["input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
            "sizes": state["label_emb.0.0.weight"].shape[1],
            "guidance": state["w_proj.weight"].shape[1] if "w_proj.weight" in state else None,
        }
    except KeyError as error:
        raise ValueError(f"not a UNet of CogView3-Base: {error.args[0]} is missing") from error


def _count(names: Iterable[str], prefix: str) -> int:
    """How many different words follow a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def _vae(source: dict[str, torch.Tensor] | Path | None):
    """SDXL's VAE from tensors or a file in its published names, or a folder of diffusers."""
    from diffusers import AutoencoderKL

    if source is None:
        raise ValueError("this checkpoint holds no VAE: give that of SDXL, as sdxl_vae.safetensors or a folder of diffusers")
    if isinstance(source, Path) and source.is_dir():
        read_json(source / "config.json")
        vae = AutoencoderKL.from_pretrained(source, local_files_only=True, use_safetensors=True)
        if (vae.config.latent_channels, vae.config.scaling_factor) != (CHANNELS, VAE_SCALE):
            raise ValueError(
                f"{source} is no VAE of SDXL: its latents have {vae.config.latent_channels} channels, scaled by "
                f"{vae.config.scaling_factor}, and not {CHANNELS}, scaled by {VAE_SCALE}"
            )
        return vae
    state = _read_vae(source) if isinstance(source, Path) else source
    levels = range(_count(state, "encoder.down."))
    if not levels or state["decoder.conv_in.weight"].shape[1] != CHANNELS:
        raise ValueError(
            f"{source if isinstance(source, Path) else FIRST_STAGE} is no VAE of SDXL by its published names; "
            "for one of diffusers give the folder that holds its config.json"
        )
    config = {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [state[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in levels],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "latent_channels": CHANNELS,
        "layers_per_block": _count(state, "encoder.down.0.block."),
        "sample_size": 1024,
        "scaling_factor": VAE_SCALE,
        "force_upcast": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), "utf-8")
        return AutoencoderKL.from_single_file(dict(state), config=folder, local_files_only=True)


def _read_vae(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error


def _write_index(target: Path, stage: str) -> None:
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.save_pretrained(target / "scheduler")
    index = {
        "_class_name": PIPELINE_CLASS,
        "stage": stage,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (target / PIPELINE_INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
