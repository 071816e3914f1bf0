"""How sure the AR model is of each token of a plan, found afterwards in one pass over prompt and plan.

So planning itself costs nothing more, and plans that were loaded, mixed or taken from a picture can be asked about too.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate

from ...diffusion import Grid
from ...progress import Progress, no_progress
from ..ar_model import ArModel
from ..geometry import preview_grid, prior_grid
from ..layout import check_prompt, lay_out
from ..prior import Prior, check_codebook
from ..references import Reference

ROWS_AT_ONCE = 256
"""Tokens whose logits are in memory at the same time."""


@torch.inference_mode()
def token_entropies(
    ar: ArModel,
    prior: Prior,
    *,
    prompt: str = "",
    references: Sequence[Reference] = (),
    progress: Progress = no_progress,
) -> torch.Tensor:
    """How much the AR model left open at each place of a plan before it drew there, in bits: [B, h, w] float32 on the CPU.

    The entropy of its distribution given all tokens before: 0 where one token had all the probability, n where 2^n had the same.
    Temperature and filters are not in it. A place has the bits of its own token and its share of those of the preview's tokens
    there. prompt: by default the plan's. references: those of the plan. A plan without a preview is read as an edit's. Raises
    ValueError for a plan of another AR model and for one without a prompt.
    """
    prompt = prompt or prior.prompt
    check_entropies(ar, prior, prompt)
    large = prior_grid(prior.width, prior.height)
    grids, emitted = [large], prior.tokens.flatten(1)  # [B, T]
    if prior.preview is not None:
        grids, emitted = [preview_grid(large), large], torch.cat((prior.preview.flatten(1), emitted), dim=1)
    layout = lay_out(ar, prompt, grids, references)
    positions = torch.cat((layout.positions, layout.following[:, :-1]), dim=1)[:, None].to(ar.device)  # [3, 1, S + T - 1]
    language_model, total, bits = ar.model.model.language_model, emitted.shape[1], []
    for tokens in emitted:
        progress(len(bits), prior.batch)
        ids = torch.cat((layout.ids, tokens[:-1])).to(ar.device)
        embedded = ar.model.get_input_embeddings()(ids[None]).to(ar.dtype)
        hidden = language_model(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
        bits.append(torch.cat([_entropy(ar, rows) for rows in hidden[0, -total:].split(ROWS_AT_ONCE)]).cpu())
    progress(prior.batch, prior.batch)
    *of_preview, of_plan = (
        part.reshape(-1, *grid) for part, grid in zip(torch.stack(bits).split([g.tokens for g in grids], 1), grids, strict=True)
    )
    return of_plan + sum(_shared(part, large) for part in of_preview)


def _shared(bits: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Bits of a small grid, [B, h, w], shared out over the places of a larger one, or collected in those of a smaller one."""
    return interpolate(bits[:, None], tuple(grid), mode="area")[:, 0] * bits[0].numel() / grid.tokens


def check_entropies(ar: ArModel, prior: Prior, prompt: str) -> None:
    """Raise ValueError for a plan that the AR model cannot be asked about. Runs nothing."""
    check_codebook(prior, ar.codebook)
    check_prompt(ar, prompt)


def _entropy(ar: ArModel, hidden: torch.Tensor) -> torch.Tensor:
    """[N, D] -> [N] float32, in bits, over the codebook: the head is wider."""
    logits = ar.model.lm_head(hidden)[:, : ar.codebook_size].float()
    return torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1) / math.log(2)
