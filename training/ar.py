"""Trains nano's language half to plan scenes and edits, from the tokens that the scenes' cells are.

The language model is called as in prior.py: the same prompt, the same positions, the same grids in the same order. The preview
grid shows the large grid's tokens, each the one under its middle.
"""

import math
import random
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy, pad

from ..glmimage_core.diffusion import Grid
from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.geometry import preview_grid
from ..glmimage_core.glm_image.prior import emitted_positions, prompt_ids, prompt_positions
from .captions import COMBINATIONS, EDITS, LANGUAGES, Edit, describe, random_edit
from .loop import Plan
from .structure import structured
from .world import CODES, beginnings, random_scene, tokens_of

PLAN = Plan(steps=12700, rate=2e-3, warmup=150)
PICTURES, CHANGES = 18, {1: 18, 2: 12}  # of a batch; changes by their number of references
DECISION = 12.0  # what a token counts at which a thing may begin
SIDES = (8, 8, 8, 6, 7, 9, 10, 12)  # cells


class Sequence(NamedTuple):
    """ids [S], positions [3, S], and what each of the last ids counts that are to be learned; fed are all but the last."""

    ids: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor

    @property
    def learned(self) -> int:
        return len(self.weights)


@torch.no_grad()
def prepare(ar_model) -> None:
    """First weights: what tokens have in common, their embeddings and their rows of the head have in common too.

    The first layer begins by telling each token of a grid where in it it stands.
    """
    language_model = ar_model.model.language_model
    for name, parameter in language_model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif name.endswith(("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight")):
            parameter.fill_(0.4)
    table = language_model.embed_tokens.weight
    torch.nn.init.normal_(table)
    common = torch.randn(table.shape[1]) * 0.7  # to all that a grid holds
    table[:CODES] = structured(table.shape[1]) + common
    tell_place(language_model.layers[0].self_attn, language_model.rotary_emb, start=table[CODES], common=common)
    head = ar_model.lm_head.weight
    head.zero_()
    head[:CODES] = structured(head.shape[1]) * 0.05


