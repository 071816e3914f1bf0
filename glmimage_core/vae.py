"""Pixels <-> latents.

Latents travel in the VAE's own space, as ComfyUI's do; the DiT works on them normalised by the VAE's per-channel mean
and standard deviation. Pictures are [B, H, W, 3] in 0..1 outside, [B, 3, H, W] in -1..1 inside.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .component import Component
from .diffusion import LATENT_PX
from .images import to_rgb

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


TILE_PX = 512  # pixels along a side of a tile, a quarter of it blended with its neighbours
CPU_BF16_OVERHEAD = 1.35  # peak elements in bfloat16 over those in float32, where the CPU's kernels convert; measured
WHOLE_PX = 2048 * 2048  # pixels up to which a picture is decoded whole, memory permitting
LARGE_CUDNN = 90300  # from this version on, convolutions have tensors of 2^31 elements, which a picture of WHOLE_PX has


@dataclass(frozen=True)
class LatentSpace:
    """What makes latents of one VAE meaningful to another model: their per-channel mean and standard deviation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def is_uniform(self) -> bool:
        """Whether one factor scales all channels, as in the CogView3s' VAEs. GLM-Image's has statistics of each channel."""
        return len({*zip(self.mean, self.std, strict=True)}) == 1

    def normalise(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, channels, h, w] from the VAE's space to the DiT's."""
        return (latents - self._channels(self.mean, latents)) / self._channels(self.std, latents)

    def denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, channels, h, w] from the DiT's space to the VAE's."""
        return latents * self._channels(self.std, latents) + self._channels(self.mean, latents)

    @staticmethod
    def _channels(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


@dataclass(frozen=True, eq=False)
class Vae(Component):
    """The checkpoint's `vae` and the space of its latents."""

    model: "AutoencoderKL"
    space: LatentSpace


def tiles_by_size(tiling: str, width: int, height: int, *, device: torch.device) -> bool:
    """Whether `tiling`, one of auto, on, off, tiles a picture of so many pixels however much memory is free."""
    whole = WHOLE_PX if _convolves_large_tensors(device) else WHOLE_PX - 1
    return tiling == "on" or (tiling == "auto" and width * height > whole)


def _convolves_large_tensors(device: torch.device) -> bool:
    """Whether convolutions on a device take tensors of 2^31 elements: on CUDA by PyTorch's Convolution.cpp, not on Apple's GPU;
    unknown of AMD's."""
    if device.type == "cuda":
        return torch.version.hip is None and (torch.backends.cudnn.version() or 0) >= LARGE_CUDNN
    return device.type == "cpu"


@torch.inference_mode()
def encode(vae: Vae, image: torch.Tensor, tiled: bool = False) -> torch.Tensor:
    """Encode pictures one by one; the mode of each posterior, so the same picture gives the same latents.

    image: [B, H, W, C] in 0..1, sides multiples of 8 pixels. Returns [B, channels, H / 8, W / 8] float32 on the CPU.
    Raises ValueError for other sides and for pixels that are not finite.
    """
    image = to_rgb(image)
    height, width = image.shape[1:3]
    if height % LATENT_PX or width % LATENT_PX:
        raise ValueError(
            f"an image of {width}x{height} pixels cannot be encoded: sides must be multiples "
            f"of {LATENT_PX}, and of 32 for a plan; GLM-Image Size and Upscale Image bring it there"
        )
    pixels = image.movedim(-1, 1) * 2 - 1  # BHWC -> BCHW
    with tiling(vae, tiled):
        latents = [vae.model.encode(_to_model(vae, one[None])).latent_dist.mode().float().cpu() for one in pixels]
    return torch.cat(latents)


@torch.inference_mode()
def decode(vae: Vae, latents: torch.Tensor, tiled: bool = False) -> torch.Tensor:
    """Decode latents one by one.

    latents: [B, channels, h, w] in the VAE's own space. Returns [B, 8 h, 8 w, 3] float32 in 0..1 on the CPU. Raises ValueError
    when the latents have another number of channels, or when they or the picture are not finite: that is lost precision,
    never a picture.
    """
    check_latents(vae, latents)
    with tiling(vae, tiled):
        images = [vae.model.decode(_to_model(vae, one[None]), return_dict=False)[0].float().cpu() for one in latents]
    image = torch.cat(images).movedim(1, -1)  # BCHW -> BHWC
    if not torch.isfinite(image).all():
        raise ValueError("the decoded picture is not finite: load the VAE in bfloat16 or float32")
    return (image / 2 + 0.5).clamp(0, 1)


def check_latents(vae: Vae, latents: torch.Tensor) -> None:
    """Raise ValueError unless latents are finite and [B, channels, h, w] with this VAE's number of channels."""
    check_channels(vae.space, latents)
    if not torch.isfinite(latents).all():
        raise ValueError(
            "the latents are not finite: the precision was too low (load the DiT in bfloat16 or float32), or the file of the DiT "
            "or what changes the MODEL is broken"
        )


def check_channels(space: LatentSpace, latents: torch.Tensor) -> None:
    """Raise ValueError unless latents are [B, channels of the space, h, w]."""
    channels = len(space.mean)
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise ValueError(
            f"the latents are {list(latents.shape)}, not [batch, {channels}, height / 8, width / 8]: they belong to another "
            "model family; take them from the sampler of this family, or encode a picture with its VAE"
        )


@contextmanager
def tiling(vae: Vae, tiled: bool) -> Iterator[None]:
    """Have the model tile or not for the length of a with block; others call it too and are to find it as it was."""
    model = vae.model
    before = model.use_tiling, model.tile_sample_min_size, model.tile_latent_min_size
    model.use_tiling, model.tile_sample_min_size, model.tile_latent_min_size = tiled, TILE_PX, TILE_PX // LATENT_PX
    try:
        yield
    finally:
        model.use_tiling, model.tile_sample_min_size, model.tile_latent_min_size = before


def _to_model(vae: Vae, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(device=vae.device, dtype=vae.dtype)


def vae_encode_bytes(config: Any, itemsize: int, width: int, height: int, *, on_cpu: bool = False) -> int:
    """The encoder's first block at full resolution, where a resnet ends: its input, what it adds, their sum, and the sum scaled;
    from the second resnet on also the block's input. And the picture."""
    held = 4 if config.layers_per_block == 1 else 5
    return _vae_bytes(held * config.block_out_channels[0] + 7, itemsize, width * height, on_cpu=on_cpu)


def vae_decode_bytes(config: Any, itemsize: int, width: int, height: int, *, on_cpu: bool = False) -> int:
    """The decoder's last block at full resolution, where the second width meets the first: input, normed and activated, and the
    first width for what a convolution works with. On the CPU it reorders its input, too."""
    narrow, wide = config.block_out_channels[:2]
    return _vae_bytes(round((3.2 if on_cpu else 3) * wide) + narrow, itemsize, width * height, on_cpu=on_cpu)


def _vae_bytes(channels: int, itemsize: int, pixels: int, *, on_cpu: bool) -> int:
    return round(channels * pixels * itemsize * (CPU_BF16_OVERHEAD if on_cpu and itemsize < 4 else 1))
