"""How sure the AR model is of each token of a plan, and how likely the token was, found afterwards in one pass over prompt and
plan.

So planning itself costs nothing more, and plans that were loaded, mixed or taken from a picture can be asked about too.
"""

import math
from collections.abc import Callable, Sequence

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


def token_entropies(ar: ArModel, prior: Prior, **given) -> torch.Tensor:
    """How much the AR model left open at each place of a plan before it drew there, in bits: [B, h, w] float32 on the CPU.

    The entropy of its distribution given all tokens before: 0 where one token had all the probability, n where 2^n had the same.
    Temperature and filters are not in it. A place has the bits of its own token and its share of those of the preview's tokens
    there. given: as `ask` takes it, which this raises as.
    """
    return ask(ar, prior, lambda shares, tokens: _entropy(shares), **given)


def token_information(ar: ArModel, prior: Prior, **given) -> torch.Tensor:
    """How unlikely each token of a plan was, in bits: [B, h, w] float32 on the CPU.

    Its information, -log2 of its probability: 0 for a token that was certain, 1 for one that a coin decides. The mean is the
    entropy where the model draws by its own distribution. Places and `given` are as in `token_entropies`.
    """
    return ask(ar, prior, lambda shares, tokens: -shares.gather(-1, tokens[:, None])[:, 0].log2(), **given)


Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(the probabilities of the whole codebook at N places, [N, V] float32; the tokens that stand there, [N]) -> bits, [N]"""


@torch.inference_mode()
def ask(
    ar: ArModel,
    prior: Prior,
    measure: Measure,
    *,
    prompt: str = "",
    references: Sequence[Reference] = (),
    progress: Progress = no_progress,
) -> torch.Tensor:
    """What a measure says at each place of a plan: [B, h, w] float32 on the CPU.

    prompt: by default the plan's. references: those of the plan. What has no preview and is no sketch is read as an edit's plan.
    Raises ValueError for a plan of another AR model and for one without a prompt.
    """
    prompt = prompt or prior.prompt
    check_entropies(ar, prior, prompt)
    large = prior_grid(*(prior.expands_to or (prior.width, prior.height)))
    parts = [prior.tokens] if prior.preview is None else [prior.preview, prior.tokens]
    grids = [large] if prior.expands_to is None and prior.preview is None else [preview_grid(large), large]
    emitted = torch.cat([part.flatten(1) for part in parts], dim=1)  # [B, T]
    total = emitted.shape[1]
    layout = lay_out(ar, prompt, grids, references)
    positions = torch.cat((layout.positions, layout.following[:, : total - 1]), dim=1)[:, None].to(ar.device)  # [3, 1, S + T - 1]
    language_model, bits = ar.model.model.language_model, []
    for tokens in emitted:
        progress(len(bits), prior.batch)
        ids = torch.cat((layout.ids, tokens[:-1])).to(ar.device)
        embedded = ar.model.get_input_embeddings()(ids[None]).to(ar.dtype)
        hidden = language_model(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
        rows = zip(hidden[0, -total:].split(ROWS_AT_ONCE), tokens.to(ar.device).split(ROWS_AT_ONCE), strict=True)
        bits.append(torch.cat([measure(_probabilities(ar, some), drawn) for some, drawn in rows]).cpu())
    progress(prior.batch, prior.batch)
    split = torch.stack(bits).split([part[0].numel() for part in parts], dim=1)
    *of_preview, of_plan = (of_part.reshape(part.shape) for of_part, part in zip(split, parts, strict=True))
    return of_plan + sum(_shared(of_part, large) for of_part in of_preview)


def _shared(bits: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Bits of a small grid, [B, h, w], shared out over the places of a larger one, or collected in those of a smaller one."""
    return interpolate(bits[:, None], tuple(grid), mode="area")[:, 0] * bits[0].numel() / grid.tokens


def check_entropies(ar: ArModel, prior: Prior, prompt: str) -> None:
    """Raise ValueError for a plan that the AR model cannot be asked about. Runs nothing."""
    check_codebook(prior, ar.codebook)
    check_prompt(ar, prompt)


def _probabilities(ar: ArModel, hidden: torch.Tensor) -> torch.Tensor:
    """[N, D] -> [N, V] float32, over the codebook: the head is wider."""
    return ar.model.lm_head(hidden)[:, : ar.codebook_size].float().softmax(dim=-1)


def _entropy(shares: torch.Tensor) -> torch.Tensor:
    """[N, V] -> [N], in bits."""
    return torch.special.entr(shares).sum(dim=-1) / math.log(2)