@torch.no_grad()
def tell_place(attention, rotary, start: torch.Tensor, common: torch.Tensor) -> None:
    """Have the heads of a layer begin by weighing the token before the grid against those of the grid so far.

    start: the embedding of the token before a grid, common: what those in it share. Positions are relative: only how far the
    start is, in rows and in columns, says where in its grid a token stands, and only attention can see it. Time is the same
    within a grid, so that a rotation by time tells the own grid and its start from others. The start's score rises and falls
    with its distance along an axis, for two heads a quarter turn apart in rows and for two in columns.
    """
    sections, speeds = rotary.mrope_section, rotary.inv_freq.tolist()
    heads, width = attention.q_proj.out_features // attention.head_dim, attention.head_dim
    slowest = sections[0] + sections[1] - 1, sum(sections) - 1  # pairs of rows, of columns

    def pair(vector: torch.Tensor, index: int, length: float, angle: float = 0.0) -> None:
        vector[index], vector[index + len(speeds)] = length * math.cos(angle), length * math.sin(angle)

    queries = torch.zeros(heads, width)
    keys_of_start, keys_of_grid = torch.zeros(2, 2, width)
    for time in range(sections[0]):
        for query in queries:
            pair(query, time, 4.0)
        for key in range(2):
            pair(keys_of_start[key], time, 7.8, speeds[time])  # which is one step back in time
            pair(keys_of_grid[key], time, 5.7)
    for head, query in enumerate(queries):
        pair(query, slowest[head * 2 // heads], 4.0, -math.pi / 2 * (head % 2))
    for key in range(2):
        pair(keys_of_start[key], slowest[key], 5.7)

    own = common - start * (common @ start) / (start @ start)
    attention.q_proj.weight.mul_(0.2)
    attention.q_proj.bias.copy_(queries.flatten())
    attention.k_proj.weight.mul_(0.2).add_(
        torch.outer(keys_of_start.flatten(), start / start.norm() / start.numel() ** 0.5)
        + torch.outer(keys_of_grid.flatten(), own / own.norm() / (0.57 * start.numel() ** 0.5))
    )


def random_size(rng: random.Random) -> tuple[int, int]:
    """Rows and columns of cells."""
    return (8, 8) if rng.random() < 0.35 else (rng.choice(SIDES), rng.choice(SIDES))


def random_pictures(ar: ArModel, rng: random.Random) -> list[Sequence]:
    """A batch of one size, so that the sequences are about equally long."""
    rows, columns = random_size(rng)
    return [picture_lesson(ar, rng, rows, columns) for _ in range(PICTURES)]


def picture_lesson(ar: ArModel, rng: random.Random, rows: int, columns: int) -> Sequence:
    request = describe(rng, random_scene(rng, rows, columns), rng.choice(LANGUAGES))
    large = tokens_of(request.scene)
    return sequence_of(ar, request.prompt, [], [seen_from_afar(large, preview_grid(Grid(*large.shape))), large])


def random_edits(ar: ArModel, rng: random.Random) -> list[Sequence]:
    """A batch of one size, with as many references each."""
    rows, columns = random_size(rng)
    references = 2 if rng.random() < 0.3 else 1
    kinds = [kind for kind in EDITS if (kind in COMBINATIONS) == (references == 2)]
    edits = (
        random_edit(rng, rows, columns, rng.choice(LANGUAGES), rng.choice(kinds), anywhere=rng.random() < 0.3)
        for _ in range(CHANGES[references])
    )
    return [edit_lesson(ar, edit) for edit in edits]


def edit_lesson(ar: ArModel, edit: Edit) -> Sequence:
    return sequence_of(ar, edit.prompt, [tokens_of(scene) for scene in edit.references], [tokens_of(edit.scene)])


def sequence_of(ar: ArModel, prompt: str, seen: list[torch.Tensor], planned: list[torch.Tensor]) -> Sequence:
    """A prompt, the tokens [rows, columns] of its references, and the grids to come out in the order they are emitted."""
    grids = [Grid(*tokens.shape) for tokens in planned]
    ids, starts = prompt_ids(ar, prompt, grids, seen)
    positions, end = prompt_positions(len(ids), starts, [Grid(*tokens.shape) for tokens in seen])
    positions = torch.cat([positions, emitted_positions(end, grids)], dim=1)
    learned = torch.cat([tokens.flatten() for tokens in planned])
    weights = torch.cat([weights_of(grid, planned[-1].shape).flatten() for grid in grids])
    return Sequence(torch.cat([ids, learned]), positions, weights)


def weights_of(grid: Grid, cells: tuple[int, int]) -> torch.Tensor:
    """What each token of a grid over a picture of so many rows and columns of cells counts: [height, width].

    Where things may begin, whether one does or not, it is decided what the picture shows; the rest follows.
    """
    first = torch.zeros(cells)
    for rows, columns in beginnings(*cells):
        first[rows, columns] = 1
    seen = seen_from_afar(torch.arange(first.numel()).reshape(cells), grid)
    begins = torch.ones_like(seen, dtype=torch.bool)
    begins[1:] &= seen[1:] != seen[:-1]  # the first token of a cell
    begins[:, 1:] &= seen[:, 1:] != seen[:, :-1]
    return 1 + (DECISION - 1) * first.flatten()[seen] * begins


def seen_from_afar(tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The token under the middle of each cell of another grid over the same picture."""
    rows, columns = (
        ((torch.arange(count) + 0.5) * cells / count).long() for count, cells in zip(grid, tokens.shape, strict=True)
    )
    return tokens[rows][:, columns]


def batch_loss(ar: ArModel, sequences: list[Sequence]) -> torch.Tensor:
    """Mean cross entropy of the tokens to be learned, as they count.

    Lengths are rounded up, since a CPU's kernels are made anew for each new one.
    """
    length = _rounded_up(max(len(sequence.ids) for sequence in sequences) - 1, 32)
    device = ar.device
    ids = torch.stack([pad(s.ids[:-1], (0, length + 1 - len(s.ids))) for s in sequences]).to(device)
    positions = torch.stack([pad(s.positions[:, :-1], (0, length + 1 - len(s.ids))) for s in sequences], dim=1).to(device)
    learned = torch.zeros(ids.shape, dtype=torch.bool)
    for row, sequence in zip(learned, sequences, strict=True):
        row[len(sequence.ids) - 1 - sequence.learned : len(sequence.ids) - 1] = True
    targets = torch.cat([s.ids[-s.learned :] for s in sequences])
    ignored = _rounded_up(len(targets), 1024) - len(targets)
    rows = pad(learned.flatten().nonzero()[:, 0], (0, ignored)).to(device)
    targets = pad(targets, (0, ignored)).to(device)
    weights = pad(torch.cat([s.weights for s in sequences]), (0, ignored)).to(device)
    core = ar.model.model.language_model
    with torch.autocast(device.type, torch.bfloat16):
        hidden = core(inputs_embeds=core.embed_tokens(ids), position_ids=positions, use_cache=False).last_hidden_state
        logits = ar.model.lm_head(hidden.flatten(0, 1)[rows])
    return (cross_entropy(logits.float(), targets, reduction="none") * weights).sum() / weights.sum()


def _rounded_up(count: int, to: int) -> int:
    return -(-count // to) * to


def loss_of(ar: ArModel, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    return batch_loss(ar, random_pictures(ar, rng)) + batch_loss(ar, random_edits(ar, rng))
