"""Predicting memory: the run to predict, and the settings of a model that fit a card."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ..weights.linear import parameter_bytes, product_bytes

SAMPLING_COPIES = 5  # float32 rows as wide as the head: logits, filtered, sorted, probabilities, race
BF16_OVERHEAD = 1.15  # peak elements of a transformer in bfloat16 on the CPU over those in float32; measured


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
    one_length: bool = False  # whether the texts of both sides of the guidance have one length, so that they may share a pass


class Setting(NamedTuple):
    """How to load a component on a card: its quantization, whether it is streamed block by block, and the peak in bytes."""

    quantization: str
    streamed: bool
    peak: int


# The most exact first. A streamed model computes the same, only slower; nf4 changes the result most.
WHOLE = (("none", False), ("int8", False))
BY_BLOCKS = (("none", True), ("int8", True))
LAST = (("nf4", False),)


def setting_for(
    model: torch.nn.Module, *, room: int, itemsize: int, working: int, streamed_working: int = 0, blocks: str = ""
) -> Setting | None:
    """The most exact setting in which a model on the meta device fits in `room` bytes, or None where nothing fits.

    itemsize: bytes of each number that is not quantized. working: bytes that the model's stages need beside the weights.
    blocks: the prefix of the names of the blocks that the model can be streamed by, if it can. streamed_working: bytes that the
    stages of a streamed model need.
    """
    for quantization, streamed in (*WHOLE, *(BY_BLOCKS if blocks else ()), *LAST):
        sizes = parameter_bytes(model, quantization, itemsize)
        weights = _streamed_bytes(sizes, blocks) if streamed else sum(sizes.values())
        peak = weights + product_bytes(model, quantization) + (streamed_working if streamed else working)
        if peak <= room:
            return Setting(quantization, streamed, peak)
    return None


def _streamed_bytes(sizes: Mapping[str, int], blocks: str) -> int:
    """Bytes of a streamed model's weights on the device: all but the blocks, and two blocks, as in `streaming.streamed`."""
    block_bytes = Counter()
    for name, size in sizes.items():
        if name.startswith(blocks):
            block_bytes[name.removeprefix(blocks).split(".")[0]] += size
    return sum(sizes.values()) - block_bytes.total() + 2 * max(block_bytes.values())
