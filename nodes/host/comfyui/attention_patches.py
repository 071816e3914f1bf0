"""Stock nodes' patches of the DiT's attention, such as NAG's."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def attention_patches(model: torch.nn.Module, transformer_options: dict, text_tokens: int) -> Iterator[None]:
    """Pass the output of each attention, [B, text and image tokens, width], through the `attn1_output_patch` patches.

    Raises ValueError for patches of what goes into attention.
    """
    patches = transformer_options.get("patches", {}).get("attn1_output_patch", ())
    if patches and "attn1_patch" in transformer_options["patches"]:
        raise ValueError(
            "a node on the MODEL (such as TomePatchModel) changes the input of the attention, which the DiT of GLM-Image does "
            "not support; remove it"
        )
    handles = []
    for index, block in enumerate(model.transformer_blocks if patches else ()):
        attention = block.attn1

        def patch(layer, inputs, index=index, attention=attention):
            (out,) = inputs
            of_block = {
                "block": ("transformer", index),
                "n_heads": attention.heads,
                "dim_head": out.shape[-1] // attention.heads,
                "img_slice": [text_tokens, out.shape[1]],
            }
            for function in patches:
                out = function(out, transformer_options | of_block)
            return (out,)

        handles.append(attention.to_out[0].register_forward_pre_hook(patch))
    # A block that was compiled without the patches would run without them.
    with torch.compiler.set_stance("force_eager") if patches else nullcontext():
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
