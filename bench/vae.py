"""The VAE: seconds a picture, whole and in tiles, against AutoencoderKL called directly and against its arithmetic.

The floor is the operations of the whole picture, in products and convolutions, divided by the rate of a large matrix product.
What runs out of memory has no figure.
"""

import math
from argparse import Namespace
from collections.abc import Callable, Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..glmimage_core import vae
from ..glmimage_core.diffusion import latent_grid
from ..glmimage_core.vae import TILE_PX, Vae
from .measure import Case, medians, product_rate
from .models import RandomGlmImage
from .table import Table, compared


def check(options: Namespace) -> None:
    """Only the common options can be wrong."""


def measure(options: Namespace, glm: RandomGlmImage) -> Iterator[Table]:
    decoder = glm.vae
    rate = product_rate(options.device, options.dtype)
    title = f"VAE; reference is AutoencoderKL with the same tiles ({TILE_PX} px), floor the whole at {rate / 1e12:.3g} TFLOP/s"
    rows = []
    for case in options.cases:
        image = torch.rand(1, case.height, case.width, 3, generator=torch.Generator().manual_seed(options.seed))
        latents = vae.encode(decoder, image)
        for name, function, direct, value in (
            ("encode", vae.encode, encode_directly, image),
            ("decode", vae.decode, decode_directly, latents),
        ):
            model_input = _as_model_input(decoder, value)
            floor = _floor(lambda direct=direct, model_input=model_input: direct(decoder, model_input, False), rate)
            for tiled in (False, True):
                runs = {"this": lambda seed, f=function, x=value, t=tiled: f(decoder, x, t)}
                if options.against:
                    runs["reference"] = lambda seed, f=direct, x=model_input, t=tiled: f(decoder, x, t)
                label = {"run": f"{name}, {'tiled' if tiled else 'whole'}", "picture": case.columns["picture"]}
                try:
                    times = medians(runs, options.rounds, options.seed, options.device)
                except torch.OutOfMemoryError:
                    times = {"this": None}
                rows.append(label | compared(times["this"], times.get("reference"), floor, "s"))
                yield Table(title, rows)


def _floor(whole: Callable[[], object], rate: float) -> float | None:
    """Seconds for the operations of a call, or None where the device has not enough memory to run it."""
    try:
        return operations(whole) / rate
    except torch.OutOfMemoryError:
        return None


def _as_model_input(decoder: Vae, value: torch.Tensor) -> torch.Tensor:
    """A picture [B, H, W, 3] or latents [B, C, h, w] as the model's own methods take them."""
    channels_first = value.movedim(-1, 1) * 2 - 1 if value.shape[-1] == 3 else value  # BHWC -> BCHW
    return channels_first.to(decoder.device, decoder.dtype)


@torch.no_grad()
def encode_directly(decoder: Vae, pixels: torch.Tensor, tiled: bool) -> torch.Tensor:
    with vae.tiling(decoder, tiled):
        return decoder.model.encode(pixels).latent_dist.mode()


@torch.no_grad()
def decode_directly(decoder: Vae, latents: torch.Tensor, tiled: bool) -> torch.Tensor:
    with vae.tiling(decoder, tiled):
        return decoder.model.decode(latents, return_dict=False)[0]


def decode_floor(decoder: Vae, case: Case, rate: float) -> float:
    """Seconds for the operations that decode the pictures of a case."""
    latents = torch.zeros(1, len(decoder.space.mean), *latent_grid(case.width, case.height))
    model_input = latents.to(decoder.device, decoder.dtype)
    return case.batch * operations(lambda: decode_directly(decoder, model_input, False)) / rate


def operations(run: Callable[[], object]) -> int:
    """The floating point operations of products, attention and convolutions in a call."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def _attention_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """Of the shapes [batch, heads, queries, width] and [batch, heads, keys, width]."""
    return 4 * math.prod(query) * key[2]


_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}  # PyTorch has no entry for it
