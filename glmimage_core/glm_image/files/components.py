"""The components of a GLM-Image checkpoint: one table of what each of them is on disk, and finding a checkpoint.

The layout is diffusers': `model_index.json` names GlmImagePipeline, and each component is a folder with a config and
safetensors. A component goes by the name of its folder everywhere; `title` is what people call it.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...checkpoints.build import build_model, check_libraries
from ...checkpoints.folders import PIPELINE_INDEX, find_named, find_pipelines, is_pipeline, read_json
from ...checkpoints.report import ComponentReport
from ...checkpoints.settings import finite_list, positive
from ...vae import LatentSpace
from ..ar_model import HALVES

PIPELINE_CLASS = "GlmImagePipeline"
RELEASED = "zai-org/GLM-Image"
NANO = "nano (built in)"
LIBRARY = Path(__file__).resolve().parents[2]
BUILT_IN = {NANO: next((folder for folder in (LIBRARY / "nano", LIBRARY.parent / "nano") if folder.is_dir()), LIBRARY / "nano")}
"""Checkpoints that come with the pack, by name: inside the library where pip installed it, beside it in the pack's folder."""

RELEASED_SPACE = LatentSpace(
    mean=(
        *(-0.2080078125, 1.875, -0.470703125, -1.265625, -1.421875, 0.77734375, -0.3671875, -0.9453125),
        *(0.318359375, 0.7734375, -0.1884765625, -0.022216796875, -0.220703125, -1.59375, -0.81640625, -0.255859375),
    ),
    std=(
        *(3.0625, 2.203125, 2.265625, 4.84375, 2.5, 3.9375, 2.203125, 3.03125),
        *(2.1875, 2.046875, 2.71875, 2.390625, 2.390625, 2.453125, 2.25, 2.15625),
    ),
)
"""The latent space of the released VAE, for single files that come without a checkpoint."""


def space_in(config: dict, source: Path) -> LatentSpace | None:
    """The latent space that a VAE's config, read from `source`, states. Raises ValueError for one that is not possible."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if not mean or not std:
        return None
    means = finite_list(mean, f"latents_mean in {source}")
    deviations = finite_list(std, f"latents_std in {source}")
    for value in deviations:
        positive(value, f"latents_std in {source}")
    if len(means) != len(deviations):
        raise ValueError(f"{source} has latents_mean of {len(means)} channels and latents_std of {len(deviations)}")
    return LatentSpace(means, deviations)


@dataclass(frozen=True, eq=False)
class ComponentKind:
    """What one component is on disk."""

    folder: str  # in a checkpoint
    title: str
    library: str  # that has its class
    class_name: str
    stem: str  # of its weight files, as its library names them
    side_files: Mapping[str, Sequence[str]] = field(default_factory=dict)  # what it needs beside it: files by their folder
    comfy_folder: str = ""  # where ComfyUI keeps single files of it; a component without one has no single files
    identifying_tensors: Sequence[str] = ()  # that tell a single file of it from other models' files
    assumed_config: Mapping[str, Any] = field(default_factory=dict)  # what the shapes of its tensors do not say, as released
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)  # `Component.parts` as the names of their modules

    @property
    def model_class(self) -> type[torch.nn.Module]:
        """The class that is built: the DiT is ours, a subclass of diffusers'."""
        if self.class_name == "GlmImageTransformer2DModel":
            from ..transformer import GlmImageDit

            return GlmImageDit
        return getattr(importlib.import_module(self.library), self.class_name)

    def build(self, config: dict, source: Path | str, **options) -> torch.nn.Module:
        """The model that a config describes, without its weights. source and options: as `build_model` takes them."""
        check_libraries()
        return build_model(self.model_class, config, source, **options)

    def part_of(self, report: ComponentReport, part: str) -> ComponentReport:
        """What a report on this component says of one of its parts, by the part's name in `Component.parts`."""
        return report.below(self.parts[part]) if part in self.parts else report

    def build_from(self, checkpoint: Path, **options) -> torch.nn.Module:
        """The model that a checkpoint's config describes, without its weights."""
        config = checkpoint / self.folder / "config.json"
        return self.build(read_json(config), config, **options)


AR = ComponentKind(
    folder="vision_language_encoder",
    title="AR model",
    library="transformers",
    class_name="GlmImageForConditionalGeneration",
    stem="model",
    side_files={"processor": ("tokenizer_config.json", "tokenizer.json")},
    comfy_folder="text_encoders",
    identifying_tensors=("vqmodel.quantize.embedding.weight", "language_model.embed_tokens.weight"),
    assumed_config={
        "text_config": {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [8, 12, 12],
            }
        }
    },
    parts={name: half.holds for name, half in HALVES.items()},
)
GLYPH_ENCODER = ComponentKind(
    folder="text_encoder",
    title="glyph encoder",
    library="transformers",
    class_name="T5EncoderModel",
    stem="model",
    side_files={"tokenizer": ("tokenizer_config.json",)},
)
DIT = ComponentKind(
    folder="transformer",
    title="DiT",
    library="diffusers",
    class_name="GlmImageTransformer2DModel",
    stem="diffusion_pytorch_model",
    comfy_folder="diffusion_models",
    identifying_tensors=("prior_token_embedding.weight", "glyph_projector.net.0.proj.weight"),
    assumed_config={"patch_size": 2},
)
VAE = ComponentKind(
    folder="vae",
    title="VAE",
    library="diffusers",
    class_name="AutoencoderKL",
    stem="diffusion_pytorch_model",
    comfy_folder="vae",
    identifying_tensors=(
        "decoder.up_blocks.0.resnets.0.conv1.weight",
        "encoder.down_blocks.0.resnets.0.conv1.weight",
    ),
)
COMPONENTS = {kind.folder: kind for kind in (AR, GLYPH_ENCODER, DIT, VAE)}
SIDE_FILES = {folder: files for kind in COMPONENTS.values() for folder, files in kind.side_files.items()}
LAYOUT = f"a checkpoint is a folder with {PIPELINE_INDEX} (of a {PIPELINE_CLASS}) and the folders " + ", ".join(
    [*COMPONENTS, *SIDE_FILES]
)


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder's model_index.json names the GLM-Image pipeline."""
    return is_pipeline(folder, PIPELINE_CLASS)


def list_checkpoints(roots: Iterable[Path]) -> dict[str, Path]:
    """Every checkpoint below the roots, by name."""
    return find_pipelines(roots, PIPELINE_CLASS)


def find_checkpoint(name: str, roots: Iterable[Path]) -> Path:
    """The folder of a checkpoint by name. Raises FileNotFoundError that says where it looked and what should be there.

    A user's own checkpoint with the name of a built-in one comes first.
    """
    roots = list(roots)
    found = list_checkpoints(roots)
    if folder := found.get(name) or BUILT_IN.get(name):
        return folder
    for root in roots:
        if (Path(root) / name / PIPELINE_INDEX).is_file():
            raise FileNotFoundError(f"{Path(root) / name / PIPELINE_INDEX} does not name a {PIPELINE_CLASS}; {LAYOUT}")
    into = f" into {Path(roots[0]) / 'GLM-Image'}" if roots else ""
    download = f"download {RELEASED} as it is{into} (about 35 GB, https://huggingface.co/{RELEASED})"
    built_in = ", ".join(map(repr, BUILT_IN))
    layout = f"{download}; {built_in} needs no download; {LAYOUT}"
    return find_named(name, found, roots, what="GLM-Image checkpoint", layout=layout)
