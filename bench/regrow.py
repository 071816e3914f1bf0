"""Regrowing: seconds and passes to draw a part of a plan anew, against drawing all of it.

The tokens nearest to the middle are drawn, the others stay. Those that stay cost a pass a window, those that are drawn as many
passes as they do in a whole plan: `at most` is drawn / (tokens a pass of the whole plan) + tokens / LOOKAHEAD.
"""

import math
from argparse import Namespace
from collections.abc import Iterator
from functools import partial

import torch

from ..glmimage_core.diffusion import Grid
from ..glmimage_core.glm_image.experience import NONE
from ..glmimage_core.glm_image.geometry import prior_grid
from ..glmimage_core.glm_image.regrow import forced_tokens
from .e2e import picture
from .inputs import PROMPT
from .measure import medians
from .models import RandomGlmImage
from .table import Table

LOOKAHEAD = 32  # tokens a pass
SHARES = (0.1, 0.5, 0.9)  # of the picture that is masked


def check(options: Namespace) -> None:
    """Only the common options can be wrong."""


def measure(options: Namespace, glm: RandomGlmImage) -> Iterator[Table]:
    title, rows = f"Regrowing, {LOOKAHEAD} tokens a pass, against a whole plan; random weights are hardly ever guessed", []
    for case in options.cases:
        for run in ("text", "edit"):
            references = [glm.reference(picture(case, options.seed))] if run == "edit" else []
            settings = {"references": references, "lookahead": LOOKAHEAD}
            whole = partial(glm.plan, PROMPT, case.width, case.height, batch=case.batch, **settings)
            plan = whole(seed=options.seed)
            for share in SHARES:
                mask = middle(prior_grid(case.width, case.height), share)
                forced = forced_tokens(plan, mask, with_preview=not references)[0]
                drawn, tokens = int((forced == NONE).sum()), len(forced)
                passes: list[int] = []
                regrow = partial(glm.regrow, plan, mask, PROMPT, **settings)
                runs = {
                    "this": lambda seed, passes=passes, regrow=regrow: passes.append(regrow(seed=seed).passes),
                    "whole": lambda seed, whole=whole: whole(seed=seed),
                }
                times = medians(runs, options.rounds, options.seed + 1, options.device)
                rows.append(
                    {"run": run}
                    | case.columns
                    | {"masked %": round(100 * share), "tokens": tokens, "drawn": drawn, "passes": max(passes)}
                    | {"at most": math.ceil(drawn / plan.tokens_a_pass + tokens / LOOKAHEAD)}
                    | {"s": times["this"], "whole plan": times["whole"], "whole plan / this": times["whole"] / times["this"]}
                )
                yield Table(title, rows)


def middle(grid: Grid, share: float) -> torch.Tensor:
    """A mask of a share of the cells of a grid, those nearest to the middle: [1, height, width] float32."""
    rows, columns = (torch.linspace(-1, 1, count) for count in grid)
    nearest = (rows[:, None] ** 2 + columns**2).flatten().argsort(stable=True)
    mask = torch.zeros(grid.tokens)
    mask[nearest[: round(share * grid.tokens)]] = 1
    return mask.view(1, *grid)
