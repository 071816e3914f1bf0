"""T5 and what both CogView3s read of it: embeddings of a prompt, and the size a picture claims to have had."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..checkpoints.build import load_pretrained
from ..checkpoints.folders import PIPELINE_INDEX, find_below, find_named, read_json
from ..checkpoints.report import ComponentReport, inspect_stored, resolve_dtype
from ..component import Component
from ..vae import LatentSpace

if TYPE_CHECKING:
    from transformers import T5EncoderModel


TOKENS = 224  # of a prompt, the end mark included
T5_LAYOUT = f"T5 is in the folders text_encoder and tokenizer beside a {PIPELINE_INDEX} that names T5EncoderModel and T5Tokenizer"


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
    """What the DiT is told of the picture that is pretended to be one of its training set: (height, width), pixels.

    original: of the whole; cropped: how much was cut off at top and left; target: of what came out.
    """

    original: tuple[int, int]
    cropped: tuple[int, int]
    target: tuple[int, int]


class Encoded(NamedTuple):
    """embeddings: [1, tokens, D]; truncated: the end of a prompt that was too long, as text."""

    embeddings: torch.Tensor
    truncated: str


def list_text_encoders(roots: Sequence[Path]) -> dict[str, Path]:
    """The folders below the roots with T5 and its tokenizer, by name: CogView3-Plus, and other pipelines of diffusers."""
    return find_below(roots, lambda folder, files: PIPELINE_INDEX in files and _holds_t5(folder))


def _holds_t5(folder: Path) -> bool:
    try:
        parts = read_json(folder / PIPELINE_INDEX)
    except (OSError, ValueError):
        return False
    tokenizers = (["transformers", "T5Tokenizer"], ["transformers", "T5TokenizerFast"])  # and not GLM-Image's ByT5
    return parts.get("text_encoder") == ["transformers", "T5EncoderModel"] and parts.get("tokenizer") in tokenizers


def find_text_encoder(name: str, roots: Sequence[Path]) -> Path:
    """The folder of that name with T5 in it. Raises FileNotFoundError that says where it looked."""
    return find_named(name, list_text_encoders(roots), roots, what="folder with T5", layout=T5_LAYOUT)


def check_text_encoder(folder: Path) -> ComponentReport:
    """What is stored of T5. Raises FileNotFoundError, ValueError or ImportError where it or its tokenizer cannot be loaded."""
    report = inspect_stored(folder, "text_encoder", "T5EncoderModel")
    read_json(folder / "tokenizer" / "tokenizer_config.json")
    if not (folder / "tokenizer" / "tokenizer.json").is_file():  # as released: SentencePiece's file, which transformers converts
        missing = [package for package, module in _CONVERTERS.items() if not _is_installed(module)]
        if missing:
            raise ImportError(f"the tokenizer of T5 needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    return report


_CONVERTERS = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing too
        return False


def load_text_encoder(folder: Path, dtype: str = "auto") -> TextEncoder:
    """Load T5 and its tokenizer from a folder that holds both, on the CPU."""
    from transformers import AutoTokenizer, T5EncoderModel

    report = check_text_encoder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return TextEncoder(load_pretrained(T5EncoderModel, folder / "text_encoder", dtype=resolve_dtype(dtype, report)), tokenizer)


@torch.inference_mode()
def encode(encoder: TextEncoder, prompt: str, tokens: int = TOKENS) -> Encoded:
    """A prompt's embeddings, cut off or padded to so many. An empty one is all zeros, which is what guidance steers away from."""
    if not prompt.strip():
        return Encoded(torch.zeros(1, tokens, encoder.model.config.d_model, dtype=encoder.dtype), "")
    whole = encoder.tokenizer(prompt).input_ids
    ids = encoder.tokenizer(prompt, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").input_ids
    truncated = encoder.tokenizer.decode(whole[tokens - 1 : -1]) if len(whole) > tokens else ""
    return Encoded(encoder.model(ids.to(encoder.device)).last_hidden_state.cpu(), truncated)


def check_embeddings(embeddings: Sequence[torch.Tensor], tokens: int, width: int, reader: str, source: str) -> None:
    """Raise ValueError, with the source to connect, unless all are [batch, tokens, width], as their reader wants them."""
    for side in embeddings:
        if side.shape[-1] != width or side.shape[1] != tokens:
            raise ValueError(
                f"the conditioning is {list(side.shape)}, and {reader} reads [batch, {tokens}, {width}]; connect {source}"
            )


def scaled_latent_space(folder: Path) -> LatentSpace:
    """The space of a VAE whose latents are scaled as a whole."""
    config = read_json(folder / "vae" / "config.json")
    channels, scale = config["latent_channels"], config.get("scaling_factor", 0.18215)  # the library's own default
    return LatentSpace((0.0,) * channels, (1 / scale,) * channels)
