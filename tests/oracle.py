"""The reference implementation: diffusers' own pipeline, on the same checkpoint."""

from pathlib import Path

import torch
from PIL import Image


def load_pipeline(folder: Path):
    """The pipeline over a checkpoint, with the PIL image processor wherever there is a choice."""
    import diffusers
    from glm_image_pack.glmimage_core.glm_image.files.load import load_ar
    from transformers import GlmImageProcessor

    ar = load_ar(folder)
    processor = GlmImageProcessor(
        image_processor=ar.image_processor, tokenizer=ar.tokenizer, chat_template=ar.tokenizer.chat_template
    )
    pipeline = diffusers.GlmImagePipeline.from_pretrained(folder, processor=processor)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_pipeline(
    pipeline, prompt: str, width: int, height: int, steps: int, cfg: float, seed: int, references=None
) -> tuple[torch.Tensor, Image.Image]:
    """Run it once. Returns the prior tokens at the DiT's grid [1, tokens] and the picture."""
    planned = []
    generate = pipeline.generate_prior_tokens

    def keep(*args, **kwargs):
        planned.append(generate(*args, **kwargs))
        return planned[-1]

    pipeline.generate_prior_tokens = keep
    try:
        picture = pipeline(
            prompt,
            image=references,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=cfg,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
    finally:
        pipeline.generate_prior_tokens = generate
    return planned[0][0], picture
