"""The AR stage: milliseconds a token against transformers' generate, the bare matrix products and the weights' bytes.

A token is one for every sequence of the batch. The floor is every Linear of the language model and the head on one row a
sequence; `read` is the time in which the copy rate moves their weights once, which a cache can beat for small models.
"""

from argparse import Namespace
from collections.abc import Iterator

import torch
from torch.nn.functional import linear

from ..glmimage_core.diffusion import Grid
from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.geometry import preview_grid, prior_grid
from ..glmimage_core.glm_image.prior import generate_prior, prompt_ids
from .inputs import PROMPT
from .measure import Case, copy_rate, medians
from .models import Models
from .reference import generate
from .table import Table, compared

FLOOR_TOKENS = 64  # after which the floor is known


def check(options: Namespace) -> None:
    """All that can be wrong is common to the benchmarks."""


def measure(options: Namespace, models: Models) -> Iterator[Table]:
    ar = models.ar()
    read = weight_bytes(ar) / copy_rate(options.device)
    rows = []
    for case in options.cases:
        grids = emitted_grids(case)
        tokens = sum(grid.tokens for grid in grids)
        ids, _ = prompt_ids(ar, PROMPT, grids, [])
        ways = {
            "this": lambda seed, case=case: generate_prior(ar, PROMPT, case.width, case.height, seed, case.batch),
            "floor": lambda seed, case=case: bare_products(ar, case.batch, FLOOR_TOKENS),
        }
        if options.against:
            ways["reference"] = lambda seed, case=case, ids=ids, grids=grids: generate(ar, ids, grids, case.batch, seed)
        times = medians(ways, options.rounds, options.seed, options.device)
        ms = {name: 1000 * time / (FLOOR_TOKENS if name == "floor" else tokens) for name, time in times.items()}
        rows.append(
            case.columns
            | {"tokens": tokens, "tokens/s": 1000 * case.batch / ms["this"]}
            | compared(ms["this"], ms.get("reference"), ms["floor"], "ms/token")
            | {"read": 1000 * read, "this / read": ms["this"] / 1000 / read}
        )
    yield Table("AR stage; reference is generate, floor the bare matrix products, read the weights once at the copy rate", rows)


def emitted_grids(case: Case) -> list[Grid]:
    """The grids of text-to-image, in the order in which they are emitted."""
    large = prior_grid(case.width, case.height)
    return [preview_grid(large), large]


@torch.inference_mode()
def bare_products(ar: ArModel, batch: int, tokens: int) -> None:
    """The matrix products of so many tokens of each sequence, and nothing else."""
    layers = decoding_layers(ar)
    inputs = {width: torch.ones(batch, width, device=ar.device, dtype=ar.dtype) for width in {w.shape[1] for w in layers}}
    for _ in range(tokens):
        for weight in layers:
            linear(inputs[weight.shape[1]], weight)


def decoding_layers(ar: ArModel) -> list[torch.Tensor]:
    """The weights of every matrix product of one token."""
    modules = [*ar.model.model.language_model.modules(), ar.model.lm_head]
    return [module.weight for module in modules if isinstance(module, torch.nn.Linear)]


def weight_bytes(ar: ArModel) -> int:
    """Bytes of weights read for one token."""
    return sum(weight.numel() * weight.element_size() for weight in decoding_layers(ar))
