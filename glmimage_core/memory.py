"""How many bytes each stage needs beside its weights, predicted from the configs.

Each stage's peak is where most tensors live at once; the formulas count those tensors. They were checked against the
allocator on the CPU (tests/test_memory.py does it again): within 10 % for float32. In bfloat16 some tensors are float32
all the same, which BF16_OVERHEAD accounts for.
"""

from typing import Any

from .diffusion import LATENT_PX, dit_token_count, share_a_pass
from .placement.prediction import BF16_OVERHEAD, SAMPLING_COPIES, Job


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


def cogview3_bytes(config: Any, itemsize: int, job: Job) -> int:
    """The passes of CogView3-Plus: a feed-forward, 13.4 tensors of the stream's width. job.glyph_tokens: of the prompt."""
    side = job.batch * (dit_token_count(job.width, job.height) + job.glyph_tokens)
    together = job.guided and share_a_pass(side)
    width = config.num_attention_heads * config.attention_head_dim
    latents = job.batch * config.in_channels * (job.width // LATENT_PX) * (job.height // LATENT_PX) * 4
    half = BF16_OVERHEAD if itemsize < 4 else 1
    return round(13.4 * half * side * (2 if together else 1) * width * itemsize + latents * (1 if job.guided else 0))


def unet_bytes(config: Any, itemsize: int, job: Job) -> int:
    """The passes of CogView3-Base: its last level, 5.4 tensors of the two upper levels' widths, or its widest convolution.

    A CPU lays that convolution's weights out anew.
    """
    latents = job.batch * (job.width // LATENT_PX) * (job.height // LATENT_PX)
    together = job.guided and share_a_pass(job.batch * dit_token_count(job.width, job.height))
    upper, widest = sum(config.block_out_channels[:2]), config.block_out_channels[-1]
    stream = latents * (2 if together else 1) * upper * itemsize
    return round(max(5.4 * stream, 9 * 2 * widest**2 * itemsize + 2.4 * stream))


def t5_bytes(config: Any, itemsize: int, tokens: int) -> int:
    """T5's widest layer: the feed-forward of all tokens, or the scores of its heads with their position bias.

    Of the scores there are three in memory in transformers 5.23 and four in 5.1.
    """
    feeding = tokens * (3 * config.d_ff + 4 * config.d_model) * itemsize
    attending = config.num_heads * tokens**2 * 4 * itemsize + tokens * 6 * config.d_model * itemsize
    return max(feeding, attending)
