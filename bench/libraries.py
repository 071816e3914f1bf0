"""transformers' and diffusers' own code, over the models that are measured: the same objects, so the same weights and memory."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ..glmimage_core.diffusion import Grid
from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.dit import Dit
from ..glmimage_core.glm_image.geometry import prior_for_dit, prior_grid
from ..glmimage_core.glm_image.glyphs import GlyphEncoder
from ..glmimage_core.vae import Vae
from .measure import Case


@torch.inference_mode()
def generate(ar: ArModel, ids: torch.Tensor, grids: Sequence[Grid], *, batch: int, seed: int) -> torch.Tensor:
    """transformers' generate on a prompt without references, forced to emit all tokens of the grids.

    ids: [S]. grids: in the order in which they are emitted. Returns [B, S + T] int64.
    """
    torch.manual_seed(seed)  # it takes no generator
    tokens = sum(grid.tokens for grid in grids)
    ids = ids.expand(batch, -1).to(ar.device)
    return ar.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        image_grid_thw=torch.tensor([[1, *grid] for grid in reversed(grids)] * batch, device=ar.device),
        images_per_sample=torch.tensor([len(grids)] * batch, device=ar.device),
        do_sample=True,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
    )


def pipeline(folder: Path, dit: Dit, vae: Vae, *, ar: ArModel | None = None, encoder: GlyphEncoder | None = None):
    """diffusers' pipeline over these models. Without AR model and glyph encoder it needs prior tokens and embeddings."""
    from diffusers import FlowMatchEulerDiscreteScheduler, GlmImagePipeline
    from transformers import GlmImageProcessor

    processor = None
    if ar is not None:
        tokenizer = ar.tokenizer
        processor = GlmImageProcessor(
            image_processor=ar.image_processor, tokenizer=tokenizer, chat_template=tokenizer.chat_template
        )
    pipe = GlmImagePipeline(
        tokenizer=encoder and encoder.tokenizer,
        processor=processor,
        text_encoder=encoder and encoder.model,
        vision_language_encoder=ar and ar.model,
        vae=vae.model,
        transformer=diffusers_transformer(dit.model),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffusers_transformer(model: torch.nn.Module) -> torch.nn.Module:
    """diffusers' own classes over the layers of a DiT."""
    from diffusers import GlmImageTransformer2DModel
    from diffusers.models.transformers.transformer_glm_image import GlmImageAttnProcessor, GlmImageTransformerBlock

    blocks = []
    for block in model.transformer_blocks:
        attention = copy.copy(block.attn1)
        attention.set_processor(GlmImageAttnProcessor())
        blocks.append(_as(GlmImageTransformerBlock, block, attn1=attention))
    return _as(GlmImageTransformer2DModel, model, transformer_blocks=torch.nn.ModuleList(blocks))


def _as(kind: type[torch.nn.Module], module: torch.nn.Module, **replaced: torch.nn.Module) -> torch.nn.Module:
    """Another class over the parts of a module, of which some are replaced."""
    other = copy.copy(module)
    other.__class__, other._modules = kind, module._modules | replaced
    return other


def prior_arguments(tokens: torch.Tensor, device: torch.device) -> dict:
    """The pipeline's arguments for given prior tokens [B, height / 32, width / 32]."""
    return {"prior_token_ids": prior_for_dit(tokens).to(device)}


def reference_arguments(picture: Image.Image, vision_tokens: torch.Tensor, *, batch: int, device: torch.device) -> dict:
    """The pipeline's arguments for one reference with given vision tokens [height / 32, width / 32].

    The pipeline's own way to the vision tokens fails with today's transformers. It still encodes the picture and computes its
    keys and values, once for each image of the batch.
    """
    height, width = vision_tokens.shape
    return {
        "image": [[picture]] * batch,
        "prior_token_image_ids": [prior_for_dit(vision_tokens[None])[0].to(device)] * batch,
        "source_image_grid_thw": [torch.tensor([[1, 2 * height, 2 * width]], device=device)] * batch,
    }


@torch.inference_mode()
def generate_edit(pipe, prompt: str, picture: Image.Image, case: Case, *, seed: int) -> torch.Tensor:
    """The AR stage of the pipeline's edit, forced to emit all prior tokens. Returns [B, height / 32, width / 32] int64."""
    torch.manual_seed(seed)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]
    inputs = pipe.processor.apply_chat_template(
        [[{"role": "user", "content": content}]] * case.batch,
        tokenize=True,
        target_h=case.height,
        target_w=case.width,
        return_dict=True,
        return_tensors="pt",
    ).to(pipe.vision_language_encoder.device)
    grid = prior_grid(case.width, case.height)
    count = {"min_new_tokens": grid.tokens, "max_new_tokens": grid.tokens}
    emitted = pipe.vision_language_encoder.generate(**inputs, do_sample=True, **count)
    return emitted[:, -grid.tokens :].reshape(-1, *grid)
