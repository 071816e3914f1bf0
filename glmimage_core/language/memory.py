"""How many bytes a vision-language model needs beside its weights."""

from typing import Any

from ..placement.prediction import SAMPLING_COPIES


def answer_bytes(config: Any, itemsize: int, *, prompt: int, answer: int, patches: int) -> int:
    """The largest of three: the widest vision layer over all patches, the prompt's prefill, the last token's decode.

    prompt, answer: tokens. patches: of all pictures. The counts of tensors are those alive together in transformers' layers; a
    test holds the prediction to 10 percent of a measured peak for prompts, pictures and long answers.
    """
    text, vision = config.get_text_config(), config.vision_config
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * head_width * itemsize
    old_keys = token_bytes / (2 * text.num_hidden_layers)  # of one layer, which live beside the new ones while the cache grows
    decode = (prompt + answer) * (token_bytes + old_keys) + text.vocab_size * 4 * SAMPLING_COPIES
    prefill = prompt * (token_bytes + (4 * text.intermediate_size + 5 * text.hidden_size) * itemsize)
    width = getattr(vision, "hidden_size", text.hidden_size)
    vision_layer = patches * (7 * width + 3 * getattr(vision, "out_hidden_size", 4 * width)) * itemsize
    return round(max(decode, prefill, vision_layer))
