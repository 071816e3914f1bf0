"""A checkpoint folder: its layout, and finding one.

The layout is diffusers': `model_index.json` names GlmImagePipeline, each component is a folder with a config and safetensors.
"""

from collections.abc import Iterable
from pathlib import Path

from .checkpoints.folders import PIPELINE_INDEX, find_below, find_named, is_pipeline

PIPELINE_CLASS = "GlmImagePipeline"
NANO = "nano (built in)"
BUILT_IN = {NANO: Path(__file__).resolve().parents[1] / "nano"}
"""Checkpoints that come with the pack, by name."""
MODEL_CLASSES = {
    "vision_language_encoder": ("transformers", "GlmImageForConditionalGeneration"),
    "text_encoder": ("transformers", "T5EncoderModel"),
    "transformer": ("diffusers", "GlmImageTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
SIDE_FILES = {"processor": ("tokenizer_config.json", "tokenizer.json"), "tokenizer": ("tokenizer_config.json",)}
LAYOUT = "a checkpoint is a folder with model_index.json (of a GlmImagePipeline) and the folders " + ", ".join(
    [*MODEL_CLASSES, *SIDE_FILES]
)


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder's model_index.json names the GLM-Image pipeline."""
    return is_pipeline(folder, PIPELINE_CLASS)


def list_checkpoints(roots: Iterable[Path]) -> dict[str, Path]:
    """Every checkpoint below the roots, by name."""
    return find_below(roots, lambda folder, files: PIPELINE_INDEX in files and is_checkpoint(folder))


def find_checkpoint(name: str, roots: Iterable[Path]) -> Path:
    """The folder of a checkpoint by name. Raises FileNotFoundError that says where it looked and what should be there.

    A user's own checkpoint of the name of a built-in one comes first.
    """
    roots = list(roots)
    found = list_checkpoints(roots)
    if folder := found.get(name) or BUILT_IN.get(name):
        return folder
    for root in roots:
        if (Path(root) / name / PIPELINE_INDEX).is_file():
            raise FileNotFoundError(f"{Path(root) / name / PIPELINE_INDEX} does not name a {PIPELINE_CLASS}; {LAYOUT}")
    built_in = ", ".join(map(repr, BUILT_IN))
    return find_named(name, found, roots, "GLM-Image checkpoint", f"{LAYOUT}; {built_in} needs no download")
