"""Glyph texts: the text to be drawn, found in a prompt and encoded by ByT5.

The DiT never reads the prompt. What it reads is the text between quotation marks, letter by letter.
"""

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .component import Component

if TYPE_CHECKING:
    from transformers import ByT5Tokenizer, T5EncoderModel

log = logging.getLogger(__name__)

MAX_GLYPH_BYTES = 2048  # of one text, as the reference truncates

# A single quote opens only where no letter stands before it and closes only where none follows: in "dog's" and
# "the dogs' bowl" it is an apostrophe. The other marks are unambiguous. Alternatives are tried from left to right
# through the prompt, so texts come out in the order in which they stand.
QUOTED = re.compile(
    "|".join(
        (
            r'"([^"]*)"',
            r"\u201c([^\u201c\u201d]*)\u201d",  # curly double
            r"\u201e([^\u201c\u201d\u201e]*)[\u201c\u201d]",  # low-high double
            r"\u300c([^\u300c\u300d]*)\u300d",  # corner brackets
            r"\u300e([^\u300e\u300f]*)\u300f",  # white corner brackets
            r"\u00ab([^\u00ab\u00bb]*)\u00bb",  # angle quotes
            r"\u2018((?:[^\u2018\u2019]|\u2019(?=\w))*)\u2019(?!\w)",  # curly single; \u2019 in a word is an apostrophe
            r"(?<!\w)'(?!\s)((?:[^']|'(?=\w))*)(?<!\s)'(?!\w)",  # straight single
        )
    )
)


@dataclass(frozen=True, eq=False)
class GlyphEncoder(Component):
    """ByT5 encoder and its tokenizer: the checkpoint's `text_encoder` and `tokenizer`."""

    model: "T5EncoderModel"
    tokenizer: "ByT5Tokenizer"


def find_glyph_texts(prompt: str) -> list[str]:
    """The texts between quotation marks, in order, marks removed, apostrophes left alone, empty quotes skipped."""
    return [text for match in QUOTED.finditer(prompt) if (text := text_of(match)).strip()]


def text_of(match: re.Match) -> str:
    """What stands between the marks of a match of QUOTED."""
    return next(group for group in match.groups() if group is not None)


@torch.inference_mode()
def encode_glyph_texts(encoder: GlyphEncoder, texts: list[str]) -> torch.Tensor:
    """Encode the texts together and join their valid embeddings in order.

    No text at all is encoded as the single text "". Returns [1, L, D] float32 on the CPU, with L the bytes of all texts
    and one end mark each. Texts beyond 2048 bytes are cut, with a warning.
    """
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
