"""A random CogView3-Plus of a few MB, in the released layout."""

import json
from pathlib import Path

import torch

from ..checkpoints.folders import PIPELINE_INDEX, check_empty
from ..cogview3.plus import PIPELINE_CLASS
from ..cogview3.text import TOKENS
from .weights import randomize

WIDTH = 32  # of the text embeddings


def write_cogview3(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
    """Write a random checkpoint into a new or empty folder."""
    from diffusers import AutoencoderKL, CogVideoXDDIMScheduler, CogView3PlusTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    check_empty(folder)
    tokenizer = _tokenizer()
    models = {
        "text_encoder": T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer),
                d_model=WIDTH,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        ),
        "transformer": CogView3PlusTransformer2DModel(
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            text_embed_dim=WIDTH,
            time_embed_dim=32,
            condition_dim=8,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=16,
            norm_num_groups=4,
            sample_size=1024,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.8,
        ),
    }
    for name, model in models.items():
        randomize(model, f"{seed}/cogview3/{name}")
        model.to(dtype).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        snr_shift_scale=4.0,
        timestep_spacing="trailing",
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": PIPELINE_CLASS,
        "_diffusers_version": "0.31.0",
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogView3PlusTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / PIPELINE_INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _tokenizer():
    """A SentencePiece tokenizer as T5's, with one piece for each printable ASCII character."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((chr(code), -3.0) for code in range(33, 127))]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TOKENS)
