"""The DiT's forward: diffusers' own, cut where a run repeats itself.

diffusers' forward projects the prior tokens, the glyph embeddings and the time embedding in every step. Here these are
methods, called as often as their inputs change, and `forward` is what is left. Importing this imports diffusers.
"""

from collections.abc import Sequence
from functools import wraps

import torch
from diffusers import GlmImageTransformer2DModel

from .dit_block import DitAttention, DitBlock
from .kv_cache import LayerKVCache, LayerKVWriter
from .rope import Rotation
from .step_cache import CfgBranchCache


class GlmImageDit(GlmImageTransformer2DModel):
    """The same weights, names and arithmetic. D is the width of the stream, T the tokens of the picture."""

    _no_split_modules = _repeated_blocks = ("DitBlock",)

    @wraps(GlmImageTransformer2DModel.__init__)  # diffusers reads the names of a config's entries from it
    def __init__(self, *arguments, **config):
        super().__init__(*arguments, **config)
        for block in self.transformer_blocks:
            block.__class__ = DitBlock  # the same modules, with another forward
            block.attn1.set_processor(DitAttention())

    @property
    def foreign_attention(self) -> type | None:
        """The class of an attention processor that something put in place of ours."""
        kinds = (type(block.attn1.processor) for block in self.transformer_blocks)
        return next((kind for kind in kinds if not issubclass(kind, DitAttention)), None)

    def embed_prior(self, tokens: torch.Tensor) -> torch.Tensor:
        """Prior tokens at the DiT's grid, [B, T] int64, as what is added to the picture's tokens: [B, T, D]."""
        return self.prior_projector(self.prior_token_embedding(tokens))

    def null_prior(self, device: torch.device) -> torch.Tensor:
        """What is added to every token where the prior is dropped: [1, 1, D]."""
        any_token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        return self.prior_projector(self.prior_token_embedding(any_token) * 0.0)

    def embed_glyphs(self, glyphs: torch.Tensor) -> torch.Tensor:
        """ByT5's embeddings [B, L, text_embed_dim] as the text's tokens: [B, L, D]."""
        return self.glyph_projector(glyphs)

    def embed_time(self, timesteps: torch.Tensor, width: int, height: int, dtype: torch.dtype) -> torch.Tensor:
        """What the norms are conditioned on at timesteps [N] for a picture of width x height pixels: [N, time_embed_dim]."""
        size = torch.cat([torch.full_like(timesteps[:, None], side, dtype=torch.float32) for side in (height, width)], dim=1)
        return self.time_condition_embed(timesteps, size, torch.zeros_like(size), dtype)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        temb: torch.Tensor,
        prior_embeds: torch.Tensor,
        glyph_embeds: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        kv_caches: Sequence[LayerKVCache] | Sequence[LayerKVWriter] | None = None,
        step_cache: CfgBranchCache | None = None,
    ) -> torch.Tensor:
        """The velocity, [B, 16, h, w], at noised latents hidden_states, [B, 16, h, w].

        temb: [B, time_embed_dim], prior_embeds: [B, T, D], glyph_embeds: [B, L, D], image_rotary_emb: cosine and sine, [T,
        head width] each, as the methods above and `rope` give them. kv_caches: one a layer. With a step_cache, all blocks
        but the first may be skipped.
        """
        first, *others = zip(self.transformer_blocks, kv_caches or [None] * len(self.transformer_blocks), strict=True)
        stream = self.image_projector(hidden_states) + prior_embeds  # [B, T, D]
        conditioning = (temb, Rotation.of(*image_rotary_emb))
        after_first, text = self._through([first], stream, glyph_embeds, conditioning)
        if step_cache is not None and (forecast := step_cache.lookup(after_first - stream)) is not None:
            return forecast
        image, _ = self._through(others, after_first, text, conditioning)
        patches = self.proj_out(self.norm_out(image, temb))  # [B, T, patch * patch * 16]
        size = self.config.patch_size
        batch, _, height, width = hidden_states.shape
        patches = patches.view(batch, height // size, width // size, -1, size, size)
        velocity = patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)
        if step_cache is not None:
            step_cache.store(velocity)
        return velocity

    @staticmethod
    def _through(blocks, image, text, conditioning):
        temb, rotation = conditioning
        for block, kv_cache in blocks:
            image, text = block(image, text, temb, rotation=rotation, kv_cache=kv_cache)
        return image, text
