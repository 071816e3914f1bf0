"""Random GLM-Image checkpoints in the released layout."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ..checkpoints.folders import PIPELINE_INDEX, check_empty
from ..glm_image.files.components import PIPELINE_CLASS
from ..glm_image.trained_on import FIELD
from .spec import SPECS, ModelSpec
from .weights import randomize

SPECIAL = ("<|endoftext|>", "<sop>", "<eop>", "<|image|>")
CHAT_TEMPLATE = (
    "{{%- for message in messages -%}}{{%- for part in message.content -%}}"
    "{{%- if part.type == 'image' -%}}<|dit_token_{start}|><|image|><|dit_token_{end}|>"
    "{{%- else -%}}{{{{ part.text }}}}{{%- endif -%}}"
    "{{%- endfor -%}}{{%- endfor -%}}"
)


def write_checkpoint(folder: Path, size: str = "tiny", seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
    """Write a random checkpoint into a new or empty folder. size: one of SPECS."""
    write_layout(folder, SPECS[size], seed)
    for name, build in _builders(SPECS[size], seed).items():
        model = build()
        randomize(model, f"{seed}/{name}")
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        model.save_pretrained(folder / name)


def write_layout(folder: Path, spec: ModelSpec, seed: int = 0) -> None:
    """Write all of a checkpoint but its weights into a new or empty folder."""
    check_empty(folder)
    for name, build in _builders(spec, seed).items():
        with torch.device("meta"):
            model = build()
        if hasattr(model, "save_config"):  # diffusers
            model.save_config(folder / name)
        else:
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(folder / name)
        if name == "vision_language_encoder":
            model.generation_config.save_pretrained(folder / name)
    _write_processor(folder / "processor", spec)
    _write_glyph_tokenizer(folder / "tokenizer")
    _write_scheduler(folder / "scheduler")
    (folder / PIPELINE_INDEX).write_text(json.dumps(_INDEX, indent=2) + "\n", "utf-8")


def _builders(spec: ModelSpec, seed: int) -> dict[str, Callable[[], torch.nn.Module]]:
    """A function for each component that builds its model with the library's own first weights."""
    return {
        "vision_language_encoder": partial(_build_ar, spec),
        "text_encoder": partial(_build_glyph_encoder, spec),
        "transformer": partial(_build_dit, spec),
        "vae": partial(_build_vae, spec, seed),
    }


def _build_ar(spec: ModelSpec):
    from transformers import GlmImageConfig, GlmImageForConditionalGeneration

    rotary_pairs = spec.ar_width // spec.ar_heads // 4  # half of each head rotates
    in_time = rotary_pairs // 4
    in_rows = (rotary_pairs - in_time) // 2
    config = GlmImageConfig(
        text_config={
            "vocab_size": spec.vocabulary,
            "vision_vocab_size": spec.text_start,
            "hidden_size": spec.ar_width,
            "intermediate_size": spec.ar_mlp_width,
            "num_hidden_layers": spec.ar_layers,
            "num_attention_heads": spec.ar_heads,
            "num_key_value_heads": 2,
            "pad_token_id": spec.special_ids[0],
            "eos_token_id": spec.image_end,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": spec.rope_theta,
                "partial_rotary_factor": 0.5,
                "mrope_section": [in_time, in_rows, rotary_pairs - in_time - in_rows],
            },
        },
        vision_config={
            "depth": spec.vision_layers,
            "hidden_size": spec.vision_width,
            "intermediate_size": spec.vision_mlp_width,
            "num_heads": spec.vision_heads,
            "image_size": spec.vision_image_px,
        },
        vq_config={"embed_dim": spec.codebook_width, "num_embeddings": spec.codebook_rows, "latent_channels": spec.vision_width},
        image_token_id=spec.special_ids[SPECIAL.index("<|image|>")],
        image_start_token_id=spec.image_start,
        image_end_token_id=spec.image_end,
        **{FIELD: dict(spec.trained_on)},
    )
    model = GlmImageForConditionalGeneration(config)
    model.generation_config.update(do_sample=True, temperature=0.9, top_p=0.75, eos_token_id=spec.image_end)
    return model


def _build_glyph_encoder(spec: ModelSpec):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=384,
            d_model=spec.glyph_width,
            d_kv=spec.glyph_head_width,
            d_ff=spec.glyph_mlp_width,
            num_layers=spec.glyph_layers,
            num_heads=spec.glyph_heads,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def _build_dit(spec: ModelSpec):
    from diffusers import GlmImageTransformer2DModel

    return GlmImageTransformer2DModel(
        num_layers=spec.dit_layers,
        num_attention_heads=spec.dit_heads,
        attention_head_dim=spec.dit_head_width,
        text_embed_dim=spec.glyph_width,
        time_embed_dim=spec.dit_time_width,
        condition_dim=spec.dit_condition_width,
        prior_vq_quantizer_codebook_size=spec.codebook_rows,
    )


def _build_vae(spec: ModelSpec, seed: int):
    """seed: of the statistics of its latents, which are in its config."""
    from diffusers import AutoencoderKL

    generator = torch.Generator("cpu").manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=spec.vae_widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=spec.vae_layers_per_block,
        latent_channels=16,
        norm_num_groups=spec.vae_norm_groups,
        mid_block_add_attention=spec.vae_mid_attention,
        sample_size=1024,
        use_quant_conv=False,
        use_post_quant_conv=False,
        latents_mean=(torch.randn(16, generator=generator, device="cpu") * 0.1).tolist(),
        latents_std=(torch.rand(16, generator=generator, device="cpu") + 0.5).tolist(),
    )


def _write_processor(folder: Path, spec: ModelSpec) -> None:
    """A byte-level tokenizer with the released control tokens, and the image processor."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Byte-level BPE: without merges each byte is a token, in every script.
    vocabulary = {f"<|dit_token_{i}|>": i for i in range(spec.text_start)}
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in spec.tokenizer_merges)]
    vocabulary |= {piece: spec.text_start + i for i, piece in enumerate(pieces)}
    vocabulary |= dict(zip(SPECIAL, spec.special_ids, strict=True))
    vocabulary |= {f"<|unused_{i}|>": i for i in sorted(set(range(max(vocabulary.values()))) - set(vocabulary.values()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(spec.tokenizer_merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    start, end = (f"<|dit_token_{i}|>" for i in (spec.image_start, spec.image_end))
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in (*SPECIAL, start, end)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"},
        chat_template=CHAT_TEMPLATE.format(start=spec.image_start, end=spec.image_end),
    ).save_pretrained(folder)
    shortest, longest = spec.reference_edges_px
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
