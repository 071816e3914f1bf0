"""What ComfyUI's flags and nodes ask of the DiT's attention: another way to compute it, and patches of its output, as NAG's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from comfy.ldm.modules import attention

OVERRIDE = "optimized_attention_override"
WITHOUT_A_CHOICE = ("attention_basic", "attention_sub_quad", "attention_split", "attention_pytorch", "attention_xformers")
"""What ComfyUI takes by itself, by what is installed and how much memory there is. There the DiT's own is taken, as elsewhere."""


@contextmanager
def chosen_attention(model: torch.nn.Module, transformer_options: dict, *, follow_flags: bool) -> Iterator[bool]:
    """Compute the attention as a node on the MODEL chose, or, with follow_flags, as a flag did. Yields whether one did."""
    attend = _attend(transformer_options, follow_flags)
    processors = [block.attn1.processor for block in model.transformer_blocks if attend]
    for processor in processors:
        processor.attend = attend
    # A block that was compiled with another attention would be compiled anew in every pass.
    with torch.compiler.set_stance("force_eager") if attend else nullcontext():
        try:
            yield attend is not None
        finally:
            for processor in processors:
                del processor.attend


def _attend(transformer_options: dict, follow_flags: bool) -> Callable[..., torch.Tensor] | None:
    by_flag = attention.optimized_attention not in [getattr(attention, name) for name in WITHOUT_A_CHOICE]
    if OVERRIDE not in transformer_options and not (follow_flags and by_flag):
        return None

    def attend(*tensors: torch.Tensor) -> torch.Tensor:
        query, key, value = (tensor.transpose(1, 2) for tensor in tensors)  # [B, heads, tokens, head width]
        options = {"skip_reshape": True, "skip_output_reshape": True, "transformer_options": transformer_options}
        return attention.optimized_attention(query, key, value, query.shape[1], **options).transpose(1, 2)

    return attend


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
        layers = block.attn1

        def patch(layer, inputs, index=index, layers=layers):
            (out,) = inputs
            of_block = {
                "block": ("transformer", index),
                "n_heads": layers.heads,
                "dim_head": out.shape[-1] // layers.heads,
                "img_slice": [text_tokens, out.shape[1]],
            }
            for function in patches:
                out = function(out, transformer_options | of_block)
            return (out,)

        handles.append(layers.to_out[0].register_forward_pre_hook(patch))
    # A block that was compiled without the patches would run without them.
    with torch.compiler.set_stance("force_eager") if patches else nullcontext():
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
