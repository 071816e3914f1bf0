"""One component in one safetensors file, as ComfyUI's folders for models hold them: finding one, and what is wrong with it.

A file holds weights only. The AR model's processor, and the latent space and shift of DiT and VAE, come from a checkpoint
folder, which may be incomplete, below the `roots` that the functions take.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from ...checkpoints.build import check_libraries
from ...checkpoints.folders import read_json, stamp, walk
from ...checkpoints.header import FileHeader, read_gguf_header, read_header, tensor_names
from ...checkpoints.report import ComponentReport, add_external_tensors, compare_with_config, unquantized_shapes
from ...vae import LatentSpace, Vae
from ...weights.formats import NotUnderstood
from ..dit import Dit
from ..schedule import Shift
from .components import AR, DIT, RELEASED_SPACE, VAE, ComponentKind, is_checkpoint, space_in
from .identify import SCHEDULER, IdentifiedFile, identify, kind_and_prefix
from .inspect import latent_space, scheduler_shift, settings_of, shift_in
from .processor import side_problems

SUFFIX, GGUF_SUFFIX = SUFFIXES = (".safetensors", ".gguf")
PROCESSOR = "processor"


def list_files(kind: ComponentKind, roots: Iterable[Path]) -> dict[str, Path]:
    """The files of a component below the roots, by their path relative to their root with forward slashes, sorted by name.

    The first root wins where two hold the same name. A header is read once as long as its file does not change. Files that
    are broken or another model's are left out.
    """
    found: dict[str, Path] = {}
    for root in roots:
        for folder, _, names in walk(root):
            for file in (folder / name for name in names if name.endswith(SUFFIXES)):
                if _kind_of(file) is kind:
                    found.setdefault(file.relative_to(root).as_posix(), file)
    return dict(sorted(found.items()))


def find_file(name: str, kind: ComponentKind, roots: Iterable[Path]) -> Path:
    """A file by the name that `list_files` gives it, or by that of a file it leaves out. Raises FileNotFoundError."""
    roots = list(roots)
    found = list_files(kind, roots)
    if name in found:
        return found[name]
    for root in roots:
        if (root / name).is_file() and not Path(name).is_absolute() and ".." not in Path(name).parts:
            return root / name
    looked = ", ".join(map(str, roots)) or "no folder at all"
    known = f"; GLM-Image's there: {', '.join(found)}" if found else ""
    raise FileNotFoundError(f"no file {name!r} in {looked}{known}")


def _kind_of(file: Path) -> ComponentKind | None:
    try:
        return _identified_kind(file, *stamp(file)) if file.is_file() else None  # a pipe would be waited for
    except OSError:
        return None  # a link that leads nowhere, or a file that may not be read


@lru_cache(maxsize=4096)
def _identified_kind(file: Path, *stamp: int) -> ComponentKind | None:
    try:
        return identify(file, file_header(file)).kind
    except NotUnderstood:  # listed all the same: the loader says what it is
        return _kind_by_names(file)
    except (ValueError, ImportError):  # gguf need not be installed
        return None


def file_header(file: Path) -> FileHeader:
    """The header of a safetensors or GGUF file. Raises as `read_header` and `read_gguf_header`."""
    return read_gguf_header(file) if file.suffix == GGUF_SUFFIX else read_header(file)


def _kind_by_names(file: Path) -> ComponentKind | None:
    try:
        return kind_and_prefix(file, tensor_names(file))[0]
    except ValueError:
        return None


def inspect_file(file: Path) -> tuple[IdentifiedFile, ComponentReport]:
    """Identify a single file and report on it. Raises ValueError for one that is broken or no part of GLM-Image."""
    return _inspect_file(file, *stamp(file))


@lru_cache(maxsize=64)
def _inspect_file(file: Path, *stamp: int) -> tuple[IdentifiedFile, ComponentReport]:
    identified = identify(file, file_header(file))
    kind = identified.kind
    report = ComponentReport(kind.folder, kind.class_name, kind.library, disk_bytes=file.stat().st_size)
    if file.suffix != GGUF_SUFFIX:
        report.add_tensors(identified.headers, identified.formats)
    try:
        model = kind.build(identified.model_config, file, tensors=len(identified.headers))
        if file.suffix == GGUF_SUFFIX:
            add_external_tensors(report, identified.headers, method="gguf", model=model, folder=file)
            return identified, report
        shapes = unquantized_shapes(model, identified.headers, identified.formats, file)
        compare_with_config(model, shapes, file)
        if unknown := sorted(shapes.keys() - model.state_dict().keys()):
            raise ValueError(
                f"{file} holds {len(unknown)} tensors that a {report.class_name} does not have, such as {unknown[0]}: it is "
                "quantized in a way that is unknown here, or another model's; choose one in bfloat16, float16 or float32"
            )
    except ValueError as error:
        assumed = (
            "; its metadata has no config (as JSON), so settings that shapes do not reveal were taken from the released model: a "
            "model of other sizes needs its config.json there, as config"
        )
        report.problems.append(error if identified.stated_config else ValueError(f"{error}{assumed}"))
    return identified, report


def check_file(file: Path, kind: ComponentKind) -> tuple[IdentifiedFile, ComponentReport]:
    """A sound file of a component. Raises ValueError where the file is broken or holds something else."""
    check_libraries()
    identified, report = inspect_file(file)
    if identified.kind is not kind:
        raise ValueError(f"{file} holds GLM-Image's {identified.kind.title}, and here its {kind.title} is wanted")
    if report.problems:
        raise ValueError(str(report.problems[0]))  # a new one: the report is kept
    return identified, report


def processor_folder(identified: IdentifiedFile, roots: Iterable[Path]) -> Path:
    """The folder whose `processor` goes with an AR model. Raises FileNotFoundError or ValueError where none is whole."""
    roots = list(roots)
    folder = next(_companions(identified, f"{PROCESSOR}/{AR.side_files[PROCESSOR][0]}", roots), None)
    if folder is None:
        raise FileNotFoundError(
            f"{identified.file} holds weights only. Copy the folder processor of zai-org/GLM-Image (tokenizer.json, "
            f"tokenizer_config.json, chat_template.jinja, preprocessor_config.json) to {identified.file.parent / PROCESSOR}"
            + "".join(f" or {root / 'GLM-Image' / PROCESSOR}" for root in roots[:1])
        )
    for problem in side_problems(folder, PROCESSOR):
        raise problem
    return folder


def file_space(identified: IdentifiedFile, roots: Iterable[Path]) -> LatentSpace:
    """The latent space of a DiT or VAE: its own, a checkpoint's, or the released one. Raises ValueError where none fits."""
    beside = next(_companions(identified, f"{VAE.folder}/config.json", roots), None)
    space = space_in(identified.config, identified.file) or (latent_space(beside) if beside else RELEASED_SPACE)
    channels = identified.config["latent_channels" if identified.kind is VAE else "in_channels"]
    if len(space.mean) != channels:
        raise ValueError(
            f"{identified.file} works on {channels} latent channels, and the latent space known for it has {len(space.mean)}; "
            "add latents_mean and latents_std, of its VAE's config.json, to config in the file's metadata"
        )
    return space


