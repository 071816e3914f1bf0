"""How many bytes a vision-language model needs beside its weights."""

from typing import Any

from ..placement.prediction import SAMPLING_COPIES


def answer_bytes(config: Any, itemsize: int, prompt: int, answer: int, patches: int) -> int:
    """A vision-language model's answer: its pictures' widest layer, the prompt's, or the cache of all tokens with the next one.

    prompt, answer: tokens; patches: of all pictures.
    """
    text, vision = config.get_text_config(), config.vision_config
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * head_width * itemsize
    growing = token_bytes / (2 * text.num_hidden_layers)  # the keys of one layer, old and new
    decoding = (prompt + answer) * (token_bytes + growing) + text.vocab_size * 4 * SAMPLING_COPIES
    prefilling = prompt * (token_bytes + (4 * text.intermediate_size + 5 * text.hidden_size) * itemsize)
    width = getattr(vision, "hidden_size", text.hidden_size)
    seeing = patches * (7 * width + 3 * getattr(vision, "out_hidden_size", 4 * width)) * itemsize
    return round(max(decoding, prefilling, seeing))
