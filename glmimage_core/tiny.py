"""Writes small random checkpoints in the released layout: real classes, real files, no meaning.

Two sizes: "tiny" (a few MB, for tests and demonstrations) and "medium" (hidden 1024, 16 layers, for benchmarks). Weights
depend on the seed and on each tensor's name only, so every supported library version writes the same ones.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import PIPELINE_CLASS

CODEBOOK = 256  # rows; the released checkpoint has 16384
BEYOND = 128  # ids of the head beyond the codebook, as in the released checkpoint; the first two mark image start and end
TEXT_START = CODEBOOK + BEYOND  # first id of the 256 byte tokens
SPECIAL = ("<|endoftext|>", "<sop>", "<eop>", "<|image|>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|dit_token_256|><|image|><|dit_token_257|>"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endfor -%}"
)


@dataclass(frozen=True)
class Size:
    """Widths and depths of one size of random checkpoint."""

    ar_hidden: int
    ar_layers: int
    ar_heads: int
    vision_hidden: int
    vision_layers: int
    dit_heads: int
    dit_head_width: int
    dit_layers: int
    glyph_width: int
    vae_blocks: tuple[int, int, int, int]


SIZES = {
    "tiny": Size(64, 2, 4, 32, 2, 2, 32, 2, 32, (16, 32, 32, 32)),
    "medium": Size(1024, 16, 8, 256, 4, 8, 128, 16, 256, (32, 64, 128, 128)),
}


def write_checkpoint(folder: Path, size: str = "tiny", seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
    """Write a random checkpoint of a size into a folder, which is made and must not hold anything yet."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    shape = SIZES[size]
    models = {
        "vision_language_encoder": _ar(shape),
        "text_encoder": _glyph_encoder(shape),
        "transformer": _dit(shape),
        "vae": _vae(shape, seed),
    }
    for name, model in models.items():
        fill(model, f"{seed}/{name}")
        if name == "vision_language_encoder":
            # Ids beyond the codebook are as unlikely as in the trained model, whose reference does not mask them.
            model.lm_head.weight.data[CODEBOOK:] = 0
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        model.save_pretrained(folder / name)
    _write_processor(folder / "processor")
    _write_glyph_tokenizer(folder / "tokenizer")
    _write_scheduler(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(_INDEX, indent=2) + "\n", "utf-8")


@torch.no_grad()
def fill(model: torch.nn.Module, key: str) -> None:
    """Fill a model with random weights that keep activations near unit size, so that every input shows in the output."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for name, parameter in model.named_parameters():
        number = int.from_bytes(hashlib.sha256(f"{key}/{name}".encode()).digest()[:7], "big")
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        if parameter.ndim == 1:  # norms around 1, biases around 0
            parameter.copy_(0.1 * noise + (1 if name.endswith("weight") else 0))
        elif id(parameter) in tables:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)


def _ar(shape: Size):
    from transformers import GlmImageConfig, GlmImageForConditionalGeneration

    rotary = shape.ar_hidden // shape.ar_heads // 4  # half of each head, in pairs
    config = GlmImageConfig(
        text_config={
            "vocab_size": TEXT_START + 256 + len(SPECIAL),
            "vision_vocab_size": TEXT_START,
            "hidden_size": shape.ar_hidden,
            "intermediate_size": shape.ar_hidden * 3,
            "num_hidden_layers": shape.ar_layers,
            "num_attention_heads": shape.ar_heads,
            "num_key_value_heads": 2,
            "pad_token_id": TEXT_START + 256,
            "eos_token_id": CODEBOOK + 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [rotary // 4, (rotary - rotary // 4) // 2, rotary - rotary // 4 - (rotary - rotary // 4) // 2],
            },
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_hidden * 2,
            "num_heads": 2,
            "image_size": 256,
        },
        vq_config={"embed_dim": 16, "num_embeddings": CODEBOOK, "latent_channels": shape.vision_hidden},
        image_token_id=TEXT_START + 256 + SPECIAL.index("<|image|>"),
        image_start_token_id=CODEBOOK,
        image_end_token_id=CODEBOOK + 1,
    )
    model = GlmImageForConditionalGeneration(config)
    model.generation_config.update(do_sample=True, temperature=0.9, top_p=0.75, eos_token_id=CODEBOOK + 1)
    return model


def _glyph_encoder(shape: Size):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=384,
            d_model=shape.glyph_width,
            d_kv=8,
            d_ff=shape.glyph_width * 2,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def _dit(shape: Size):
    from diffusers import GlmImageTransformer2DModel

    return GlmImageTransformer2DModel(
        num_layers=shape.dit_layers,
        num_attention_heads=shape.dit_heads,
        attention_head_dim=shape.dit_head_width,
        text_embed_dim=shape.glyph_width,
        time_embed_dim=64,
        condition_dim=32,
        prior_vq_quantizer_codebook_size=CODEBOOK,
    )


def _vae(shape: Size, seed: int):
    from diffusers import AutoencoderKL

    generator = torch.Generator().manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=shape.vae_blocks,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=1024,
        use_quant_conv=False,
        use_post_quant_conv=False,
        latents_mean=(torch.randn(16, generator=generator) * 0.1).tolist(),
        latents_std=(torch.rand(16, generator=generator) + 0.5).tolist(),
    )


def _write_processor(folder: Path) -> None:
    """A byte-level tokenizer with the released control tokens, and the image processor at a quarter of its sizes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Byte-level BPE without merges: one token a byte, whatever the script.
    vocabulary = {f"<|dit_token_{i}|>": i for i in range(TEXT_START)}
    vocabulary |= {char: TEXT_START + i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {mark: TEXT_START + 256 + i for i, mark in enumerate(SPECIAL)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [*SPECIAL, f"<|dit_token_{CODEBOOK}|>", f"<|dit_token_{CODEBOOK + 1}|>"]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=f"<|dit_token_{CODEBOOK}|>",
        eos_token=f"<|dit_token_{CODEBOOK + 1}|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"},
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_IMAGE_PROCESSOR, indent=2) + "\n", "utf-8")


def _write_glyph_tokenizer(folder: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(folder)


def _write_scheduler(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="linear", base_shift=0.25, max_shift=0.75, base_image_seq_len=256
    ).save_pretrained(folder)


_IMAGE_PROCESSOR = {
    "image_processor_type": "GlmImageImageProcessor",
    "processor_class": "GlmImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": 1,
    "patch_size": 16,
    "temporal_patch_size": 1,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 128**2, "longest_edge": 512**2},
}

_INDEX = {
    "_class_name": PIPELINE_CLASS,
    "_diffusers_version": "0.37.0",
    "processor": ["transformers", "GlmImageProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "ByT5Tokenizer"],
    "transformer": ["diffusers", "GlmImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "vision_language_encoder": ["transformers", "GlmImageForConditionalGeneration"],
}
