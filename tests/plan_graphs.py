"""Graphs around kept plans, on the tiny checkpoint, by node name. `plan` makes the plan that all of them paint."""

from glm_image_pack.cli.graph.workflow import Workflow

PROMPT = 'a house, the word "OPEN"'
LOADED = {"checkpoint": "GLM-Image", "dtype": "auto"}
PAINTING = {
    "glyphs": ("GLMImageLoadGlyphEncoder", LOADED),
    "dit": ("GLMImageLoadDiT", LOADED | {"quantization": "none"}),
    "vae": ("GLMImageLoadVAE", LOADED),
    "text": (
        "GLMImageEncodePrompt",
        {"glyph_encoder": ["glyphs", 0], "prompt": ["plan", 1], "negative_prompt": "", "glyph_text": ""},
    ),
    "apply": ("GLMImageApplyPrior", {"positive": ["text", 0], "negative": ["text", 1], "prior": ["plan", 0]}),
    "sampler": (
        "GLMImageSampler",
        {
            "model": ["dit", 0],
            "positive": ["apply", 0],
            "negative": ["apply", 1],
            "seed": 3,
            "steps": 2,
            "cfg": 1.5,
            "denoise": 1.0,
        },
    ),
    "decode": ("GLMImageVAEDecode", {"vae": ["vae", 0], "samples": ["sampler", 0], "tiling": "auto"}),
}
PLANNING = PAINTING | {
    "ar": ("GLMImageLoadAR", LOADED | {"quantization": "none"}),
    "plan": (
        "GLMImageGeneratePrior",
        {
            **{"ar": ["ar", 0], "prompt": PROMPT, "width": 256, "height": 288, "batch_size": 2, "seed": 7},
            **{"temperature": 0.9, "top_p": 0.75, "top_k": 50},
        },
    ),
    "text": ("GLMImageEncodePrompt", PAINTING["text"][1] | {"prompt": PROMPT}),
    "save": ("GLMImageSavePrior", {"prior": ["plan", 0], "filename_prefix": "prior/GLM-Image"}),
    "save pictures": (
        "GLMImageSavePrior",
        {"prior": ["plan", 0], "images": ["decode", 0], "filename_prefix": "prior/picture %width%"},
    ),
}
STOCK = {
    "shifted": ("GLMImageModelSampling", {"model": ["dit", 0], "width": ["plan", 2], "height": ["plan", 3]}),
    "empty": ("EmptySD3LatentImage", {"width": ["plan", 2], "height": ["plan", 3], "batch_size": ["plan", 4]}),
    "sampler": (
        "KSampler",
        {
            **{"model": ["shifted", 0], "positive": ["apply", 0], "negative": ["apply", 1], "latent_image": ["empty", 0]},
            **{"seed": 3, "steps": 2, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
        },
    ),
}
"""KSampler in place of the pack's sampler, for a plan from Load Prior."""


def graph(nodes: dict[str, tuple[str, dict]]) -> Workflow:
    return Workflow({name: {"class_type": kind, "inputs": dict(inputs)} for name, (kind, inputs) in nodes.items()})


def painted_again(file: str, **changed: tuple[str, dict]) -> Workflow:
    """A graph that loads a plan and paints it."""
    save = ("SaveImage", {"images": ["decode", 0], "filename_prefix": "again"})
    return graph(PAINTING | {"plan": ("GLMImageLoadPrior", {"file": file}), "save": save} | changed)
