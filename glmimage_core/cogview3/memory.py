"""How many bytes T5, CogView3-Plus and CogView3-Base need beside their weights.

The factors say how many tensors are alive together at the peak, as PyTorch's profiler saw it on the CPU. Tests hold the DiT and
the UNets to 10 percent of a measured peak, and T5 to at most what is predicted.
"""

from typing import Any

from ..diffusion import LATENT_PX, batches_cfg, dit_token_count
from ..placement.prediction import BF16_OVERHEAD, Job

DIT_TENSORS = 13.4  # of the stream's width, in the feed-forward of a block
UNET_TENSORS = 5.4  # of the first two levels' widths together, in the last level
UNET_CONV_TENSORS = 2.4  # of the same widths, beside the widest convolution


def cogview3_bytes(config: Any, itemsize: int, job: Job) -> int:
    """CogView3-Plus: the feed-forward of a block. job.glyph_tokens: tokens of the prompt."""
    tokens = job.batch * (dit_token_count(job.width, job.height) + job.glyph_tokens)
    sides = 2 if job.guided and batches_cfg(tokens) else 1
    width = config.num_attention_heads * config.attention_head_dim
    latents = job.batch * config.in_channels * (job.width // LATENT_PX) * (job.height // LATENT_PX) * 4  # float32
    overhead = BF16_OVERHEAD if itemsize < 4 else 1
    return round(DIT_TENSORS * overhead * tokens * sides * width * itemsize + latents * (1 if job.guided else 0))


def unet_bytes(config: Any, itemsize: int, job: Job) -> int:
    """CogView3-Base: the last level, or the widest convolution, whose 3 x 3 weights a CPU lays out anew."""
    cells = job.batch * (job.width // LATENT_PX) * (job.height // LATENT_PX)
    sides = 2 if job.guided and batches_cfg(job.batch * dit_token_count(job.width, job.height)) else 1
    upper, widest = sum(config.block_out_channels[:2]), config.block_out_channels[-1]
    stream = cells * sides * upper * itemsize
    convolution = 2 * widest * widest * 3 * 3 * itemsize  # from the joined input: twice the width
    return round(max(UNET_TENSORS * stream, convolution + UNET_CONV_TENSORS * stream))


def t5_bytes(config: Any, itemsize: int, tokens: int) -> int:
    """T5: the feed-forward of all tokens, or the attention scores with their position bias.

    Of the scores three are alive together in transformers 5.23, and four in 5.1.
    """
    feed_forward = tokens * (3 * config.d_ff + 4 * config.d_model) * itemsize
    attention = config.num_heads * tokens**2 * 4 * itemsize + tokens * 6 * config.d_model * itemsize
    return max(feed_forward, attention)
