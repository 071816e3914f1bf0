"""The AR stage: milliseconds a token against transformers' generate, the bare matrix products and the bytes of the weights.

One token here is one for every sequence of the batch. A pass may make several known; of random weights it seldom does. The
floor is every Linear of the language model and the head, on one row a sequence, once a token. `read` is the time to read
their weights once at the copy rate; for small models a CPU's cache can be faster.
"""

import statistics
from argparse import Namespace
from collections.abc import Iterator
from functools import partial

import torch
from torch.nn.functional import linear

from ..glmimage_core.diffusion import Grid
from ..glmimage_core.glm_image.ar_model import ArModel, ArVision
from ..glmimage_core.glm_image.geometry import preview_grid, prior_grid
from ..glmimage_core.glm_image.layout import prompt_ids
from ..glmimage_core.weights.formats import inner_tensors
from .inputs import PROMPT
from .libraries import generate
from .measure import Case, copy_rate, medians
from .models import RandomGlmImage
from .table import Table, compared

TITLE = "AR stage; reference is generate, floor the bare matrix products, read the weights once at the copy rate"
FLOOR_TOKENS = 64  # over which the floor is measured
OTHER_PLANS = 1000  # a plan that was made before would be guessed from memory


def check(options: Namespace) -> None:
    """Only the common options can be wrong."""


def measure(options: Namespace, glm: RandomGlmImage) -> Iterator[Table]:
    rate = copy_rate(options.device)  # before the model takes the room that this needs
    if not options.against:  # which needs all of the model in one place
        glm.offloaded = ArVision.holds
    ar = glm.ar
    read = weight_bytes(ar) / rate
    rows = []
    for case in options.cases:
        grids = emitted_grids(case)
        tokens = sum(grid.tokens for grid in grids)
        ids, _ = prompt_ids(ar, PROMPT, grids, [])
        ours = partial(glm.plan, PROMPT, case.width, case.height, batch=case.batch)
        theirs = partial(generate, ar, ids, grids, batch=case.batch)
        passes: list[int] = []
        runs = {
            "this": lambda seed, ours=ours, passes=passes: passes.append(ours(seed=seed).passes),
            "one a pass": lambda seed, ours=ours: ours(seed=seed + OTHER_PLANS, lookahead=1),
            "floor": lambda seed, case=case: bare_products(ar, case.batch, FLOOR_TOKENS),
        }
        if options.against:
            runs["reference"] = lambda seed, theirs=theirs: theirs(seed=seed)
        times = medians(runs, options.rounds, options.seed, options.device)
        ms = {name: 1000 * time / (FLOOR_TOKENS if name == "floor" else tokens) for name, time in times.items()}
        typical = statistics.median_low(passes[1:])  # without the round that warms up
        rows.append(
            case.columns
            | {"tokens": tokens, "passes": typical, "tokens/pass": (tokens - 1) / typical}
            | {"tokens/s": 1000 * case.batch / ms["this"], "one a pass / this": ms["one a pass"] / ms["this"]}
            | compared(ms["this"], ms.get("reference"), ms["floor"], "ms/token")
            | {"read": 1000 * read, "this / read": ms["this"] / 1000 / read}
        )
        yield Table(TITLE, rows)


def emitted_grids(case: Case) -> list[Grid]:
    """The token grids of text-to-image, in the order in which they are emitted."""
    large = prior_grid(case.width, case.height)
    return [preview_grid(large), large]


@torch.inference_mode()
def bare_products(ar: ArModel, batch: int, tokens: int) -> None:
    """Only the matrix products of so many tokens of each sequence."""
    layers = decoding_layers(ar)
    inputs = {width: torch.ones(batch, width, device=ar.device, dtype=ar.dtype) for width in {w.shape[1] for w in layers}}
    for _ in range(tokens):
        for weight in layers:
            linear(inputs[weight.shape[1]], weight)


def decoding_layers(ar: ArModel) -> list[torch.Tensor]:
    """The weights of all matrix products for one token."""
    modules = [*ar.model.model.language_model.modules(), ar.model.lm_head]
    return [module.weight for module in modules if isinstance(module, torch.nn.Linear)]


def weight_bytes(ar: ArModel) -> int:
    """The bytes of weights that one token reads."""
    tensors = (inner for weight in decoding_layers(ar) for inner in inner_tensors(weight))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
