"""diffusers' DiT with its forward cut where a run repeats itself.

Its own forward projects the prior tokens, the glyph embeddings and the time embedding in every step. Here they are three
methods, called as often as their inputs change, and what is left is the forward. Importing this imports diffusers.
"""

from typing import TYPE_CHECKING

import torch
from diffusers import GlmImageTransformer2DModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .kv_cache import ReferenceLayer, WrittenLayer
    from .step_cache import Branch


class GlmImageDit(GlmImageTransformer2DModel):
    """The same weights, names and arithmetic. D is the width of the stream, T the tokens of the picture."""

    def embed_prior(self, tokens: torch.Tensor) -> torch.Tensor:
        """Prior tokens at the DiT's grid, [B, T] int64, as what is added to the image's tokens: [B, T, D]."""
        return self.prior_projector(self.prior_token_embedding(tokens))

    def null_prior(self, device: torch.device) -> torch.Tensor:
        """What is added for a prior token that is dropped, for each the same: [1, 1, D]."""
        any_token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        return self.prior_projector(self.prior_token_embedding(any_token) * 0.0)

    def embed_glyphs(self, glyphs: torch.Tensor) -> torch.Tensor:
        """Glyph embeddings [B, L, text_embed_dim] as the text's tokens: [B, L, D]."""
        return self.glyph_projector(glyphs)

    def embed_time(self, timesteps: torch.Tensor, width: int, height: int, dtype: torch.dtype) -> torch.Tensor:
        """The conditioning of the norms at timesteps [N] for a picture of width x height pixels: [N, time_embed_dim]."""
        size = torch.cat([torch.full_like(timesteps[:, None], side, dtype=torch.float32) for side in (height, width)], dim=1)
        return self.time_condition_embed(timesteps, size, torch.zeros_like(size), dtype)

    def forward(
        self,
        x: torch.Tensor,
        time: torch.Tensor,
        prior: torch.Tensor,
        glyphs: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        kv_caches: "Sequence[ReferenceLayer] | Sequence[WrittenLayer] | None" = None,
        steps_before: "Branch | None" = None,
    ) -> torch.Tensor:
        """x: [B, 16, h, w] noised latents. The rest as the methods above and `rope` give it, for B pictures.

        With what the steps before left in `steps_before`, all blocks but the first may be skipped. Returns the velocity,
        [B, 16, h, w].
        """
        first, *others = zip(self.transformer_blocks, kv_caches or [None] * len(self.transformer_blocks), strict=True)
        embedded = self.image_projector(x) + prior  # [B, T, D]
        image, text = self._through([first], embedded, glyphs, time, rope)
        rest = None if steps_before is None else steps_before.rest(change=image - embedded)
        if rest is None:
            begun = image
            image, text = self._through(others, image, text, time, rope)
            if steps_before is not None:
                steps_before.keep(image - begun)
        else:
            image = image + rest
        patches = self.proj_out(self.norm_out(image, time))  # [B, T, patch * patch * 16]
        size = self.config.patch_size
        batch, _, height, width = x.shape
        patches = patches.view(batch, height // size, width // size, -1, size, size)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)

    @staticmethod
    def _through(blocks, image, text, time, rope):
        for block, kv_cache in blocks:
            image, text = block(image, text, time, rope, kv_cache=kv_cache)
        return image, text
