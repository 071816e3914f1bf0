"""Measures what quantized weights change, as a table: `python scripts/measure_quantization.py CHECKPOINT [CHECKPOINT ...]`.

    forced      share of prior tokens that are the exact model's, each drawn after the exact model's tokens with the same noise
    free        the same in a run of its own, where one other token changes what follows
    latents     relative L2 distance of the latents after 10 steps, painted from the exact model's prior
    AR, DiT     bytes of the weights in memory

The exact model is the checkpoint in bfloat16. Needs comfy-kitchen.
"""

import argparse
from pathlib import Path

import _pack  # noqa: F401, before what it loads
import torch
from glm_image_pack.glmimage_core import GlmImage
from glm_image_pack.glmimage_core.glm_image.decoder import decode_window, filled_window, prefill
from glm_image_pack.glmimage_core.glm_image.denoise import sample
from glm_image_pack.glmimage_core.glm_image.draw import Noise, draw
from glm_image_pack.glmimage_core.glm_image.geometry import preview_grid, prior_grid
from glm_image_pack.glmimage_core.glm_image.layout import lay_out
from glm_image_pack.glmimage_core.glm_image.prior import Prior
from glm_image_pack.glmimage_core.placement.residency import model_bytes
from glm_image_pack.glmimage_core.units import human_bytes
from glm_image_pack.glmimage_core.weights.formats import FORMATS, dequantized
from glm_image_pack.glmimage_core.weights.linear import QuantizedLinear

STEPS = 10
PROMPT = "a lighthouse in a storm"


def tokens_of(plan: Prior) -> torch.Tensor:
    return torch.cat((plan.preview.flatten(), plan.tokens.flatten()))


@torch.inference_mode()
def forced(glm: GlmImage, plan: Prior) -> torch.Tensor:
    """What a model draws after each of a plan's tokens, [T]."""
    large = prior_grid(plan.width, plan.height)
    layout, tokens = lay_out(glm.ar, PROMPT, [preview_grid(large), large], []), tokens_of(plan)
    logits, state = prefill(glm.ar, layout.ids, layout.positions, layout.following[:, :-1], batch=1)
    rows = len(tokens) - 1
    following = decode_window(state, tokens[None, :-1], filled_window(state, torch.tensor([0]), rows))
    width = glm.ar.model.config.text_config.vision_vocab_size
    noise = Noise([plan.seed], places=len(tokens), width=width, kept=glm.ar.codebook_size)
    return draw(plan.sampling, torch.cat((logits[:, None], following), dim=1), noise.windows([0], len(tokens)))[0]


def paint(glm: GlmImage, plan: Prior) -> torch.Tensor:
    """Latents painted with random glyph embeddings, [1, 16, h, w] float32."""
    generator = torch.Generator().manual_seed(0)
    glyphs = torch.randn(1, 8, glm.dit.model.config.text_embed_dim, generator=generator).to(glm.dit.dtype)
    return sample(glm.dit, plan, glyphs, glyphs[:, :1], seeds=[plan.seed], steps=STEPS).float()


def at_full_width(component):
    """fp8 and nf4 compute with the weights at full width: the same numbers without widening them for each product."""
    for layer in component.model.modules():
        if isinstance(layer, QuantizedLinear) and layer.weight._layout_cls != "TensorWiseINT8Layout":
            layer.__class__ = torch.nn.Linear
            layer.weight = torch.nn.Parameter(dequantized(layer.weight), requires_grad=False)
    return component


def measure(folder: Path, size: int, seeds: range) -> None:
    print(
        "| checkpoint | quantization | tokens, forced | tokens, free | latents | AR | DiT |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    exact = GlmImage.load(folder, dtype="bfloat16")
    plans = [exact.plan(PROMPT, size, size, seed=seed) for seed in seeds]
    pictures = [paint(exact, plan) for plan in plans]
    print(f"| {folder.name} | none | 100 % | 100 % | 0 | {_sizes(exact)} |", flush=True)
    for form in FORMATS:
        glm = GlmImage.load(folder, dtype="bfloat16", quantization=form)
        sizes = _sizes(glm)
        for component in (glm.ar, glm.dit):
            at_full_width(component)
        after = [(forced(glm, plan) == tokens_of(plan)).float().mean() for plan in plans]
        alone = [(tokens_of(glm.plan(PROMPT, size, size, seed=plan.seed)) == tokens_of(plan)).float().mean() for plan in plans]
        errors = [(paint(glm, plan) - picture).norm() / picture.norm() for plan, picture in zip(plans, pictures, strict=True)]
        shares = " | ".join(f"{100 * torch.stack(values).mean():.1f} %" for values in (after, alone))
        print(f"| {folder.name} | {form} | {shares} | {torch.stack(errors).mean():.4f} | {sizes} |", flush=True)


def _sizes(glm: GlmImage) -> str:
    return " | ".join(human_bytes(model_bytes(component.model)) for component in (glm.ar, glm.dit))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--size", type=int, default=256, help="of the pictures, in pixels")
    parser.add_argument("--seeds", type=int, default=2, help="how many pictures")
    options = parser.parse_args()
    for checkpoint in options.checkpoints:
        measure(checkpoint, options.size, range(options.seeds))