def file_shift(identified: IdentifiedFile, roots: Iterable[Path]) -> Shift:
    """The shift of a DiT: its own, a checkpoint's, or the released one. Raises ValueError for one that is not possible."""
    own = identified.stated_config.get(SCHEDULER)
    if isinstance(own, dict):  # others may keep something else under that name
        return shift_in(own, identified.file)
    beside = next(_companions(identified, "scheduler/scheduler_config.json", roots), None)
    return scheduler_shift(beside) if beside else Shift()


def config_to_carry(component: Dit | Vae) -> dict:
    """The config that a file of this component's weights needs, so that the component loads again as it is.

    Beside the model's own settings it has the latent space, and of a DiT the shift of the scheduler.
    """
    kind = DIT if isinstance(component, Dit) else VAE
    settings = {name: value for name, value in component.model.config.items() if not name.startswith("_")}
    space = {"latents_mean": component.space.mean, "latents_std": component.space.std}
    scheduler = {SCHEDULER: settings_of(component.shift)} if kind is DIT else {}
    return {"_class_name": kind.class_name, **settings, **space, **scheduler}


def _companions(identified: IdentifiedFile, small_file: str, roots: Iterable[Path]) -> Iterator[Path]:
    """Folders that hold a small file of a GLM-Image whose config agrees with the identified one, the nearest first."""
    for folder in [identified.file.parent, *(folder for root in roots for folder, _, _ in walk(root))]:
        if (folder / small_file).is_file() and (is_checkpoint(folder) or _is_processor(folder / PROCESSOR)):
            config = folder / identified.kind.folder / "config.json"
            try:
                if not config.is_file() or _agree(identified.config, read_json(config), identified.config_from_shapes):
                    yield folder
            except ValueError:
                continue  # a damaged config agrees with nothing


def _agree(ours: dict, theirs: dict, from_shapes: dict) -> bool:
    """Whether two configs say the same wherever shapes say something."""
    return all(
        _agree(ours[key], theirs.get(key, ours[key]), value)
        if isinstance(value, dict)
        else theirs.get(key, ours[key]) == ours[key]
        for key, value in from_shapes.items()
    )


def _is_processor(folder: Path) -> bool:
    """Whether a folder holds GLM-Image's processor rather than another model's."""
    return any("GlmImage" in file.read_text("utf-8", errors="replace") for file in folder.glob("*config.json") if file.is_file())
