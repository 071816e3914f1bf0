"""The widths, depths and ids of the random GLM-Image checkpoints, and of the released one.

"tiny" (a few MB) is for tests and demonstrations; "small" (a language model of width 256, 16 layers) and "medium" (width 1024,
16 layers) are for benchmarks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

CONTROL_IDS = 128  # ids between the codebook's rows and the text, as released; the first two mark the start and end of an image


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What tells one GLM-Image from another: widths of layers, counts of layers and heads, ids of tokens.

    special_ids: of padding, <sop>, <eop> and <|image|>. reference_edges_px: the least and the greatest side of a square reference
    that the processor neither enlarges nor shrinks. rope_theta: the base of the AR model's rotary frequencies. tokenizer_merges:
    pairs of pieces in the order in which byte-level BPE joins them. trained_on: as
    glm_image/trained_on.py has it in a config; a random model, which is trained on nothing, has no limits.
    """

    ar_width: int
    ar_mlp_width: int
    ar_layers: int
    ar_heads: int
    vision_width: int
    vision_mlp_width: int
    vision_layers: int
    vision_heads: int
    vision_image_px: int
    codebook_width: int
    codebook_rows: int
    vocabulary: int
    special_ids: tuple[int, int, int, int]
    reference_edges_px: tuple[int, int]
    dit_heads: int
    dit_head_width: int
    dit_layers: int
    dit_time_width: int
    dit_condition_width: int
    glyph_width: int
    glyph_mlp_width: int
    glyph_layers: int
    glyph_heads: int
    glyph_head_width: int
    vae_widths: tuple[int, int, int, int]
    vae_layers_per_block: int
    vae_norm_groups: int
    vae_mid_attention: bool
    rope_theta: float = 10000.0
    tokenizer_merges: tuple[tuple[str, str], ...] = ()
    trained_on: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image_start(self) -> int:
        return self.codebook_rows

    @property
    def image_end(self) -> int:
        return self.codebook_rows + 1

    @property
    def text_start(self) -> int:
        """The first id of the 256 byte tokens, which is also the number of rows of the head."""
        return self.codebook_rows + CONTROL_IDS


_TINY = ModelSpec(
    ar_width=64,
    ar_mlp_width=192,
    ar_layers=2,
    ar_heads=4,
    vision_width=32,
    vision_mlp_width=64,
    vision_layers=2,
    vision_heads=2,
    vision_image_px=256,
    codebook_width=16,
    codebook_rows=256,
    vocabulary=644,
    special_ids=(640, 641, 642, 643),
    reference_edges_px=(128, 512),
    dit_heads=2,
    dit_head_width=32,
    dit_layers=2,
    dit_time_width=64,
    dit_condition_width=32,
    glyph_width=32,
    glyph_mlp_width=64,
    glyph_layers=2,
    glyph_heads=4,
    glyph_head_width=8,
    vae_widths=(16, 32, 32, 32),
    vae_layers_per_block=1,
    vae_norm_groups=8,
    vae_mid_attention=True,
)
SPECS = {
    "tiny": _TINY,
    "small": replace(_TINY, ar_width=256, ar_mlp_width=768, ar_layers=16),
    "medium": replace(
        _TINY,
        ar_width=1024,
        ar_mlp_width=3072,
        ar_layers=16,
        ar_heads=8,
        vision_width=256,
        vision_mlp_width=512,
        vision_layers=4,
        dit_heads=8,
        dit_head_width=128,
        dit_layers=16,
        glyph_width=256,
        glyph_mlp_width=512,
        vae_widths=(32, 64, 128, 128),
    ),
}
# The VAE's layers per block, norm groups and the missing attention are those of CogView4's VAE, its family.
RELEASED = ModelSpec(
    ar_width=4096,
    ar_mlp_width=13696,
    ar_layers=40,
    ar_heads=32,
    vision_width=1536,
    vision_mlp_width=6144,
    vision_layers=40,
    vision_heads=16,
    vision_image_px=2048,
    codebook_width=2048,
    codebook_rows=16384,
    vocabulary=168064,
    special_ids=(167841, 167845, 167846, 167855),
    reference_edges_px=(512, 2048),
    dit_heads=32,
    dit_head_width=128,
    dit_layers=30,
    dit_time_width=512,
    dit_condition_width=256,
    glyph_width=1472,
    glyph_mlp_width=3584,
    glyph_layers=12,
    glyph_heads=6,
    glyph_head_width=64,
    vae_widths=(128, 512, 1024, 1024),
    vae_layers_per_block=3,
    vae_norm_groups=32,
    vae_mid_attention=False,
)
