"""A random vision-language checkpoint of the Glmga family, a few hundred KB, as transformers' Auto classes open it.

One folder holds the config, safetensors, tokenizer, chat template, image processor and video processor.
"""

import json
from pathlib import Path

import torch

from ..checkpoints.folders import check_empty
from .weights import randomize

SPECIAL = (
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|image|>", "<|begin_of_image|>",
    "<|end_of_image|>", "<|video|>", "<|begin_of_video|>", "<|end_of_video|>", "<think>", "</think>",
)  # fmt: skip
VOCABULARY = 256 + len(SPECIAL)
CHAT_TEMPLATE = (
    "[gMASK]<sop>"
    "{%- for message in messages -%}<|{{ message.role }}|>\n"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|begin_of_image|><|image|><|end_of_image|>"
    "{%- elif part.type == 'video' -%}<|begin_of_video|><|video|><|end_of_video|>"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>\n{%- if enable_thinking is defined and not enable_thinking -%}"
    "<think></think>\n{%- endif -%}{%- endif -%}"
)


def write_vlm(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
    """Write a random checkpoint into a new or empty folder."""
    from transformers import Glm46VForConditionalGeneration, GlmgaConfig

    check_empty(folder)
    ids = {mark: 256 + index for index, mark in enumerate(SPECIAL)}
    config = GlmgaConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|endoftext|>"], ids["<|user|>"]],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_heads": 3,
            "out_hidden_size": 64,
            "image_size": 112,
        },
        **{f"{kind}_token_id": ids[f"<|{kind}|>"] for kind in ("image", "video")},
        **{
            f"{kind}_{edge}_token_id": ids[f"<|{mark}_of_{kind}|>"]
            for kind in ("image", "video")
            for edge, mark in (("start", "begin"), ("end", "end"))
        },
    )
    model = Glm46VForConditionalGeneration(config)
    randomize(model, f"{seed}/vlm")
    model.generation_config.update(do_sample=True, temperature=0.8, top_p=0.6, top_k=2)
    model.generation_config.update(eos_token_id=config.text_config.eos_token_id, pad_token_id=config.text_config.pad_token_id)
    model.to(dtype).save_pretrained(folder)
    _write_tokenizer(folder, ids)
    shared = {"processor_class": "Glm46VProcessor", "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    shared |= {"patch_expand_factor": 1, "size": {"shortest_edge": 56 * 56 * 2, "longest_edge": 224 * 224 * 2}}
    for name, own in (
        ("preprocessor_config", {"image_processor_type": "GlmgaImageProcessor"}),
        ("video_preprocessor_config", {"video_processor_type": "GlmgaVideoProcessor", "fps": 2, "max_frames": 8}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(shared | own, indent=2) + "\n", "utf-8")


def _write_tokenizer(folder: Path, ids: dict[str, int]) -> None:
    """Byte-level, without merges: one token a byte."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: index for index, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | ids
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={"image_token": "<|image|>", "video_token": "<|video|>"},
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
