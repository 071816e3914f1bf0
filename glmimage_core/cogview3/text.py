"""What CogView3 is conditioned on: T5's embeddings of a prompt, and the sizes of SDXL's micro-conditioning."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..checkpoints.build import load_pretrained
from ..checkpoints.fill import CPU
from ..checkpoints.folders import PIPELINE_INDEX, find_below, find_named, glance_at, read_json
from ..checkpoints.report import ComponentReport, inspect_stored, resolve_dtype
from ..component import Component

if TYPE_CHECKING:
    from transformers import T5EncoderModel


TOKENS = 224  # of a prompt for CogView3-Plus, the end mark included
T5_LAYOUT = f"T5 is in the folders text_encoder and tokenizer beside a {PIPELINE_INDEX} that names T5EncoderModel and T5Tokenizer"
TOKENIZER_MODULES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""The packages with which transformers converts SentencePiece's file, and the modules that each installs."""


@dataclass(frozen=True, eq=False)
class TextEncoder(Component):
    """T5 with its tokenizer."""

    model: "T5EncoderModel"
    tokenizer: Any

    @property
    def parts(self) -> dict[str, torch.nn.Module]:
        return {"t5": self.model}

    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        return self.model.encoder.block


class MicroConditions(NamedTuple):
    """SDXL's size conditions (Podell et al. 2023, arXiv 2307.01952, section 2.2), (height, width) in pixels each.

    In training they described the training picture: its original size, how much was cropped off at the top and on the left, and
    its size after that. In sampling they choose what kind of training picture the result resembles.
    """

    original: tuple[int, int]
    cropped: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def uncropped(cls, width: int, height: int) -> "MicroConditions":
        """Those of a picture of width x height pixels that was neither scaled nor cropped."""
        return cls((height, width), (0, 0), (height, width))


class Encoded(NamedTuple):
    """embeddings: [1, tokens, D]. truncated: the end of a prompt that was too long, as text."""

    embeddings: torch.Tensor
    truncated: str


def list_text_encoders(roots: Sequence[Path]) -> dict[str, Path]:
    """The folders below the roots with T5 and its tokenizer, by name: CogView3-Plus, and other pipelines of diffusers."""
    return find_below(roots, lambda folder, files: PIPELINE_INDEX in files and _holds_t5(folder))


def _holds_t5(folder: Path) -> bool:
    index = glance_at(folder / PIPELINE_INDEX)
    tokenizers = (["transformers", "T5Tokenizer"], ["transformers", "T5TokenizerFast"])  # and not GLM-Image's ByT5
    return index.get("text_encoder") == ["transformers", "T5EncoderModel"] and index.get("tokenizer") in tokenizers


def find_text_encoder(name: str, roots: Sequence[Path]) -> Path:
    """The folder of that name with T5 in it. Raises FileNotFoundError that says where it looked."""
    return find_named(name, list_text_encoders(roots), roots, what="folder with T5", layout=T5_LAYOUT)


def check_text_encoder(folder: Path) -> ComponentReport:
    """What is stored of T5; reads no weights. Raises FileNotFoundError, ValueError or ImportError if it cannot be loaded."""
    report = inspect_stored(folder, "text_encoder", "T5EncoderModel")
    read_json(folder / "tokenizer" / "tokenizer_config.json")
    if not (folder / "tokenizer" / "tokenizer.json").is_file():  # the released folders have SentencePiece's file instead
        missing = [package for package, module in TOKENIZER_MODULES.items() if not _is_installed(module)]
        if missing:
            raise ImportError(f"the tokenizer of T5 needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    return report


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing too
        return False


def load_text_encoder(folder: Path, dtype: str = "auto", *, device: torch.device = CPU) -> TextEncoder:
    """Load T5 and its tokenizer from a folder that holds both, on the CPU. device: the one that will compute."""
    from transformers import AutoTokenizer, T5EncoderModel

    report = check_text_encoder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    chosen = resolve_dtype(dtype, report, device)
    return TextEncoder(load_pretrained(T5EncoderModel, folder / "text_encoder", dtype=chosen), tokenizer)


@torch.inference_mode()
def encode(encoder: TextEncoder, prompt: str, tokens: int = TOKENS) -> Encoded:
    """The embeddings of a prompt, truncated or padded to so many tokens. An empty prompt is all zeros."""
    if not prompt.strip():
        return Encoded(torch.zeros(1, tokens, encoder.model.config.d_model, dtype=encoder.dtype), "")
    all_ids = encoder.tokenizer(prompt).input_ids
    ids = encoder.tokenizer(prompt, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").input_ids
    truncated = encoder.tokenizer.decode(all_ids[tokens - 1 : -1]) if len(all_ids) > tokens else ""
    return Encoded(encoder.model(ids.to(encoder.device)).last_hidden_state.cpu(), truncated)


def check_embeddings(embeddings: Sequence[torch.Tensor], shape: tuple[int, int], family: str, source: str) -> None:
    """Raise ValueError unless all embeddings are [batch, *shape]: so many tokens of the width that the family reads.

    source: the node that gives such embeddings.
    """
    for side in embeddings:
        if tuple(side.shape[1:]) != shape:
            tokens, width = shape
            raise ValueError(
                f"the conditioning is {list(side.shape)}, and {family} reads [batch, {tokens}, {width}]; connect {source}"
            )
