"""A block of the DiT in fewer operations than diffusers' own, over the same weights. Importing this imports diffusers.

On an accelerator where comfy-kitchen is installed, a norm with its modulation is one operation, and so is the rotation of
queries and keys. Text and picture go through the feed-forward together.
"""

from collections.abc import Callable

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_glm_image import GlmImageAttnProcessor, GlmImageTransformerBlock
from torch.nn import LayerNorm

from ..placement.compute import comfy_kitchen_with
from .kv_cache import LayerKVCache, LayerKVWriter
from .rope import Rotation


class DitBlock(GlmImageTransformerBlock):
    """The same weights, names and arithmetic. D is the width of the stream, T the tokens of the picture, L those of the text."""

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        temb: torch.Tensor,
        *,
        rotation: Rotation | None = None,
        kv_cache: LayerKVCache | LayerKVWriter | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """image: [B, T, D], text: [B, L, D], temb: [B, time_embed_dim]. Returns both streams after the block."""
        modulation = self.norm1.linear(temb).unflatten(-1, (12, 1, -1)).transpose(0, 1).contiguous()  # [12, B, 1, D]
        image, text = self._attended(image, text, modulation[:6], rotation=rotation, kv_cache=kv_cache)
        return self._fed_forward(image, text, modulation[6:])

    def _attended(self, image, text, modulation, **options):
        shift, text_shift, scale, text_scale, gate, text_gate = modulation
        mixed, mixed_text = self.attn1(
            hidden_states=modulated(image, self.norm1.norm, scale, shift),
            encoder_hidden_states=modulated(text, self.norm1.norm_context, text_scale, text_shift),
            **options,
        )
        return torch.addcmul(image, mixed, gate), torch.addcmul(text, mixed_text, text_gate)

    def _fed_forward(self, image, text, modulation):
        shift, text_shift, scale, text_scale, gate, text_gate = modulation
        normed = torch.cat(
            (modulated(text, self.norm2_context, text_scale, text_shift), modulated(image, self.norm2, scale, shift)), dim=1
        )
        fed_text, fed = self.ff(normed).split((text.shape[1], image.shape[1]), dim=1)
        return torch.addcmul(image, fed, gate), torch.addcmul(text, fed_text, text_gate)


class DitAttention(GlmImageAttnProcessor):
    """Joint attention of text and picture. Queries and keys are normed; those of the picture are rotated.

    attend: computes the attention in place of diffusers' backends, from queries [B, L + T, heads, head width] and keys and values
    of as many or more tokens in the same layout to what the queries mix.
    """

    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def __call__(
        self,
        attn: torch.nn.Module,
        hidden_states: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        attention_mask: None = None,
        rotation: Rotation | None = None,
        kv_cache: LayerKVCache | LayerKVWriter | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the picture's and the text's part, [B, T, D] and [B, L, D]. The names are diffusers'; there is no mask."""
        text_tokens = encoder_hidden_states.shape[1]
        stream = torch.cat((encoder_hidden_states, hidden_states), dim=1)
        query, key, value = (
            project(stream).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )  # [B, L + T, heads, head width]
        query, key = attn.norm_q(query).to(stream.dtype), attn.norm_k(key).to(stream.dtype)
        if rotation is not None:
            rotation.rotate_(query[:, text_tokens:], key[:, text_tokens:])
        if kv_cache is not None and kv_cache.mode == "write":
            kv_cache.store(key, value)
        elif kv_cache is not None:
            key, value = kv_cache.get(key, value)
        if self.attend is not None:
            mixed = self.attend(query, key, value)
        else:
            options = {"backend": self._attention_backend, "parallel_config": self._parallel_config}
            mixed = dispatch_attention_fn(query, key, value, **options)
        mixed = attn.to_out[0](mixed.flatten(2).to(query.dtype))
        text, image = mixed.split((text_tokens, hidden_states.shape[1]), dim=1)
        return image, text


def modulated(x: torch.Tensor, norm: LayerNorm, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """norm(x) * (1 + scale) + shift. x: [B, T, D], scale, shift: [B, 1, D]; norm has no weights.

    comfy-kitchen's operation knows no gradients.
    """
    fused = x.device.type != "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if fused and x.numel() and x.dtype == scale.dtype and comfy_kitchen_with("adaln"):
        return torch.ops.comfy_kitchen.adaln(x, scale, shift, norm.eps)
    return torch.addcmul(shift, norm(x), 1 + scale)
