"""Load one component, on the CPU."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...checkpoints.build import load_pretrained
from ...checkpoints.fill import fill
from ...checkpoints.folders import weight_files
from ...checkpoints.header import gguf_file
from ...checkpoints.report import ComponentReport, check_quantization, resolve_dtype
from ...vae import Vae
from ...weights.external import fill_from_gguf, import_library
from ..ar_model import ArModel, halves_of
from ..dit import Dit
from ..glyphs import GlyphEncoder
from ..token_preview import codebook_palette
from .components import MODEL_CLASSES, skeleton
from .inspect import check_model, latent_space, scheduler_shift

if TYPE_CHECKING:
    from transformers import GlmImageForConditionalGeneration, T5EncoderModel


def load_ar(folder: Path, dtype: str = "auto", quantization: str = "none") -> ArModel:
    """Load the AR model with its tokenizer and image processor, on the CPU."""
    report = check_model(folder, "vision_language_encoder")
    from transformers import GlmImageForConditionalGeneration

    if quantization != "none" or report.quantized:
        model = _load_quantized(GlmImageForConditionalGeneration, folder, report, dtype, quantization)
    else:
        model = _load_transformers(GlmImageForConditionalGeneration, folder / "vision_language_encoder", dtype, report)
    return ar_model(model, folder, report.quantized_by)


def ar_model(model: "GlmImageForConditionalGeneration", folder: Path, quantized_by: str = "") -> ArModel:
    """The AR model with the tokenizer and the image processor in a folder's `processor`."""
    from transformers import AutoTokenizer

    processor = load_image_processor(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "processor", local_files_only=True)
    if not tokenizer.chat_template:
        raise ValueError(
            f"{folder / 'processor'} has no chat template (chat_template.jinja), which puts references into a prompt"
        )
    codebook = model.model.vqmodel.quantize.embedding.weight.detach().cpu()
    limits = reference_limits(processor)
    identity = _codebook_id(codebook), codebook_palette(codebook)
    return ArModel(model, halves_of(model), tokenizer, processor, *limits, *identity, quantized_by=quantized_by)


def load_image_processor(folder: Path):
    """The processor's image half, always the one over PIL."""
    return _pil_image_processor_class().from_pretrained(folder / "processor", local_files_only=True)


def reference_limits(image_processor) -> tuple[int, int]:
    """The shortest and the longest side in pixels that the processor gives a reference, from the areas it is configured by."""
    return round(image_processor.size["shortest_edge"] ** 0.5), round(image_processor.size["longest_edge"] ** 0.5)


def load_glyph_encoder(folder: Path, dtype: str = "auto") -> GlyphEncoder:
    """Load ByT5 and its tokenizer, on the CPU."""
    report = check_model(folder, "text_encoder")
    from transformers import T5EncoderModel

    return glyph_encoder(_load_transformers(T5EncoderModel, folder / "text_encoder", dtype, report), folder)


def glyph_encoder(model: "T5EncoderModel", folder: Path) -> GlyphEncoder:
    """ByT5 with the tokenizer of a checkpoint."""
    from transformers import ByT5Tokenizer

    return GlyphEncoder(model, ByT5Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True))


def load_dit(folder: Path, dtype: str = "auto", quantization: str = "none") -> Dit:
    """Load the DiT, on the CPU, with the latent space of the VAE and the shift of the scheduler beside it."""
    report = check_model(folder, "transformer")
    space, shift = latent_space(folder), scheduler_shift(folder)
    from ..transformer import GlmImageDit

    if quantization != "none" or report.quantized:
        model = _load_quantized(GlmImageDit, folder, report, dtype, quantization)
    else:
        model = _load_diffusers(GlmImageDit, folder / "transformer", dtype, report)
    return Dit(model, space, shift, checkpoint=folder, quantized_by=report.quantized_by)


def load_vae(folder: Path, dtype: str = "auto") -> Vae:
    """Load the VAE, on the CPU."""
    report = check_model(folder, "vae")
    space = latent_space(folder)
    from diffusers import AutoencoderKL

    return Vae(_load_diffusers(AutoencoderKL, folder / "vae", dtype, report), space)


def _load_quantized(model_class, folder: Path, report: ComponentReport, dtype: str, quantization: str) -> torch.nn.Module:
    """Quantized as it is read, so that the whole is never in memory at full width, or as it is stored."""
    if report.quantized_by:
        _check_here(report, quantization)
        import_library(report.quantized_by)
        if file := gguf_file(folder / report.name):
            model = skeleton(folder, report.name, buffers=True)
            fill_from_gguf(model, file, resolve_dtype(dtype, report))
            return model.eval()
        load = _load_transformers if MODEL_CLASSES[report.name][0] == "transformers" else _load_diffusers
        return load(model_class, folder / report.name, dtype, report)
    return filled(skeleton(folder, report.name, buffers=True), weight_files(folder / report.name), report, dtype, quantization)


def filled(
    model: torch.nn.Module,
    files: Iterable[Path],
    report: ComponentReport,
    dtype: str,
    quantization: str,
    names: Mapping[str, str] | None = None,
) -> torch.nn.Module:
    """A model without weights with those of files, by our own way of reading them. Raises as check_quantization does."""
    _check_here(report, quantization)
    fill(model, files, dtype=resolve_dtype(dtype, report), quantization=quantization, names=names)
    return model.eval()


def _check_here(report: ComponentReport, quantization: str) -> None:
    check_quantization(report, quantization, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _load_transformers(model_class, folder: Path, dtype: str, report: ComponentReport):
    return load_pretrained(model_class, folder, dtype=resolve_dtype(dtype, report))


def _load_diffusers(model_class, folder: Path, dtype: str, report: ComponentReport):
    return load_pretrained(model_class, folder, torch_dtype=resolve_dtype(dtype, report))


def _pil_image_processor_class():
    """transformers' image processor over PIL, named so since 5.2; before, the plain name meant it.

    The other one works on torchvision and rounds its resizes otherwise, so vision tokens would depend on whether
    torchvision is installed.
    """
    try:
        from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil
    except ModuleNotFoundError:
        from transformers.models.glm_image.image_processing_glm_image import GlmImageImageProcessor

        return GlmImageImageProcessor
    return GlmImageImageProcessorPil


def _codebook_id(codebook: torch.Tensor) -> str:
    """Tells codebooks apart, and is the same for one codebook stored in bfloat16 and in float32."""
    rows = codebook[:64].to(torch.bfloat16)
    return hashlib.sha256(rows.view(torch.uint8).cpu().numpy().tobytes()).hexdigest()[:16]
