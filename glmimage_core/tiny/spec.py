"""The numbers of the random checkpoints: widths, depths and ids.

"tiny" (a few MB) is for tests and demonstrations; "small" (a language model of hidden 256, 16 layers) and "medium" (hidden 1024,
16 layers) are for benchmarks. RELEASED has the shapes of the released checkpoint.
"""

from dataclasses import dataclass, replace

BEYOND = 128  # ids of the head beyond the codebook, as in the released checkpoint; the first two mark image start and end


@dataclass(frozen=True, kw_only=True)
class Size:
    """Widths and depths of one size of random checkpoint.

    codebook: its rows. special: the ids of padding, <sop>, <eop> and <|image|>. edges: the limits in pixels between which the
    processor brings a reference's sides. rope_theta: the base of the AR model's rotary frequencies. merges: of the tokenizer,
    pairs of pieces in the order in which they are joined.
    """

    ar_hidden: int
    ar_mlp: int
    ar_layers: int
    ar_heads: int
    vision_hidden: int
    vision_mlp: int
    vision_layers: int
    vision_heads: int
    vision_px: int
    vq_width: int
    codebook: int
    vocabulary: int
    special: tuple[int, int, int, int]
    edges: tuple[int, int]
    dit_heads: int
    dit_head_width: int
    dit_layers: int
    dit_time: int
    dit_condition: int
    glyph_width: int
    glyph_mlp: int
    glyph_layers: int
    glyph_heads: int
    glyph_head_width: int
    vae_blocks: tuple[int, int, int, int]
    vae_layers: int
    vae_groups: int
    vae_attention: bool
    rope_theta: float = 10000.0
    merges: tuple[tuple[str, str], ...] = ()

    @property
    def image_start(self) -> int:
        return self.codebook

    @property
    def image_end(self) -> int:
        return self.codebook + 1

    @property
    def text_start(self) -> int:
        """The first id of the 256 byte tokens, and the width of the head."""
        return self.codebook + BEYOND


_TINY = Size(
    ar_hidden=64,
    ar_mlp=192,
    ar_layers=2,
    ar_heads=4,
    vision_hidden=32,
    vision_mlp=64,
    vision_layers=2,
    vision_heads=2,
    vision_px=256,
    vq_width=16,
    codebook=256,
    vocabulary=644,
    special=(640, 641, 642, 643),
    edges=(128, 512),
    dit_heads=2,
    dit_head_width=32,
    dit_layers=2,
    dit_time=64,
    dit_condition=32,
    glyph_width=32,
    glyph_mlp=64,
    glyph_layers=2,
    glyph_heads=4,
    glyph_head_width=8,
    vae_blocks=(16, 32, 32, 32),
    vae_layers=1,
    vae_groups=8,
    vae_attention=True,
)
SIZES = {
    "tiny": _TINY,
    "small": replace(_TINY, ar_hidden=256, ar_mlp=768, ar_layers=16),
    "medium": replace(
        _TINY,
        ar_hidden=1024,
        ar_mlp=3072,
        ar_layers=16,
        ar_heads=8,
        vision_hidden=256,
        vision_mlp=512,
        vision_layers=4,
        dit_heads=8,
        dit_head_width=128,
        dit_layers=16,
        glyph_width=256,
        glyph_mlp=512,
        vae_blocks=(32, 64, 128, 128),
    ),
}
# The VAE's layers and groups, and that its middle has no attention, are those of its family (CogView4).
RELEASED = Size(
    ar_hidden=4096,
    ar_mlp=13696,
    ar_layers=40,
    ar_heads=32,
    vision_hidden=1536,
    vision_mlp=6144,
    vision_layers=40,
    vision_heads=16,
    vision_px=2048,
    vq_width=2048,
    codebook=16384,
    vocabulary=168064,
    special=(167841, 167845, 167846, 167855),
    edges=(512, 2048),
    dit_heads=32,
    dit_head_width=128,
    dit_layers=30,
    dit_time=512,
    dit_condition=256,
    glyph_width=1472,
    glyph_mlp=3584,
    glyph_layers=12,
    glyph_heads=6,
    glyph_head_width=64,
    vae_blocks=(128, 512, 1024, 1024),
    vae_layers=3,
    vae_groups=32,
    vae_attention=False,
)
