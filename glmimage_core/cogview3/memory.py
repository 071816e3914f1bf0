"""How many bytes T5 and both CogView3s need beside their weights."""

from typing import Any

from ..diffusion import LATENT_PX, batches_cfg, dit_token_count
from ..placement.prediction import BF16_OVERHEAD, Job


def cogview3_bytes(config: Any, itemsize: int, job: Job) -> int:
    """The passes of CogView3-Plus: a feed-forward, 13.4 tensors of the stream's width. job.glyph_tokens: of the prompt."""
    side = job.batch * (dit_token_count(job.width, job.height) + job.glyph_tokens)
    together = job.guided and batches_cfg(side)
    width = config.num_attention_heads * config.attention_head_dim
    latents = job.batch * config.in_channels * (job.width // LATENT_PX) * (job.height // LATENT_PX) * 4
    half = BF16_OVERHEAD if itemsize < 4 else 1
    return round(13.4 * half * side * (2 if together else 1) * width * itemsize + latents * (1 if job.guided else 0))


def unet_bytes(config: Any, itemsize: int, job: Job) -> int:
    """The passes of CogView3-Base: its last level, 5.4 tensors of the two upper levels' widths, or its widest convolution.

    A CPU lays that convolution's weights out anew.
    """
    latents = job.batch * (job.width // LATENT_PX) * (job.height // LATENT_PX)
    together = job.guided and batches_cfg(job.batch * dit_token_count(job.width, job.height))
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
