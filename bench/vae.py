"""The VAE: seconds a picture, whole and in tiles, against AutoencoderKL called directly and against its arithmetic.

The floor is the products and convolutions of the whole picture, as operations, divided by the rate of a large matrix product.
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
from .models import Models
from .table import Table, compared


def check(options: Namespace) -> None:
    """All that can be wrong is common to the benchmarks."""


def measure(options: Namespace, models: Models) -> Iterator[Table]:
    decoder = models.vae()
    rate = product_rate(options.device, options.dtype)
    rows = []
    for case in options.cases:
        image = torch.rand(1, case.height, case.width, 3, generator=torch.Generator().manual_seed(options.seed))
        latents = vae.encode(decoder, image)
        for name, function, direct, given in (
            ("encode", vae.encode, encode_directly, image),
            ("decode", vae.decode, decode_directly, latents),
        ):
            inside = _as_model_input(decoder, given)
            floor = operations(lambda direct=direct, inside=inside: direct(decoder, inside, False)) / rate
            for tiled in (False, True):
                ways = {"this": lambda seed, f=function, g=given, t=tiled: f(decoder, g, t)}
                if options.against:
                    ways["reference"] = lambda seed, f=direct, g=inside, t=tiled: f(decoder, g, t)
                times = medians(ways, options.rounds, options.seed, options.device)
                label = {"run": f"{name}, {'tiled' if tiled else 'whole'}", "picture": case.columns["picture"]}
                rows.append(label | compared(times["this"], times.get("reference"), floor, "s"))
    title = f"VAE; reference is AutoencoderKL with the same tiles ({TILE_PX} px), floor the whole at {rate / 1e12:.3g} TFLOP/s"
    yield Table(title, rows)


def _as_model_input(decoder: Vae, given: torch.Tensor) -> torch.Tensor:
    inside = given.movedim(-1, 1) * 2 - 1 if given.shape[-1] == 3 else given  # BHWC -> BCHW
    return inside.to(decoder.device, decoder.dtype)


@torch.no_grad()
def encode_directly(decoder: Vae, pixels: torch.Tensor, tiled: bool) -> torch.Tensor:
    with vae.tiling(decoder, tiled):
        return decoder.model.encode(pixels).latent_dist.mode()


@torch.no_grad()
def decode_directly(decoder: Vae, latents: torch.Tensor, tiled: bool) -> torch.Tensor:
    with vae.tiling(decoder, tiled):
        return decoder.model.decode(latents, return_dict=False)[0]


def decode_floor(decoder: Vae, case: Case, rate: float) -> float:
    """Seconds of the operations that decode a case's pictures."""
    latents = torch.zeros(1, len(decoder.space.mean), *latent_grid(case.width, case.height))
    inside = latents.to(decoder.device, decoder.dtype)
    return case.batch * operations(lambda: decode_directly(decoder, inside, False)) / rate


def operations(run: Callable[[], object]) -> int:
    """The floating point operations of products, attention and convolutions in a call."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def _attention_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """Of the shapes [batch, heads, queries, width] and [batch, heads, keys, width]."""
    return 4 * math.prod(query) * key[2]


_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}  # which PyTorch leaves out
