"""The phase ar: nano's language half learns to write the prior tokens of scenes and edits.

The language model gets what prior.py gives it: the same prompt, positions and grids in the same order. A token of the preview
grid is the token of the large grid under its centre.
"""

import math
import random
from typing import NamedTuple

import torch
from torch.nn.functional import nll_loss, pad

from ..glmimage_core.diffusion import Grid
from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.geometry import preview_grid
from ..glmimage_core.glm_image.layout import emitted_positions, prompt_ids, prompt_positions
from .captions import COMBINATIONS, EDITS, LANGUAGES, Edit, Request, describe, random_edit
from .loop import Recipe, mixed_precision
from .structure import structured
from .world import CODES, Scene, beginnings, random_scene, tokens_of

RECIPE = Recipe(steps=12700, learning_rate=2e-3, warmup=150)
PICTURES = 18  # in a batch
EDITS_BY_REFERENCES = {1: 18, 2: 12}  # in a batch, by the number of references of each
TWO_REFERENCES = 0.3  # share of batches of edits
ANYWHERE = 0.3  # share of edits in whose scenes things stand at any cell
START_WEIGHT = 12.0  # of a token at which a shape or word may start, in the loss; other tokens have 1
SIDES = (8, 8, 8, 6, 7, 9, 10, 12)  # cells


class Sequence(NamedTuple):
    """Token ids [S], their positions [3, S], and weights [T] in the loss of the last T ids, which are to be learned.

    The last id is only a target; the model's input is all ids before it.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor

    @property
    def learned(self) -> int:
        return len(self.weights)


@torch.no_grad()
def init_weights(ar_model) -> None:
    """Initial weights: tokens that share properties have similar embeddings and similar rows of the head.

    The first layer starts with attention that tells a token its place in its grid.
    """
    language_model = ar_model.model.language_model
    for name, parameter in language_model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif name.endswith(("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight")):
            parameter.fill_(0.4)
    table = language_model.embed_tokens.weight
    torch.nn.init.normal_(table)
    common = torch.randn(table.shape[1]) * 0.7  # a direction that all tokens of a grid share
    table[:CODES] = structured(table.shape[1]) + common
    init_place_attention(language_model.layers[0].self_attn, language_model.rotary_emb, start=table[CODES], common=common)
    head = ar_model.lm_head.weight
    head.zero_()
    head[:CODES] = structured(head.shape[1]) * 0.05


@torch.no_grad()
def init_place_attention(attention, rotary, start: torch.Tensor, common: torch.Tensor) -> None:
    """Initialise a layer's attention so that its output tells a token of a grid how far it is from the start of the grid.

    start: the embedding of the token before a grid. common: the direction that embeddings of a grid's tokens share. Rotary
    positions are relative, so only attention to the start token reveals a token's row and column. Each head weighs the start
    token against the tokens of the grid so far:

    - All positions of a grid have one time, and the start token is one step earlier. The pairs that rotate with time match a
      token with the start and the tokens of its own grid, and with no earlier grid.
    - The slowest pair of the rows (half of the heads) or of the columns (the others) makes the score of the start a cosine of
      the distance along that axis. Two heads of an axis differ by a quarter turn, so that together they tell the distance.
    """
    sections, frequencies = rotary.mrope_section, rotary.inv_freq.tolist()
    heads, width = attention.q_proj.out_features // attention.head_dim, attention.head_dim
    slowest = sections[0] + sections[1] - 1, sum(sections) - 1  # pair of the rows, of the columns

    def set_pair(vector: torch.Tensor, index: int, length: float, angle: float = 0.0) -> None:
        vector[index], vector[index + len(frequencies)] = length * math.cos(angle), length * math.sin(angle)

    queries = torch.zeros(heads, width)
    keys_of_start, keys_of_grid = torch.zeros(2, 2, width)
    for time in range(sections[0]):
        for query in queries:
            set_pair(query, time, 4.0)
        for key in range(2):
            set_pair(keys_of_start[key], time, 7.8, frequencies[time])  # one step back in time
            set_pair(keys_of_grid[key], time, 5.7)
    for head, query in enumerate(queries):
        set_pair(query, slowest[head * 2 // heads], 4.0, -math.pi / 2 * (head % 2))
    for key in range(2):
        set_pair(keys_of_start[key], slowest[key], 5.7)

    without_start = common - start * (common @ start) / (start @ start)
    attention.q_proj.weight.mul_(0.2)
    attention.q_proj.bias.copy_(queries.flatten())
    attention.k_proj.weight.mul_(0.2).add_(
        torch.outer(keys_of_start.flatten(), start / start.norm() / start.numel() ** 0.5)
        + torch.outer(keys_of_grid.flatten(), without_start / without_start.norm() / (0.57 * start.numel() ** 0.5))
    )


def random_size(rng: random.Random) -> tuple[int, int]:
    """Rows and columns of a scene."""
    return (8, 8) if rng.random() < 0.35 else (rng.choice(SIDES), rng.choice(SIDES))


def random_pictures(ar: ArModel, rng: random.Random) -> list[Sequence]:
    """A batch of scenes of one size, so that its sequences have about the same length."""
    rows, columns = random_size(rng)
    return [picture_lesson(ar, rng, rows, columns) for _ in range(PICTURES)]


def picture_lesson(ar: ArModel, rng: random.Random, rows: int, columns: int) -> Sequence:
    return sequence_of_picture(ar, random_request(rng, rows, columns))


def random_request(rng: random.Random, rows: int, columns: int) -> Request:
    return describe(rng, random_scene(rng, rows, columns), rng.choice(LANGUAGES))


def sequence_of_picture(ar: ArModel, request: Request) -> Sequence:
    large = tokens_of(request.scene)
    return sequence_of(ar, request.prompt, [], [resampled(large, grid) for grid in grids_of_picture(request.scene)])


def grids_of_picture(scene: Scene) -> list[Grid]:
    """The grids of a new picture in the order of emission."""
    large = Grid(scene.rows, scene.columns)
    return [preview_grid(large), large]


def random_edits(ar: ArModel, rng: random.Random) -> list[Sequence]:
    """A batch of edits of one size and one number of references."""
    rows, columns = random_size(rng)
    references = 2 if rng.random() < TWO_REFERENCES else 1
    return [edit_lesson(ar, edit) for edit in edits_of(rng, rows, columns, references, count=EDITS_BY_REFERENCES[references])]


def edits_of(rng: random.Random, rows: int, columns: int, references: int, *, count: int) -> list[Edit]:
    """Edits of one size and one number of references, of all their kinds and in all languages."""
    kinds = [kind for kind in EDITS if (kind in COMBINATIONS) == (references == 2)]
    return [
        random_edit(rng, rows, columns, rng.choice(LANGUAGES), kind=rng.choice(kinds), anywhere=rng.random() < ANYWHERE)
        for _ in range(count)
    ]


def edit_lesson(ar: ArModel, edit: Edit) -> Sequence:
    return sequence_of(ar, edit.prompt, [tokens_of(scene) for scene in edit.references], [tokens_of(edit.scene)])


def sequence_of(ar: ArModel, prompt: str, references: list[torch.Tensor], targets: list[torch.Tensor]) -> Sequence:
    """The sequence of a prompt. references, targets: tokens [rows, columns] each, targets in the order of emission."""
    grids = [Grid(*tokens.shape) for tokens in targets]
    ids, starts = prompt_ids(ar, prompt, grids, references)
    positions, end = prompt_positions(len(ids), starts, [Grid(*tokens.shape) for tokens in references])
    positions = torch.cat([positions, emitted_positions(end, grids)], dim=1)
    learned = torch.cat([tokens.flatten() for tokens in targets])
    weights = torch.cat([loss_weights(grid, targets[-1].shape).flatten() for grid in grids])
    return Sequence(torch.cat([ids, learned]), positions, weights)


def loss_weights(grid: Grid, cells: tuple[int, int]) -> torch.Tensor:
    """The weight of each token of a grid in the loss, [height, width], for a scene of so many rows and columns of cells.

    The tokens at which a shape or word may start decide what the picture shows; the others follow from them.
    """
    may_start = torch.zeros(cells)
    for row, column in beginnings(*cells):
        may_start[row, column] = 1
    cell = resampled(torch.arange(may_start.numel()).reshape(cells), grid)  # which cell each token shows
    is_first = torch.ones_like(cell, dtype=torch.bool)  # whether it is the first token of its cell
    is_first[1:] &= cell[1:] != cell[:-1]
    is_first[:, 1:] &= cell[:, 1:] != cell[:, :-1]
    return 1 + (START_WEIGHT - 1) * may_start.flatten()[cell] * is_first


def resampled(tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Tokens [..., rows, columns] on another grid over the same picture: each is the one under its centre."""
    rows, columns = (
        ((torch.arange(count) + 0.5) * cells / count).long() for count, cells in zip(grid, tokens.shape[-2:], strict=True)
    )
    return tokens[..., rows, :][..., columns]


