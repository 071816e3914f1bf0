"""The DiT as a component, what it is conditioned on, and one velocity."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..component import Component
from ..diffusion import dit_token_count, latent_grid
from ..placement.compute import compile_blocks, use_attention_backend
from ..vae import LatentSpace
from .geometry import prior_for_dit
from .kv_cache import LayerKeysValues, LayerKVCache, LayerKVWriter
from .schedule import Shift
from .step_cache import CfgBranchCache
from .tiles import Tile, Tiling, part_of, tiles_of

if TYPE_CHECKING:
    from .transformer import GlmImageDit  # importing it imports diffusers


@dataclass(frozen=True, eq=False)
class Dit(Component):
    """The checkpoint's `transformer`, the space of the latents it was trained on, and its scheduler's shift.

    cached_references: keys and values of the references used last, on the CPU, by `weights_key` and reference. They depend
    on nothing else, so a new seed, prompt or number of steps finds them.
    checkpoint: the folder that all this was read from, or a single file; roots: the folders below which its small files
    were looked for. attention and compiled: how the model computes. codebook: identifies the one that its prior tokens index, ""
    where no AR model lies beside it. tiling: of pictures that are larger than a tile, or None to paint all in one piece.
    schedule_of: width and height in pixels of the picture by whose schedule stock samplers step; `denoise.sample` heeds its own.
    """

    model: "GlmImageDit"
    space: LatentSpace
    shift: Shift = Shift()  # noqa: RUF009, immutable
    cached_references: dict[str, list[LayerKeysValues]] = field(default_factory=dict)
    checkpoint: Path | None = None
    roots: tuple[Path, ...] = ()
    attention: str = "auto"
    compiled: bool = False
    codebook: str = ""
    tiling: Tiling | None = None
    schedule_of: tuple[int, int] = (1024, 1024)

    def tiles(self, width: int, height: int) -> list[Tile]:
        """The parts in which a picture of width x height pixels is painted."""
        return tiles_of(width, height, self.tiling)

    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        return () if self.quantized_by else self.model.transformer_blocks  # other libraries' weights cannot be copied alone


def configure_compute(dit: Dit, attention: str, compiled: bool, device: torch.device) -> Dit:
    """Set the attention backend of a DiT, and have its blocks compiled. Raises as `placement.compute` does."""
    use_attention_backend(dit.model, attention, device)
    if compiled:
        compile_blocks(dit.model)
    return replace(dit, attention=attention, compiled=compiled)


@dataclass(frozen=True)
class Conditions:
    """What one side of the guidance sees beside latents and time: it stays the same through a run. On the DiT's device.

    prior_embeds: [B, T, D], glyph_embeds: [B, L, D]. image_rotary_emb: cosine and sine, [T, head width] each.
    """

    prior_embeds: torch.Tensor
    glyph_embeds: torch.Tensor
    image_rotary_emb: tuple[torch.Tensor, torch.Tensor]


def encode_conditions(
    dit: Dit,
    glyphs: torch.Tensor,
    width: int,
    height: int,
    *,
    batch: int,
    tokens: torch.Tensor | None = None,
    dropped: torch.Tensor | None = None,
) -> Conditions:
    """The conditions of one side of the guidance. Without prior tokens it is the negative side, where the prior is dropped.

    glyphs: [1, L, text width] embeddings. tokens: [1 or B, height / 32, width / 32] prior tokens. dropped: of the same shape,
    bool, those that count for nothing. width, height: pixels.
    """
    model = dit.model
    prior = model.null_prior(dit.device) if tokens is None else model.embed_prior(prior_for_dit(tokens).to(dit.device))
    if dropped is not None:
        prior = torch.where(prior_for_dit(dropped)[..., None].to(dit.device), model.null_prior(dit.device), prior)
    return Conditions(
        prior_embeds=prior.to(dit.dtype).expand(batch, dit_token_count(width, height), -1),
        glyph_embeds=model.embed_glyphs(glyphs.to(dit.device, dit.dtype)).expand(batch, -1, -1),
        image_rotary_emb=rope(dit, width, height),
    )


def of_tile(dit: Dit, conditions: Conditions, tile: Tile, width: int) -> Conditions:
    """The conditions of a part of a picture, which is `width` pixels wide, as if the part were a picture."""
    return Conditions(
        prior_embeds=part_of(conditions.prior_embeds, tile, width),
        glyph_embeds=conditions.glyph_embeds,
        image_rotary_emb=rope(dit, tile.width, tile.height),
    )


def rope(dit: Dit, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotary embedding of a picture of width x height pixels, [T, head width] each."""
    shape_only = torch.empty(1, 0, *latent_grid(width, height))
    cosine, sine = dit.model.rope(shape_only)
    return cosine.to(dit.device), sine.to(dit.device)


def velocity(
    dit: Dit,
    x: torch.Tensor,
    temb: torch.Tensor,
    conditions: Conditions,
    *,
    kv_caches: Sequence[LayerKVCache] | Sequence[LayerKVWriter] | None = None,
    step_cache: CfgBranchCache | None = None,
) -> torch.Tensor:
    """One forward of the DiT, [B, 16, h, w] float32. x: [B, 16, h, w] noised latents, temb: [1 or B, time_embed_dim]."""
    out = dit.model(
        x.to(dit.dtype),
        temb=temb.expand(len(x), -1),
        prior_embeds=conditions.prior_embeds,
        glyph_embeds=conditions.glyph_embeds,
        image_rotary_emb=conditions.image_rotary_emb,
        kv_caches=kv_caches,
        step_cache=step_cache,
    )
    return out.float()


def check_attention(dit: Dit) -> None:
    """Raise ValueError where something put another attention processor in place.

    Those of xformers, attention slicing and plain PyTorch drop the rotary embedding and the references without a word; diffusers'
    own takes the rotary embedding in another form.
    """
    if foreign := dit.model.foreign_attention:
        raise ValueError(
            f"the attention of the DiT was replaced by {foreign.__name__}, which takes positions and references in another form "
            "or not at all; choose another attention in Load GLM-Image DiT instead"
        )
