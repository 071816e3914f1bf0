"""Writes a quantized copy of a checkpoint, one tensor at a time.

It can be resumed, and the folder becomes a valid checkpoint only at the end:

    shards  which tensors go into which shard, from the headers alone
    write   shard after shard under a temporary name; a shard that has its final name is finished and is kept
    index   model_index.json comes last: only with it is a folder a checkpoint
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from ...checkpoints.build import check_libraries
from ...checkpoints.fill import read_tensor
from ...checkpoints.folders import PIPELINE_INDEX, read_json, weight_files
from ...checkpoints.header import read_header
from ...checkpoints.outputs import check_writable, only_one
from ...progress import Progress, no_progress
from ...units import human_bytes
from ...weights.formats import FORMAT_KEY, FORMATS, Header, check_installed, stored_headers, stored_tensors
from ...weights.linear import quantizable, quantize_weight
from .components import COMPONENTS
from .inspect import check_checkpoint

SHARD_BYTES = 2 * 10**9  # of a shard, all of which is in memory when it is written
WORK_FILE = "quantize.json"  # in an unfinished folder: what it is made from
PARTIAL, LIBRARY_PARTIAL = ".partial", ".tmp"  # safetensors writes under a name of its own first
LOCK = ".quantize.lock"
Shard = dict[str, str]  # tensors of the source by name, and the format each is to have or none


def quantize_checkpoint(source: Path, out: Path, formats: Mapping[str, str], progress: Progress = no_progress) -> None:
    """Write the checkpoint `source` into the folder `out`, with components quantized as formats says (component -> format).

    All other files come along: weights as hard links where the file system can, else as copies. An interrupted call that is
    made again goes on where it stopped. Raises ValueError or FileNotFoundError for a source that is broken or quantized
    already and for an `out` that is something else, OSError where the disk has no room, all before anything is written.
    """
    formats = {name: form for name, form in formats.items() if form != "none"}
    if not formats:
        raise ValueError("nothing to quantize: choose a format for the AR model, the DiT or both")
    check_libraries()
    check_installed()
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{out} lies inside the checkpoint {source}; choose a folder elsewhere")
    check_writable(out)
    shards_of = {name: _shards(source, name, form) for name, form in formats.items()}
    _check_free(out)
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out / LOCK):
        _claim(source, out, formats)
        _check_room(source, out, shards_of)
        _write(source, out, formats=formats, shards_of=shards_of, progress=progress)


def _write(source: Path, out: Path, *, formats: Mapping[str, str], shards_of: Mapping, progress: Progress) -> None:
    """What of the work is not there yet."""
    done, total = 0, sum(len(shard) for shards, _ in shards_of.values() for shard in shards)
    for name, (shards, _) in shards_of.items():
        folder = out / name
        for shard, file in zip(shards, _shard_files(folder, shards), strict=True):
            if not file.exists():
                _write_shard(source / name, shard, file, lambda written, done=done: progress(done + written, total))
            done += len(shard)
            progress(done, total)
        _write_index(folder, shards)
        _bring(source / name, folder, without=("config.json", *(file.name for file in weight_files(source / name))))
        _write_json(folder / "config.json", read_json(source / name / "config.json") | _quantization_config(formats[name]))
    _bring(source, out, without=(*formats, PIPELINE_INDEX))
    _write_json(out / PIPELINE_INDEX, read_json(source / PIPELINE_INDEX))
    (out / WORK_FILE).unlink()


def _shards(source: Path, name: str, quantization: str) -> tuple[list[Shard], int]:
    """The shards of a component, and how many bytes they will take."""
    report = check_checkpoint(source, COMPONENTS[name])
    if report.quantized:
        raise ValueError(f"{source / name} is quantized already, as {', '.join(report.quantized)}; start from the original")
    headers = {key: header for file in weight_files(source / name) for key, header in read_header(file).tensors.items()}
    model = COMPONENTS[name].build_from(source)
    if unknown := sorted(set(headers) - set(model.state_dict())):
        raise ValueError(f"{source / name} has tensors that the installed libraries do not know, such as {unknown[0]}")
    layers = {f"{layer}.weight" for layer in quantizable(model, quantization)}
    shards, filled, whole = [{}], 0, 0
    for key, header in headers.items():
        form = quantization if key in layers else "none"
        size = sum(part.bytes for part in _parts(key, header, form).values())
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][key] = form
        filled, whole = filled + size, whole + size
    return shards, whole


def _parts(key: str, header: Header, quantization: str) -> dict[str, Header]:
    if quantization == "none":
        return {key: header}
    return stored_headers(key.removesuffix(".weight"), header.shape, quantization)


def _claim(source: Path, out: Path, formats: Mapping[str, str]) -> None:
    """Have `out` for this work: new, empty, or with the unfinished same work. Raises ValueError for another folder."""
    files = (file for name in sorted(formats) for file in weight_files(source / name))
    stamps = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    work = {"source": str(source.resolve()), "formats": dict(sorted(formats.items())), "files": stamps}
    if (out / WORK_FILE).is_file():
        if read_json(out / WORK_FILE) != work:
            raise ValueError(f"{out} holds the unfinished work of another command or of files that have changed; empty it")
        for file in [file for file in out.rglob("*") if file.name.endswith(PARTIAL) or file.name.startswith(LIBRARY_PARTIAL)]:
            file.unlink()  # what a kill left
        return
    _check_free(out)
    _write_json(out / WORK_FILE, work)


def _check_free(out: Path) -> None:
    """Raise ValueError for a folder that holds anything but an unfinished work."""
    if not out.exists() or (out / WORK_FILE).is_file():
        return
    if not out.is_dir() or {file.name for file in out.iterdir()} - {LOCK, WORK_FILE + PARTIAL}:
        raise ValueError(f"{out} is there already and not empty; choose another folder")


def _check_room(source: Path, out: Path, shards_of: Mapping[str, tuple[list[Shard], int]]) -> None:
    """Raise OSError where the disk cannot hold what is still to be written, taking links for copies."""
    there = {file.relative_to(out): file.stat().st_size for file in out.rglob("*") if file.is_file()}
    others = [file for file in _files(source) if file.relative_to(source).parts[0] not in shards_of]
    needed = sum(size for _, size in shards_of.values()) + sum(file.stat().st_size for file in others) - sum(there.values())
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OSError(f"{out} needs {human_bytes(needed)} more, and its disk has {human_bytes(free)} free")


def _files(folder: Path) -> list[Path]:
    """The files below a folder, but not those below hidden ones, which are downloaders' notes."""
    found = (file for file in folder.rglob("*") if file.is_file())
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def _shard_files(folder: Path, shards: list[Shard]) -> list[Path]:
    stem, count = COMPONENTS[folder.name].stem, len(shards)
    return [folder / f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _write_shard(source: Path, shard: Shard, file: Path, written: Callable[[int], None]) -> None:
    """written: called after each tensor with how many of the shard's are quantized or read."""
    from safetensors.torch import save_file

    where = {key: weights for weights in weight_files(source) for key in read_header(weights).tensors}
    tensors = {}
    for number, (key, form) in enumerate(shard.items(), 1):
        tensor = read_tensor(where[key], key)
        if form == "none":
            tensors[key] = tensor
        else:
            tensors |= stored_tensors(key.removesuffix(".weight"), quantize_weight(tensor, form), form)
        written(number)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + PARTIAL)
    save_file(tensors, partial, {"format": "pt"})
    shutil.copymode(next(iter(where.values())), partial)  # which safetensors keeps to its owner
    os.replace(partial, file)


