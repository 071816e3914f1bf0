"""Published checkpoints of CogView3-Base and its relay, converted to diffusers' layout.

A published checkpoint is a PyTorch file of SwissArmyTransformer. Its entry `module` holds the tensors; the UNet has SDXL's
blocks. Only the inputs differ: T5's embeddings (4096 wide), sizes without a pooled text (1536), and in a distilled UNet the
strength of the guidance. UNet2DConditionModel has all of these, so tensors are renamed and not changed.
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
from ..checkpoints.outputs import check_writable, whole_folder
from ..diffusion import LATENT_PX
from .base import PIPELINE_CLASS, STAGES

UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
WEIGHTS = "mp_rank_00_model_states.pt"
RESNETS = 2  # of each level on the way down; one more on the way up
HEAD_CHANNELS = 64
CHANNELS, VAE_SCALE = 4, 0.13025  # of SDXL's latents

# diffusers' names of layers and the published ones: inside a resnet, and outside the three levels
_IN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE_LEVELS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "w_proj",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_IN_LEVEL = re.compile(
    r"(?:(?P<way>down|up)_blocks\.(?P<level>\d)|mid_block)"
    r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<rest>.+)"
)
_COLUMNS = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2}  # of a published block


class _Skipped:
    """Takes the place of training leftovers beside the weights: none of their classes is created, whatever a file asks for."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        pass


_LEFT_BY_TRAINING = ["argparse.Namespace", "numpy.ndarray", "numpy.dtype", "_codecs.encode"] + [
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")
]


def convert(source: Path, target: Path, stage: str, vae: Path | None = None) -> list[str]:
    """Write a published checkpoint as a folder that base.py loads. Returns what was left out, in words.

    source: the PyTorch file, or the folder whose file `latest` names the folder with it. stage: base or relay; the weights do
    not tell. vae: SDXL's VAE, a safetensors file as published or a folder of diffusers; not needed where the source holds one.

    Raises FileNotFoundError or ValueError, before anything is written, for a source that is not such a checkpoint or incomplete.
    The folder gets its name when it is complete: after an interruption there is none, and the same call works.
    """
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}; choose from {', '.join(STAGES)}")
    check_empty(target)
    check_writable(target)
    state = _read(find_weights(source))
    unet = _unet({name.removeprefix(UNET): tensor for name, tensor in state.items() if name.startswith(UNET)}, stage)
    first_stage = {name.removeprefix(FIRST_STAGE): tensor for name, tensor in state.items() if name.startswith(FIRST_STAGE)}
    decoder = _vae(first_stage or vae)
    with whole_folder(target) as folder:
        unet.save_pretrained(folder / "unet")
        decoder.save_pretrained(folder / "vae")
        _write_scheduler_and_index(folder, stage)
    others = Counter(name.split(".")[0] for name in state if not name.startswith((UNET, FIRST_STAGE)))
    left_out = [f"{count} tensors of {module}" for module, count in others.items()]
    return left_out + ([f"{vae}, since the checkpoint holds a VAE"] if first_stage and vae else [])


def published_name(name: str) -> str:
    """The published UNet's name for a parameter of diffusers' UNet. Raises ValueError for one that it does not have."""
    layer, _, parameter = name.rpartition(".")
    if layer in _OUTSIDE_LEVELS:
        return f"{_OUTSIDE_LEVELS[layer]}.{parameter}"
    if (found := _IN_LEVEL.fullmatch(name)) is None:
        raise ValueError(f"the published UNet has no {name}")
    kind, index, rest = found["kind"], int(found["index"]), found["rest"]
    if kind == "resnets":
        layer, _, parameter = rest.rpartition(".")
        rest = f"{_IN_RESNET[layer]}.{parameter}"
    if kind == "downsamplers":
        rest = rest.replace("conv", "op")
    if found["way"] is None:  # the middle: resnet, attention, resnet
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"
    block = (RESNETS + 1) * int(found["level"])
    if found["way"] == "down":  # blocks count from 1, after conv_in
        block += 1 + (RESNETS if kind == "downsamplers" else index)
        return f"input_blocks.{block}.{_COLUMNS[kind]}.{rest}"
    block += RESNETS if kind == "upsamplers" else index
    return f"output_blocks.{block}.{_COLUMNS[kind]}.{rest}"


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
    """The tensors of the entry `module`. Nothing that a file would run when it is opened is run."""
    try:
        with torch.serialization.safe_globals([(_Skipped, name) for name in _LEFT_BY_TRAINING]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds {refused[1]}, which no checkpoint needs" if refused else str(error).splitlines()[0]
        raise ValueError(f"{file} cannot be read as a checkpoint of PyTorch: {why}") from error
    module = content.get("module") if isinstance(content, dict) else None
    if not isinstance(module, dict) or not any(isinstance(name, str) and name.startswith(UNET) for name in module):
        raise ValueError(f"{file} is no checkpoint of CogView3-Base: no tensor of {UNET} in an entry `module`")
    for name, tensor in module.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{file} has {name!r} in its entry `module`, which is no tensor by a name")
        if tensor.is_meta or tensor.layout != torch.strided:
            raise ValueError(f"{file} has {name} without numbers or as {tensor.layout}, which no checkpoint of CogView3-Base has")
    return module


def _unet(state: Mapping[str, torch.Tensor], stage: str):
    """diffusers' UNet with the published tensors. Raises ValueError where one is missing, left over or of another shape."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        unet = build_unet(**_widths_and_depths(state), side=STAGES[stage].side)
    published = {name: published_name(name) for name in unet.state_dict()}
    missing, unknown = published.values() - state.keys(), state.keys() - published.values()
    if missing or unknown:
        which = f"{min(missing)} is missing" if missing else f"{min(unknown)} is unknown"
        raise ValueError(f"not a UNet of CogView3-Base: {which} ({len(missing)} missing, {len(unknown)} unknown)")
    try:
        unet.load_state_dict({name: state[key] for name, key in published.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"not a UNet of CogView3-Base: {' '.join(str(error).split())[:300]}") from error
    return unet


def build_unet(
    *, channels: Sequence[int], depths: Sequence[int], text: int, sizes: int, guidance: int | None = None, side: int = 512
):
    """diffusers' UNet with SDXL's blocks and CogView3's inputs, with its library's first weights.

    channels: of each of the three levels. depths: transformer layers in each. text, sizes, guidance: widths of the embeddings
    of the prompt, of the micro-conditions and, in a distilled UNet, of the strength of the guidance. side: of a picture, pixels.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=side // LATENT_PX,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=tuple(channels),
        layers_per_block=RESNETS,
        transformer_layers_per_block=list(depths),
        attention_head_dim=[max(1, width // HEAD_CHANNELS) for width in channels],  # diffusers means the number of heads
        cross_attention_dim=text,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=sizes,
        time_cond_proj_dim=guidance,
    )


def _widths_and_depths(state: Mapping[str, torch.Tensor]) -> dict:
    """The arguments of `build_unet` that the shapes of the tensors reveal."""
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
    """How many different numbers follow a prefix in the names."""
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


def _write_scheduler_and_index(folder: Path, stage: str) -> None:
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": PIPELINE_CLASS,
        "stage": stage,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / PIPELINE_INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
