"""How a node runs the AR model: in the background, with the memory that there is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.draw import Sampling
from ..glmimage_core.glm_image.geometry import check_size
from ..glmimage_core.glm_image.layout import check_prompt
from ..glmimage_core.glm_image.lookahead import AUTO, SIZES
from ..glmimage_core.glm_image.memory import entropy_bytes, most_rows, prior_bytes
from ..glmimage_core.glm_image.plans.entropy import check_entropies
from ..glmimage_core.glm_image.prior import Prior
from ..glmimage_core.glm_image.references import Reference, check_references, sizes_of
from ..glmimage_core.placement.prediction import Job
from .host import host
from .prompt import tell_of_choices
from .sockets import VARIATION, glm_ar

TEMPERATURE = (
    "FLOAT",
    {
        "default": 0.9,
        "min": 0.0,
        "max": 2.0,
        "step": 0.05,
        "tooltip": "Higher is more varied. 0 always takes the likeliest token, which gives poor pictures.",
    },
)
TOP_P = (
    "FLOAT",
    {
        "default": 0.75,
        "min": 0.01,
        "max": 1.0,
        "step": 0.01,
        "tooltip": "Draw from the likeliest tokens that together have this probability. 1 is off.",
    },
)
TOP_K = (
    "INT",
    {
        "default": 50,
        "min": 0,
        "max": 16384,
        "tooltip": "Draw from this many likeliest tokens. 0 is off. transformers' default is 50.",
    },
)


def lookahead_input(what: str) -> tuple:
    """How many tokens a pass computes. what: which tokens, and what that saves, in a sentence or two."""
    return (
        ["auto", *map(str, SIZES)],
        {
            "default": "auto",
            "advanced": True,
            "tooltip": f"How many tokens to compute at once{what} auto takes the fastest number. In bfloat16 another number may "
            "round differently and so give another plan; 1 is the reference's way.",
        },
    )


LOOKAHEAD = lookahead_input(", those that stay among them.")
SAMPLING = {"temperature": TEMPERATURE, "top_p": TOP_P, "top_k": TOP_K, "lookahead": LOOKAHEAD}
"""The widgets of a node that draws tokens."""


VARIATION_INPUT = (VARIATION, {"tooltip": "From Variation: plans near that of the seed, instead of different ones."})


def prompted_planner(ar: Any, prompt: str) -> ArModel:
    """The AR model on its wire. Warns of words that it does not know.

    Raises ValueError for a prompt that it cannot read and for an empty wire.
    """
    model = glm_ar(ar)
    check_prompt(model, prompt)
    tell_of_choices(prompt)
    for warning in model.trained_on.prompt_warnings(prompt):
        host.warn(warning)
    return model


def checked_planner(ar: Any, prompt: str, width: int, height: int) -> ArModel:
    """The AR model on its wire, for a plan of width x height pixels. Warns of a size and of words that it does not know.

    Raises ValueError for a size or a prompt that it cannot plan, and for an empty wire.
    """
    check_size(width, height)
    warn_of_size(glm_ar(ar), width, height)
    return prompted_planner(ar, prompt)


def warn_of_size(model: ArModel, width: int, height: int) -> None:
    """Say that a picture of width x height pixels is none that the model was trained on."""
    for warning in model.trained_on.size_warnings(width, height):
        host.warn(warning)


def ask_planner(
    ar: Any, prior: Prior, measure: Callable[..., torch.Tensor], *, prompt: str, references: Sequence[Reference], label: str
) -> torch.Tensor:
    """What `measure(ar, prior, prompt=, references=, progress=)` says of a plan, with the AR model of an `ar` wire.

    It runs where the host places the model. measure: a function of `plans.entropy`, which this raises as. label: what the
    progress is called.
    """
    model = glm_ar(ar)
    check_entropies(model, prior, prompt)
    check_references(references, codebook=model.codebook)
    seen = sum(reference.grid.tokens + 2 for reference in references)
    tokens = len(prompt.encode()) + seen + prior.tokens_a_picture
    with host.placed(ar, entropy_bytes(model.model.config, model.dtype.itemsize, tokens), "language") as placed:
        return measure(placed, prior, prompt=prompt, references=references, progress=host.progress(label))


async def run_planner(
    ar: Any,
    plan: Callable[..., Prior],
    *,
    job: Job,
    sampling: Sequence[float],
    lookahead: str,
    label: str,
) -> Prior:
    """Run `plan(ar, sampling=, lookahead=, most_rows=, progress=)` where the host places the AR model on an `ar` wire.

    sampling: temperature, top_p and top_k. label: what the progress is called.
    """
    model = glm_ar(ar)
    config, itemsize = model.model.config, model.dtype.itemsize
    drawn = Sampling(*sampling)

    def placed_plan(placed: ArModel) -> Prior:
        return plan(
            placed,
            sampling=drawn,
            lookahead=AUTO if lookahead == "auto" else int(lookahead),
            most_rows=most_rows(config, itemsize, job, host.free_bytes(ar)),
            progress=host.progress(label, "tokens"),
        )

    return await host.run_in_background(ar, prior_bytes(config, itemsize, job), "language", placed_plan)


def tell_of_regrowing(prior: Prior) -> None:
    """Say what a plan cost of which only a part was drawn."""
    host.say(f"{prior.passes} passes for {prior.tokens_a_picture} tokens, most of which stay as they are")


def planner_job(width: int, height: int, batch: int, *, references: Sequence[Reference], prompt: str) -> Job:
    """What memory a plan of width x height pixels is predicted from."""
    return Job(width, height, batch, sizes_of(references), prompt_tokens=len(prompt.encode()))
