"""The components of a GLM-Image checkpoint."""

import importlib
from collections.abc import Iterable
from pathlib import Path

import torch

from ...checkpoints.build import build_model, check_libraries
from ...checkpoints.folders import PIPELINE_INDEX, find_below, find_named, is_pipeline, read_json
from ...checkpoints.report import ComponentReport
from ..ar_model import HALVES

PIPELINE_CLASS = "GlmImagePipeline"
NANO = "nano (built in)"
BUILT_IN = {NANO: Path(__file__).resolve().parents[3] / "nano"}
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
    return find_named(name, found, roots, what="GLM-Image checkpoint", layout=f"{LAYOUT}; {built_in} needs no download")


SIDE_OF = {"vision_language_encoder": ("processor",), "text_encoder": ("tokenizer",)}


def skeleton(folder: Path, name: str, buffers: bool = False) -> torch.nn.Module:
    """The component built from its config: shapes without memory, but for its buffers if asked.

    Raises ValueError for a senseless config.
    """
    config_file = folder / name / "config.json"
    return build(name, read_json(config_file), config_file, buffers=buffers)


def model_class_of(name: str) -> type[torch.nn.Module]:
    """The class that a component is built as."""
    if name == "transformer":
        from ..transformer import GlmImageDit

        return GlmImageDit
    library, class_name = MODEL_CLASSES[name]
    return getattr(importlib.import_module(library), class_name)


def build(
    name: str,
    config: dict,
    source: Path | str,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
    buffers: bool = False,
) -> torch.nn.Module:
    """A component of a config, as `build.build_model` makes it."""
    check_libraries()
    return build_model(model_class_of(name), config, source, device=device, dtype=dtype, buffers=buffers)


def report_of_part(report: ComponentReport, part: str) -> ComponentReport:
    """What a report says of a part of its component, by the part's name in `Component.parts`."""
    return report.below(HALVES[part].holds) if part in HALVES else report


STEMS = {"vision_language_encoder": "model", "transformer": "diffusion_pytorch_model"}  # as the libraries name the files
FOLDERS = {"vision_language_encoder": "text_encoders", "transformer": "diffusion_models", "vae": "vae"}
"""Where ComfyUI keeps the files of each component that can be a single file."""
