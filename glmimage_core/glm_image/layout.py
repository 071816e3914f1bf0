"""The prompt of the AR model: its tokens, and where every token stands in time, height and width.

    text-to-image   prompt <sop>H W<eop><sop>h w<eop><bos>, then the preview grid and the large grid are emitted
    edit            <bos> vision tokens <eos> for each reference, prompt <sop>H W<eop><bos>, then the large grid

Text advances all three positions together. In a grid, time stands still while height and width advance.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..diffusion import Grid
from .ar_model import ArModel
from .references import Reference

MOST_CHARACTERS = 40_000
"""Of a prompt: several times a long description. Reading more takes minutes, and memory with the square."""


def check_length(prompt: str) -> None:
    """Raise ValueError for a prompt that is too long."""
    if len(prompt) > MOST_CHARACTERS:
        raise ValueError(f"the prompt has {len(prompt)} characters; at most {MOST_CHARACTERS} are read: shorten it")


def check_prompt(ar: ArModel, prompt: str) -> None:
    """Raise ValueError for a prompt that says nothing, is too long, or holds a control token of the AR model."""
    if not prompt.strip():
        raise ValueError("the prompt is empty; describe the picture")
    check_length(prompt)
    if reserved := [mark for mark in ar.tokenizer.all_special_tokens if mark in prompt]:
        raise ValueError(f"the prompt contains {reserved[0]!r}, a control token of the AR model; remove it")


class Layout(NamedTuple):
    """The prompt, and where all tokens stand in time, height and width.

    ids: [S] int64 of the prompt, positions: [3, S] of them, following: [3, T] of the tokens that will be emitted.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    following: torch.Tensor


def lay_out(ar: ArModel, prompt: str, grids: Sequence[Grid], references: Sequence[Reference]) -> Layout:
    """The layout of a prompt with its references before it and the grids, in the order they are emitted, after it."""
    ids, starts = prompt_ids(ar, prompt, grids, [reference.vision_tokens for reference in references])
    positions, end = prompt_positions(len(ids), starts, [reference.grid for reference in references])
    return Layout(ids, positions, emitted_positions(end, grids))


def prompt_ids(
    ar: ArModel, prompt: str, grids: Sequence[Grid], vision_tokens: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[int]]:
    """The input of the AR model, and where in it each reference's vision tokens start.

    Text-to-image: prompt <sop>H W<eop><sop>h w<eop><bos>, with the large grid before the preview although the preview is
    emitted first. An edit: <bos> vision tokens <eos> for each reference, then prompt <sop>H W<eop><bos>. Without this
    scaffold the model collapses to a handful of tokens. vision_tokens: of each reference. Returns ids [S] int64.
    """
    tokenizer = ar.tokenizer
    content = [{"type": "image"} for _ in vision_tokens] + [{"type": "text", "text": prompt}]
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    sizes = "".join(f"{tokenizer.grid_bos_token}{grid.height} {grid.width}{tokenizer.grid_eos_token}" for grid in reversed(grids))
    # As in transformers' processors: a text that brings its own first token gets no other one put before it.
    ids = tokenizer(f"{text}{sizes}{tokenizer.bos_token}", add_special_tokens=not text.startswith(tokenizer.bos_token)).input_ids
    placeholder = tokenizer.convert_tokens_to_ids(tokenizer.image_token)
    whole: list[int] = []
    starts: list[int] = []
    waiting = iter(vision_tokens)
    for token in ids:
        if token == placeholder:
            starts.append(len(whole))
            whole += next(waiting).flatten().tolist()
        else:
            whole.append(token)
    return torch.tensor(whole), starts


def prompt_positions(length: int, starts: Sequence[int], grids: Sequence[Grid]) -> tuple[torch.Tensor, int]:
    """Where every token of the prompt stands in time, height and width, and the next free position.

    starts, grids: where each reference's vision tokens start among the `length` ids, and their grid. Text advances all
    three positions together. Returns [3, length] int64. Source: `get_rope_index` of transformers' GLM-Image.
    """
    pieces, position, done = [], 0, 0
    for start, grid in zip(starts, grids, strict=True):
        text = start - done
        pieces += [_text_positions(position, text), grid_positions(position + text, grid)]
        position += text + max(grid)
        done = start + grid.tokens
    pieces.append(_text_positions(position, length - done))
    return torch.cat(pieces, dim=1), position + length - done


def grid_positions(start: int, grid: Grid) -> torch.Tensor:
    """Positions of a grid whose running position is `start`: time stands still, height and width advance.

    Returns [3, grid.tokens] int64; the running position moves on by max(grid).
    """
    row = torch.arange(grid.height).repeat_interleave(grid.width)
    column = torch.arange(grid.width).repeat(grid.height)
    return torch.stack([torch.zeros_like(row), row, column]) + start


def emitted_positions(end: int, grids: Sequence[Grid]) -> torch.Tensor:
    """Positions of the grids that follow a prompt which ends at `end`, one after another: [3, T] int64."""
    places = []
    for grid in grids:
        places.append(grid_positions(end, grid))
        end += max(grid)
    return torch.cat(places, dim=1)


def _text_positions(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count).expand(3, -1)