def _write_index(folder: Path, shards: list[Shard]) -> None:
    files = _shard_files(folder, shards)
    index = {"metadata": {}, "weight_map": {key: file.name for file in files for key in read_header(file).tensors}}
    _write_json(folder / f"{COMPONENTS[folder.name].stem}.safetensors.index.json", index)


def _quantization_config(quantization: str) -> dict:
    return {"quantization_config": {"quant_method": FORMAT_KEY, "format": FORMATS[quantization].stored}}


def _bring(source: Path, out: Path, without: tuple[str, ...]) -> None:
    """Link or copy the files below a folder that are not there yet, but for those of some first names."""
    for file in _files(source):
        there = out / file.relative_to(source)
        if file.relative_to(source).parts[0] in without or there.exists():
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        partial = there.with_name(there.name + PARTIAL)
        partial.unlink(missing_ok=True)
        if file.suffix != ".safetensors" or not _linked(file, partial):
            shutil.copyfile(file, partial)
        os.replace(partial, there)


def _linked(file: Path, link: Path) -> bool:
    try:
        os.link(file.resolve(), link)
    except OSError:
        return False
    return True


def _write_json(file: Path, content: dict) -> None:
    partial = file.with_name(file.name + PARTIAL)
    partial.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    os.replace(partial, file)
