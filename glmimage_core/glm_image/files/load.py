"""Load one component, on the CPU, from a checkpoint folder or from a single file: one way for both.

stored_component   where a component lies, checked from its headers: in a folder or in a file
load_*             the component, with what it needs beside its weights
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...checkpoints.build import load_pretrained
from ...checkpoints.fill import fill
from ...checkpoints.folders import weight_files
from ...checkpoints.header import gguf_file
from ...checkpoints.report import ComponentReport, check_quantization, resolve_dtype
from ...placement.residency import free_device_bytes
from ...units import human_bytes
from ...vae import LatentSpace, Vae
from ...weights.external import fill_from_gguf, import_library
from ...weights.linear import parameter_bytes, quantize
from ..ar_model import ArModel, halves_of
from ..dit import Dit
from ..experience import Experience
from ..glyphs import GlyphEncoder
from ..schedule import Shift
from ..token_preview import codebook_palette
from ..trained_on import TrainedOn
from .components import AR, DIT, GLYPH_ENCODER, VAE, ComponentKind, list_checkpoints
from .identify import IdentifiedFile
from .inspect import check_checkpoint, inspect_component, latent_space, scheduler_shift
from .processor import load_glyph_tokenizer, load_processor
from .single_file import GGUF_SUFFIX, check_file, file_shift, file_space, inspect_file, list_files, processor_folder

if TYPE_CHECKING:
    from transformers import GlmImageForConditionalGeneration

log = logging.getLogger(__name__)

NF4_KERNELS = ("bitsandbytes", "triton")  # either has kernels that read 4-bit codes, on CUDA
CPU = torch.device("cpu")
CODEBOOK = "model.vqmodel.quantize.embedding.weight"  # its name in the AR model
CODEBOOK_ROWS = 64  # that identify it


@dataclass(frozen=True)
class InFolder:
    """A component in a checkpoint folder."""

    kind: ComponentKind
    source: Path  # the checkpoint
    report: ComponentReport
    names: Mapping[str, str] | None = None  # tensors go by the model's own names

    @property
    def folder(self) -> Path:
        return self.source / self.kind.folder

    @property
    def files(self) -> list[Path]:
        return weight_files(self.folder)

    @property
    def gguf(self) -> Path | None:
        return gguf_file(self.folder)

    def build(self) -> torch.nn.Module:
        return self.kind.build_from(self.source, buffers=True)

    def load(self, dtype: torch.dtype) -> torch.nn.Module:
        """As the library of its class loads it."""
        precision = {"dtype" if self.kind.library == "transformers" else "torch_dtype": dtype}
        return load_pretrained(self.kind.model_class, self.folder, **precision)

    def side_folder(self) -> Path:
        return self.source

    def space(self) -> LatentSpace:
        return latent_space(self.source)

    def shift(self) -> Shift:
        return scheduler_shift(self.source)


@dataclass(frozen=True)
class InFile:
    """A component in one safetensors file; what it needs beside its weights lies below the roots."""

    kind: ComponentKind
    source: Path
    report: ComponentReport
    identified: IdentifiedFile
    roots: tuple[Path, ...]

    @property
    def names(self) -> Mapping[str, str]:
        """The names of tensors in the file, by their names in the model."""
        return self.identified.keys

    @property
    def files(self) -> list[Path]:
        return [self.source]

    @property
    def gguf(self) -> Path | None:
        return self.source if self.source.suffix == GGUF_SUFFIX else None

    def build(self) -> torch.nn.Module:
        return self.kind.build(self.identified.model_config, self.source, buffers=True)

    def load(self, dtype: torch.dtype) -> torch.nn.Module:
        """Tensors that are stored in the dtype stay in the file until they are read."""
        from safetensors import safe_open

        with safe_open(self.source, framework="pt") as tensors:
            weights = {name: tensors.get_tensor(key).to(dtype) for name, key in self.names.items()}
        model_class, config = self.kind.model_class, self.identified.model_config
        if self.kind.library == "transformers":
            config = model_class.config_class.from_dict(config)
            return model_class.from_pretrained(None, config=config, state_dict=weights, dtype=dtype).eval()
        model = self.kind.build(config, self.source)
        model.load_state_dict(weights, assign=True)
        return model.eval()

    def side_folder(self) -> Path:
        return processor_folder(self.identified, self.roots)

    def space(self) -> LatentSpace:
        return file_space(self.identified, self.roots)

    def shift(self) -> Shift:
        return file_shift(self.identified, self.roots)


def stored_component(source: Path, kind: ComponentKind, roots: Iterable[Path] = ()) -> InFolder | InFile:
    """A sound component in a checkpoint folder or a single file, whose small files are there.

    roots: the folders below which the small files of a single file are looked for. Raises FileNotFoundError, ValueError or
    ImportError that says what is wrong. Reads no weights.
    """
    if not source.is_file():
        return InFolder(kind, source, check_checkpoint(source, kind))
    identified, report = check_file(source, kind)
    stored = InFile(kind, source, report, identified=identified, roots=tuple(roots))
    if kind is AR:
        stored.side_folder()
        TrainedOn.stated_in(identified.config, source)
    else:
        stored.space()
    if kind is DIT:
        stored.shift()
    return stored


def load_model(stored: InFolder | InFile, dtype: str, quantization: str, device: torch.device) -> torch.nn.Module:
    """The model of a component: as it is stored, or quantized while it is read, so that it is never whole at full width.

    dtype: auto, or one of DTYPES. device: the one that the weights will compute on. Raises as `check_quantization` does. The log
    says beforehand where main memory will not suffice.
    """
    precision = resolve_dtype(dtype, stored.report, device)
    if quantization == "none":
        _warn_of_little_memory(stored.kind, stored.report.weight_bytes(precision))
    if quantization == "none" and not stored.report.quantized and not stored.gguf:
        return stored.load(precision)
    check_quantization(stored.report, quantization, device)
    if stored.gguf:
        model = stored.build()
        fill_from_gguf(model, stored.gguf, precision)
        return quantize(model, quantization).eval()
    if library := stored.report.quantized_by:
        import_library(library)
        return stored.load(precision)
    if device.type == "cuda" and "nf4" in (quantization, *stored.report.quantized) and not any(map(find_spec, NF4_KERNELS)):
        log.warning("nf4 is slow without bitsandbytes or Triton: pip install bitsandbytes")
    model = stored.build()
    if quantization != "none":
        _warn_of_little_memory(stored.kind, sum(parameter_bytes(model, quantization, precision.itemsize).values()))
    fill(model, stored.files, dtype=precision, quantization=quantization, device=device, names=stored.names)
    return model.eval()


def _warn_of_little_memory(kind: ComponentKind, weights: int) -> None:
    """Most of these bytes are read into main memory, whatever computes with them later."""
    free = free_device_bytes(CPU)
    if weights > free:
        log.warning(
            "the weights of %s take %s of main memory, and %s are free; the system may end the process. Choose fewer bits or a "
            "smaller dtype, or close other programs",
            *(kind.folder, human_bytes(weights), human_bytes(max(free, 0))),
        )


def load_ar(
    source: Path,
    dtype: str = "auto",
    *,
    quantization: str = "none",
    roots: Iterable[Path] = (),
    device: torch.device = CPU,
) -> ArModel:
    """Load the AR model with its tokenizer and image processor. source, roots: as `stored_component` takes them."""
    stored = stored_component(source, AR, roots)
    model = load_model(stored, dtype, quantization, device)
    loaded = ar_model(model, stored.side_folder(), stored.report.quantized_by)
    return replace(loaded, codebook="") if stored.gguf else loaded


def ar_model(model: "GlmImageForConditionalGeneration", folder: Path, quantized_by: str = "") -> ArModel:
    """The AR model with the tokenizer and the image processor in a checkpoint folder, and what its plans have shown."""
    processor = load_processor(folder)
    codebook = model.model.vqmodel.quantize.embedding.weight.detach().cpu()
    return ArModel(
        model=model,
        halves=halves_of(model),
        **processor._asdict(),
        codebook=_codebook_id(codebook),
        palette=codebook_palette(codebook),
        trained_on=TrainedOn.stated_in(model.config, folder),
        experience=Experience.stored_in(folder / AR.folder, len(codebook)),
        quantized_by=quantized_by,
    )


def load_glyph_encoder(source: Path, dtype: str = "auto", *, device: torch.device = CPU) -> GlyphEncoder:
    """Load ByT5 and its tokenizer from a checkpoint folder."""
    stored = stored_component(source, GLYPH_ENCODER)
    return glyph_encoder(load_model(stored, dtype, "none", device), source)


def glyph_encoder(model: torch.nn.Module, folder: Path) -> GlyphEncoder:
    """ByT5 with the tokenizer of a checkpoint."""
    return GlyphEncoder(model, load_glyph_tokenizer(folder))


def load_dit(
    source: Path,
    dtype: str = "auto",
    *,
    quantization: str = "none",
    roots: Iterable[Path] = (),
    device: torch.device = CPU,
) -> Dit:
    """Load the DiT with the latent space of its VAE and the shift of its scheduler.

    source, roots: as `stored_component` takes them; a single file without a checkpoint has the released space and shift.
    """
    roots = tuple(roots)
    stored = stored_component(source, DIT, roots)
    model = load_model(stored, dtype, quantization, device)
    return Dit(
        model=model,
        space=stored.space(),
        shift=stored.shift(),
        checkpoint=source,
        roots=roots,
        quantized_by=stored.report.quantized_by,
        codebook="" if source.is_file() else _codebook_beside(source),
    )


def load_vae(source: Path, dtype: str = "auto", *, roots: Iterable[Path] = (), device: torch.device = CPU) -> Vae:
    """Load the VAE. source, roots: as `stored_component` takes them."""
    stored = stored_component(source, VAE, roots)
    return Vae(load_model(stored, dtype, "none", device), stored.space())


def load_vae_of(space: LatentSpace, dtype: str, *, roots: Iterable[Path], file_roots: Iterable[Path]) -> Vae:
    """Load any VAE of a latent space, from a checkpoint below the roots or from a single file below the others.

    VAEs that cannot be used are passed over. Raises FileNotFoundError where none fits.
    """
    roots = list(roots)
    for source in (*list_checkpoints(roots).values(), *list_files(VAE, file_roots).values()):
        if _space_at(source, roots) == space:
            return load_vae(source, dtype, roots=roots)
    raise FileNotFoundError("there is no VAE of the DiT's latent space in the folders diffusers and vae")


def _space_at(source: Path, roots: list[Path]) -> LatentSpace | None:
    """The latent space of the VAE in a checkpoint or a file, or None where it is not sound."""
    try:
        if source.is_file():
            identified, report = inspect_file(source)
            return None if report.problems else file_space(identified, roots)
        return None if inspect_component(source, VAE).problems else latent_space(source)
    except (ValueError, FileNotFoundError):
        return None  # a VAE without statistics, or of another number of channels


def _codebook_beside(checkpoint: Path) -> str:
    """The id of the codebook of the AR model in a checkpoint, "" where there is none that can be read. Reads a few rows."""
    from safetensors import SafetensorError, safe_open

    for file in sorted((checkpoint / AR.folder).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                if CODEBOOK in opened.keys():  # noqa: SIM118, not a dict
                    return _codebook_id(opened.get_slice(CODEBOOK)[:CODEBOOK_ROWS])
        except (SafetensorError, OSError):
            return ""  # whoever loads the AR model is told
    return ""


def _codebook_id(codebook: torch.Tensor) -> str:
    """Tells codebooks apart by their first rows, and is the same for one codebook stored in bfloat16 and in float32."""
    rows = codebook[:CODEBOOK_ROWS].to(torch.bfloat16)
    return hashlib.sha256(rows.view(torch.uint8).cpu().numpy().tobytes()).hexdigest()[:16]
