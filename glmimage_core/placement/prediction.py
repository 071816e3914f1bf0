"""Predicting memory: the run to predict, and the settings of a model that fit a card."""

from collections import Counter
from typing import NamedTuple

import torch

from ..weights.linear import product_bytes, sizes_when

SAMPLING_COPIES = 5  # float32 rows as wide as the head: logits, filtered, sorted, probabilities, race
BF16_OVERHEAD = 1.15  # peak elements of a transformer in bfloat16 over those in float32; measured on the CPU


class Job(NamedTuple):
    """A run to predict: sides in pixels, references as fitted (width, height) in pixels."""

    width: int = 1024
    height: int = 1024
    batch: int = 1
    references: tuple[tuple[int, int], ...] = ()
    prompt_tokens: int = 256
    glyph_tokens: int = 64
    guided: bool = True
    step_cache: bool = False
    one_length: bool = False  # whether the texts of both sides of the guidance have one, so that they may share a pass


class Setting(NamedTuple):
    """How to load a component on a card: its quantization, whether it comes block by block, and the peak in bytes."""

    quantization: str
    streamed: bool
    peak: int


def setting_for(
    room: int, model: torch.nn.Module, itemsize: int, working: int, lean: int | None = None, blocks: str = ""
) -> Setting | None:
    """The most exact setting in which a model on the meta device fits in `room` bytes.

    working: bytes that its stages need beside the weights; lean: those of a run block by block, if it has `blocks`, the prefix
    of their names. A whole model comes before one that is brought in every pass; nf4, which changes most, comes last. None
    where nothing fits.
    """
    whole, by_blocks = [("none", False), ("int8", False)], [("none", True), ("int8", True)]
    for quantization, streamed in (*whole, *(by_blocks if blocks else ()), ("nf4", False)):
        sizes = sizes_when(model, quantization, itemsize)
        there = sum(sizes.values())
        if streamed:
            each = Counter()
            for name, size in sizes.items():
                if name.startswith(blocks):
                    each[name.removeprefix(blocks).split(".")[0]] += size
            there -= each.total() - 2 * max(each.values())  # one that computes and one on its way
        peak = there + product_bytes(model, quantization) + (lean if streamed else working)
        if peak <= room:
            return Setting(quantization, streamed, peak)
    return None
