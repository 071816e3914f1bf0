"""Measures what quantized weights change, as a table: `python scripts/measure_quantization.py CHECKPOINT [CHECKPOINT ...]`.

    forced      share of prior tokens that are the exact model's, each drawn after the exact model's tokens with the same noise
    free        the same in a run of its own, where one other token changes what follows
    latents     relative L2 distance of the latents after 10 steps, painted from the exact model's prior
    AR, DiT     bytes of the weights in memory

The exact model is the checkpoint in bfloat16. Needs comfy-kitchen.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import _pack  # noqa: F401, before what it loads
import torch
from glm_image_pack.glmimage_core.glm_image import denoise, prior
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.placement import residency
from glm_image_pack.glmimage_core.units import human_bytes
from glm_image_pack.glmimage_core.weights.formats import FORMATS, dequantized
from glm_image_pack.glmimage_core.weights.linear import QuantizedLinear

STEPS = 10


def plan(ar, size: int, seed: int):
    return prior.generate_prior(ar, "a lighthouse in a storm", size, size, seed=seed)


def tokens_of(planned) -> torch.Tensor:
    return torch.cat((planned.preview.flatten(), planned.tokens.flatten()))


def forced(ar, planned) -> torch.Tensor:
    """What a model draws after each of a plan's tokens, [T]."""
    sampler, tokens, drawn = prior.sampler, tokens_of(planned), []

    def recording(sampling):
        draw = sampler(sampling)

        def record(logits, noise):
            drawn.append(draw(logits, noise))
            return tokens[None, len(drawn) - 1]

        return record

    with patch.object(prior, "sampler", recording):
        plan(ar, planned.width, planned.seed)
    return torch.cat(drawn)


def paint(dit, planned) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    glyphs = torch.randn(1, 8, dit.model.config.text_embed_dim, generator=generator).to(dit.dtype)
    return denoise.sample(dit, planned, glyphs, glyphs[:, :1], seeds=[planned.seed], steps=STEPS).float()


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
    ar, dit = checkpoints.load_ar(folder, "bfloat16"), checkpoints.load_dit(folder, "bfloat16")
    plans = [plan(ar, size, seed) for seed in seeds]
    pictures = [paint(dit, planned) for planned in plans]
    sizes = [human_bytes(residency.model_bytes(one.model)) for one in (ar, dit)]
    print(f"| {folder.name} | none | 100 % | 100 % | 0 | {sizes[0]} | {sizes[1]} |", flush=True)
    for form in FORMATS:
        ar, dit = (
            checkpoints.load_ar(folder, "bfloat16", quantization=form),
            checkpoints.load_dit(folder, "bfloat16", quantization=form),
        )
        sizes = [human_bytes(residency.model_bytes(one.model)) for one in (ar, dit)]
        ar, dit = at_full_width(ar), at_full_width(dit)
        after = [(forced(ar, planned) == tokens_of(planned)).float().mean() for planned in plans]
        alone = [(tokens_of(plan(ar, size, planned.seed)) == tokens_of(planned)).float().mean() for planned in plans]
        pairs = zip(plans, pictures, strict=True)
        errors = [(paint(dit, planned) - picture).norm() / picture.norm() for planned, picture in pairs]
        shares = [f"{100 * torch.stack(values).mean():.1f} %" for values in (after, alone)]
        row = f"{shares[0]} | {shares[1]} | {torch.stack(errors).mean():.4f} | {sizes[0]} | {sizes[1]}"
        print(f"| {folder.name} | {form} | {row} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--size", type=int, default=256, help="of the pictures, in pixels")
    parser.add_argument("--seeds", type=int, default=2, help="how many pictures")
    options = parser.parse_args()
    for checkpoint in options.checkpoints:
        measure(checkpoint, options.size, range(options.seeds))
