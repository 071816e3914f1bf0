"""A random GLM-Image checkpoint in the released layout."""

import json
from pathlib import Path

import torch

from ..checkpoints.folders import check_empty
from ..glm_image.files.components import PIPELINE_CLASS
from .spec import SIZES, Size
from .weights import randomize

SPECIAL = ("<|endoftext|>", "<sop>", "<eop>", "<|image|>")
CHAT_TEMPLATE = (
    "{{%- for message in messages -%}}{{%- for part in message.content -%}}"
    "{{%- if part.type == 'image' -%}}<|dit_token_{start}|><|image|><|dit_token_{end}|>"
    "{{%- else -%}}{{{{ part.text }}}}{{%- endif -%}}"
    "{{%- endfor -%}}{{%- endfor -%}}"
)


def write_checkpoint(folder: Path, size: str = "tiny", seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
    """Write a random checkpoint of a size into a folder, which is made and must not hold anything yet."""
    shape = SIZES[size]
    write_layout(folder, shape, seed)
    for name, build in MODELS.items():
        model = build(shape, seed)
        randomize(model, f"{seed}/{name}")
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        model.save_pretrained(folder / name)


def write_layout(folder: Path, shape: Size, seed: int = 0) -> None:
    """Write all of a checkpoint but its weights, into a folder as write_checkpoint does."""
    check_empty(folder)
    for name, build in MODELS.items():
        with torch.device("meta"):
            model = build(shape, seed)
        if hasattr(model, "save_config"):  # diffusers
            model.save_config(folder / name)
        else:
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(folder / name)
        if name == "vision_language_encoder":
            model.generation_config.save_pretrained(folder / name)
    _write_processor(folder / "processor", shape)
    _write_glyph_tokenizer(folder / "tokenizer")
    _write_scheduler(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(_INDEX, indent=2) + "\n", "utf-8")


def _ar(shape: Size, seed: int):
    from transformers import GlmImageConfig, GlmImageForConditionalGeneration

    rotary = shape.ar_hidden // shape.ar_heads // 4  # half of each head, in pairs
    config = GlmImageConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "vision_vocab_size": shape.text_start,
            "hidden_size": shape.ar_hidden,
            "intermediate_size": shape.ar_mlp,
            "num_hidden_layers": shape.ar_layers,
            "num_attention_heads": shape.ar_heads,
            "num_key_value_heads": 2,
            "pad_token_id": shape.special[0],
            "eos_token_id": shape.image_end,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": shape.rope_theta,
                "partial_rotary_factor": 0.5,
                "mrope_section": [rotary // 4, (rotary - rotary // 4) // 2, rotary - rotary // 4 - (rotary - rotary // 4) // 2],
            },
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_mlp,
            "num_heads": shape.vision_heads,
            "image_size": shape.vision_px,
        },
        vq_config={"embed_dim": shape.vq_width, "num_embeddings": shape.codebook, "latent_channels": shape.vision_hidden},
        image_token_id=shape.special[SPECIAL.index("<|image|>")],
        image_start_token_id=shape.image_start,
        image_end_token_id=shape.image_end,
    )
    model = GlmImageForConditionalGeneration(config)
    model.generation_config.update(do_sample=True, temperature=0.9, top_p=0.75, eos_token_id=shape.image_end)
    return model


def _glyph_encoder(shape: Size, seed: int):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=384,
            d_model=shape.glyph_width,
            d_kv=shape.glyph_head_width,
            d_ff=shape.glyph_mlp,
            num_layers=shape.glyph_layers,
            num_heads=shape.glyph_heads,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def _dit(shape: Size, seed: int):
    from diffusers import GlmImageTransformer2DModel

    return GlmImageTransformer2DModel(
        num_layers=shape.dit_layers,
        num_attention_heads=shape.dit_heads,
        attention_head_dim=shape.dit_head_width,
        text_embed_dim=shape.glyph_width,
        time_embed_dim=shape.dit_time,
        condition_dim=shape.dit_condition,
        prior_vq_quantizer_codebook_size=shape.codebook,
    )


def _vae(shape: Size, seed: int):
    from diffusers import AutoencoderKL

    generator = torch.Generator("cpu").manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=shape.vae_blocks,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=shape.vae_layers,
        latent_channels=16,
        norm_num_groups=shape.vae_groups,
        mid_block_add_attention=shape.vae_attention,
        sample_size=1024,
        use_quant_conv=False,
        use_post_quant_conv=False,
        latents_mean=(torch.randn(16, generator=generator, device="cpu") * 0.1).tolist(),
        latents_std=(torch.rand(16, generator=generator, device="cpu") + 0.5).tolist(),
    )


MODELS = {"vision_language_encoder": _ar, "text_encoder": _glyph_encoder, "transformer": _dit, "vae": _vae}
"""What builds each component's model, (size, seed) -> model with the library's own first weights."""


def _write_processor(folder: Path, shape: Size) -> None:
    """A byte-level tokenizer with the released control tokens, and the image processor."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Byte-level BPE; without merges one token a byte, whatever the script.
    vocabulary = {f"<|dit_token_{i}|>": i for i in range(shape.text_start)}
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in shape.merges)]
    vocabulary |= {piece: shape.text_start + i for i, piece in enumerate(pieces)}
    vocabulary |= dict(zip(SPECIAL, shape.special, strict=True))
    vocabulary |= {f"<|unused_{i}|>": i for i in sorted(set(range(max(vocabulary.values()))) - set(vocabulary.values()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(shape.merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    start, end = (f"<|dit_token_{i}|>" for i in (shape.image_start, shape.image_end))
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in (*SPECIAL, start, end)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"},
        chat_template=CHAT_TEMPLATE.format(start=shape.image_start, end=shape.image_end),
    ).save_pretrained(folder)
    shortest, longest = shape.edges
    processor = _IMAGE_PROCESSOR | {"size": {"shortest_edge": shortest**2, "longest_edge": longest**2}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", "utf-8")


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