def batch_loss(ar: ArModel, sequences: list[Sequence]) -> torch.Tensor:
    """The weighted mean cross entropy of the tokens to be learned."""
    logits, targets, weights = learned_logits(ar, sequences)
    return mean_cross_entropy(logits.log_softmax(dim=1), targets, weights)


def mean_cross_entropy(logarithms: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean over T tokens. logarithms: of the probability of every token, [T, vocabulary]. targets, weights: [T]."""
    return (nll_loss(logarithms, targets, reduction="none") * weights).sum() / weights.sum()


def learned_logits(ar: ArModel, sequences: list[Sequence]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The float32 logits [T, vocabulary] of the tokens to be learned of all sequences, the tokens [T], and their weights [T].

    Lengths are rounded up, because CPU kernels are compiled anew for each new length: the last rows may be padding, of weight 0.
    """
    length = _rounded_up(max(len(sequence.ids) for sequence in sequences) - 1, 32)
    device = ar.device
    ids = torch.stack([pad(s.ids[:-1], (0, length + 1 - len(s.ids))) for s in sequences]).to(device)
    positions = torch.stack([pad(s.positions[:, :-1], (0, length + 1 - len(s.ids))) for s in sequences], dim=1).to(device)
    learned = torch.zeros(ids.shape, dtype=torch.bool)
    for row, sequence in zip(learned, sequences, strict=True):
        row[len(sequence.ids) - 1 - sequence.learned : len(sequence.ids) - 1] = True
    targets = torch.cat([s.ids[-s.learned :] for s in sequences])
    padding = _rounded_up(len(targets), 256) - len(targets)
    rows = pad(learned.flatten().nonzero()[:, 0], (0, padding)).to(device)
    targets = pad(targets, (0, padding)).to(device)
    weights = pad(torch.cat([s.weights for s in sequences]), (0, padding)).to(device)
    core = ar.model.model.language_model
    with mixed_precision(device):
        hidden = core(inputs_embeds=core.embed_tokens(ids), position_ids=positions, use_cache=False).last_hidden_state
        logits = ar.model.lm_head(hidden.flatten(0, 1)[rows])
    return logits.float(), targets, weights


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def loss_of(ar: ArModel, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    return batch_loss(ar, random_pictures(ar, rng)) + batch_loss(ar, random_edits(ar, rng))
