"""Glyph texts: the text to be drawn, encoded by ByT5 letter by letter.

The DiT never reads the prompt. It reads the embeddings of the texts between quotation marks, which quoted.py finds.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..component import Component

if TYPE_CHECKING:
    from transformers import ByT5Tokenizer, T5EncoderModel


log = logging.getLogger(__name__)
MAX_GLYPH_BYTES = 2048  # of one text, as the reference truncates
MOST_TEXTS = 500  # of one picture; ByT5 and every step of the DiT read them all
MOST_BYTES = 16_384  # of them together, as they are cut


@dataclass(frozen=True, eq=False)
class GlyphEncoder(Component):
    """ByT5 encoder and its tokenizer: the checkpoint's `text_encoder` and `tokenizer`."""

    model: "T5EncoderModel"
    tokenizer: "ByT5Tokenizer"


def check_glyph_texts(texts: list[str]) -> None:
    """Raise ValueError for more texts than a picture can hold."""
    size = sum(min(len(text.encode()), MAX_GLYPH_BYTES) for text in texts)
    if len(texts) > MOST_TEXTS or size > MOST_BYTES:
        raise ValueError(
            f"{len(texts)} texts of {size} bytes are to be drawn, such as {texts[0][:40]!r}; {MOST_TEXTS} texts of {MOST_BYTES} "
            "bytes together are the most: put less between quotation marks"
        )


@torch.inference_mode()
def encode_glyph_texts(encoder: GlyphEncoder, texts: list[str]) -> torch.Tensor:
    """Encode the texts together and join their valid embeddings in order.

    No text at all is encoded as the single text "". Returns [1, L, D] float32 on the CPU, with L the bytes of all texts
    and one end mark each. Texts beyond 2048 bytes are cut, with a warning. Raises as `check_glyph_texts` does.
    """
    check_glyph_texts(texts)
    pad = encoder.tokenizer.pad_token_id
    texts = texts or [""]
    rows = encoder.tokenizer(texts, max_length=MAX_GLYPH_BYTES, truncation=True).input_ids
    for text in texts:
        if len(text.encode()) >= MAX_GLYPH_BYTES:  # one place is the end mark's
            log.warning("the text to be drawn %r... is longer than %d bytes and was cut", text[:40], MAX_GLYPH_BYTES)
    if len(rows) % 2 == 0:
        # The model was trained with this: an even number of texts puts one pad token in front of every row.
        rows = [[pad, *row] for row in rows]
    length = max(map(len, rows))
    device = encoder.device
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
    embeddings = encoder.model(ids, attention_mask=mask).last_hidden_state  # [texts, length, D]
    return embeddings[mask.bool()][None].float().cpu()
