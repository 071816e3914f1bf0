"""Random CogView3-Base checkpoints of about 20 MB each, as published: PyTorch files that cogview3/convert.py converts."""

import re
from pathlib import Path

import torch

from ..checkpoints.folders import check_empty
from ..cogview3.convert import UNET, WEIGHTS, build_unet, published_name
from .cogview3_plus import WIDTH
from .weights import randomize

CHECKPOINTS = {
    "cogview3-base-3b": None,
    "cogview3-relay-3b": None,
    "cogview3-base-3b-distill-4step": 16,
    "cogview3-relay-3b-distill-1step": 8,
}
"""The published folders, and the width of the guidance embedding where the UNet is distilled."""
VAE_FILE = Path("cogview3-base-3b-vae") / "sdxl_vae.safetensors"
CHANNELS = (32, 64, 128)


def write_cogview3_base(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float16) -> None:
    """Write both stages, plain and distilled, and their VAE into a new or empty folder."""
    check_empty(folder)
    for name, guidance in CHECKPOINTS.items():
        write_published(folder / name, published_unet(f"{seed}/{name}", guidance, dtype))
    write_vae(folder / VAE_FILE, seed, dtype)


def write_published(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Write a folder as published that holds these tensors."""
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1", "utf-8")
    torch.save({"module": state}, folder / "1" / WEIGHTS)


def published_unet(key: str, guidance: int | None = None, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """The random tensors of a UNet, by their published names."""
    unet = build_unet(channels=CHANNELS, depths=(1, 1, 2), text=WIDTH, sizes=6 * 8, guidance=guidance)
    randomize(unet, key)
    return {UNET + published_name(name): tensor.to(dtype) for name, tensor in unet.state_dict().items()}


def write_vae(file: Path, seed: int = 0, dtype: torch.dtype = torch.float16) -> None:
    """Write a random VAE of SDXL's kind, by its published names."""
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    randomize(vae, f"{seed}/cogview3-base/vae")
    file.parent.mkdir(parents=True)
    save_file({_published_vae(name): _as_convolution(name, tensor).to(dtype) for name, tensor in vae.state_dict().items()}, file)


def _published_vae(name: str) -> str:
    for pattern, published in (
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"up_blocks\.(\d)\.resnets", lambda found: f"up.{3 - int(found[1])}.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{3 - int(found[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    ):
        name = re.sub(pattern, published, name)
    return name


def _as_convolution(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The published attention layers are 1 x 1 convolutions."""
    return tensor[..., None, None] if "attentions" in name and tensor.ndim == 2 else tensor
