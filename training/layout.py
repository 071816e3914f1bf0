"""The checkpoint folder of nano without its weights: configs, tokenizers and processor."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..glmimage_core.tiny.glm_image import write_layout
from ..glmimage_core.tiny.spec import CONTROL_IDS, ModelSpec
from . import larger
from .ar import SIDES
from .captions import describe, phrases, random_edit, vocabulary
from .world import CELL_PX, CODES, random_scene

MERGES = 640
_TEXT_START = CODES + CONTROL_IDS

NANO = ModelSpec(
    ar_width=128,
    ar_mlp_width=384,
    ar_layers=9,
    ar_heads=4,
    vision_width=96,
    vision_mlp_width=192,
    vision_layers=3,
    vision_heads=3,
    vision_image_px=256,
    codebook_width=32,
    codebook_rows=CODES,
    vocabulary=_TEXT_START + 256 + 4,
    special_ids=(_TEXT_START + 256, _TEXT_START + 257, _TEXT_START + 258, _TEXT_START + 259),
    reference_edges_px=(192, 384),
    dit_heads=2,
    dit_head_width=96,
    dit_layers=5,
    dit_time_width=32,
    dit_condition_width=32,
    glyph_width=64,
    glyph_mlp_width=128,
    glyph_layers=2,
    glyph_heads=4,
    glyph_head_width=16,
    vae_widths=(16, 32, 48, 48),
    vae_layers_per_block=1,
    vae_norm_groups=2,
    vae_mid_attention=False,
    rope_theta=6.0,  # wavelengths: 10 to 15 rows, 19 to 30 columns; grids have 6 to 16 of each, previews 9 to 26
)


def write_nano_layout(folder: Path) -> None:
    """Write all of nano but its weights, with a tokenizer trained on captions."""
    pairs = merges()
    first = _TEXT_START + 256 + len(pairs)
    special_ids = (first, first + 1, first + 2, first + 3)
    write_layout(
        folder, replace(NANO, tokenizer_merges=pairs, vocabulary=first + 4, special_ids=special_ids, trained_on=trained_on())
    )


def trained_on(sides: Sequence[int] = SIDES) -> dict:
    """What nano's AR model states of its training. sides: those of its scenes, in cells."""
    return {"sides": [side * CELL_PX for side in (min(sides), max(sides))], "words": vocabulary()}


def write_larger_sizes(folder: Path) -> None:
    """State in a checkpoint the sizes that the phase larger teaches."""
    stated = trained_on(larger.SIDES)
    shortest, longest = stated["sides"]
    areas = {"shortest_edge": shortest**2, "longest_edge": longest**2}
    _restate(folder / "processor" / "preprocessor_config.json", size=areas)
    _restate(folder / "vision_language_encoder" / "config.json", trained_on=stated)


def _restate(file: Path, **entries) -> None:
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(config | entries, indent=2) + "\n", "utf-8")


def merges() -> tuple[tuple[str, str], ...]:
    """The merges of byte-level BPE trained on captions.

    Chinese captions have no spaces, so BPE is trained on their phrases. Quoted text is left out, so that every word to be drawn
    is spelled letter by letter.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    rng = random.Random("merges")
    texts = [piece for text in phrases("zh") for piece in re.split("{.*?}", text) if piece] * 50
    for _ in range(2000):
        texts.append(describe(rng, random_scene(rng, 8, 8), "en").prompt)
        texts.append(random_edit(rng, 8, 8, "en").prompt)
    texts = [re.sub('"[A-Z0-9]*"', '"', text) for text in texts]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + MERGES, min_frequency=20, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tuple(tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"])
