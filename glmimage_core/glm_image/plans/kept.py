"""A plan on disk: one safetensors file of a few kB. A PNG can carry the same bytes as a text.

    save_prior, load_prior      a file; a PNG can be loaded too
    prior_text                  what a PNG carries under TEXT_KEY
    to_bytes, from_bytes        the file in memory

The tensors are `tokens` and, where there are such, `preview` and `dropped`. Everything else is JSON in the metadata, under
METADATA_KEY.
"""

import base64
import binascii
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...json_text import parse_json
from ...units import human_bytes
from ...version import NAME, pack_version
from ..draw import Sampling
from ..geometry import PRIOR_PX, check_size
from ..prior import Prior

METADATA_KEY = TEXT_KEY = "glm_image_prior"
FORMAT = 1
"""Of the file. It grows when older versions of the pack could not read what is written."""
SUFFIXES = (".safetensors", ".png")
MOST_BYTES = 64 * 10**6
"""Of a file that is read: several times the largest plan. Weights chosen by mistake are not read into memory."""
LENGTH_BYTES = 8  # at the start of a safetensors file: how long its header is
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
FIELDS = {"width": int, "height": int, "prompt": str, "seed": int, "codebook": str, "references": list, "passes": int}


def to_bytes(prior: Prior) -> bytes:
    """A plan as a safetensors file."""
    from safetensors.torch import save

    grids = {"tokens": prior.tokens} | ({} if prior.preview is None else {"preview": prior.preview})
    stated = {name: getattr(prior, name) for name in FIELDS}
    if prior.expands_to is not None:
        stated["expands_to"] = prior.expands_to
    stated |= {"sampling": asdict(prior.sampling), "format": FORMAT, "written_by": f"{NAME} {pack_version()}"}
    narrow = torch.int16 if max(int(grid.max()) for grid in grids.values()) < 2**15 else torch.int32
    tensors = {name: grid.to(narrow).contiguous() for name, grid in grids.items()}
    if prior.dropped is not None:
        tensors["dropped"] = prior.dropped.contiguous()
    return save(tensors, {METADATA_KEY: json.dumps(stated)})


def from_bytes(data: bytes, source: object) -> Prior:
    """The plan in a safetensors file. source: what it was read from, for messages.

    Raises ValueError for a file that is damaged, that holds something else, or that a newer version wrote.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"{source} is no plan, or a damaged one ({error}); save it again") from error
    header = parse_json(data[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")])
    text = header.get("__metadata__", {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(f"{source} holds tensors, but no plan; choose a file from GLM-Image Save Prior")
    try:
        stated = parse_json(text)
        is_newer = stated["format"] > FORMAT
        prior = None if is_newer else _prior(stated, tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is a damaged plan ({error}); save it again") from error
    if is_newer:
        writer = stated.get("written_by", "a newer version of the pack")
        raise ValueError(f"{source} was written by {writer}, in a form that is not known here yet; update the pack")
    return prior


def _prior(stated: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Prior:
    """Raises ValueError, TypeError or KeyError for what is missing or cannot be."""
    values = {name: stated[name] for name in FIELDS}
    if wrong := [name for name, kind in FIELDS.items() if type(values[name]) is not kind]:
        raise ValueError(f"{wrong[0]} is {values[wrong[0]]!r}")
    references = tuple(values.pop("references"))
    if not all(isinstance(reference, str) for reference in references):
        raise ValueError("a reference is no text")
    tokens = _grids(tensors, "tokens")
    planned = [side * PRIOR_PX for side in reversed(tokens.shape[1:])]
    if planned != [values["width"], values["height"]]:
        raise ValueError(f"its tokens plan {planned[0]}x{planned[1]} pixels, not {values['width']}x{values['height']}")
    return Prior(
        tokens=tokens,
        preview=_grids(tensors, "preview", len(tokens)) if "preview" in tensors else None,
        dropped=_dropped(tensors["dropped"], tokens) if "dropped" in tensors else None,
        expands_to=_size(stated["expands_to"]) if "expands_to" in stated else None,
        sampling=Sampling(**stated["sampling"]),
        references=references,
        **values,
    )


def _grids(tensors: dict[str, torch.Tensor], name: str, batch: int | None = None) -> torch.Tensor:
    """A grid of each image, [B, h, w] int64. batch: how many there must be."""
    grids = tensors[name]
    if grids.is_floating_point() or grids.ndim != 3 or 0 in grids.shape or grids.min() < 0 or batch not in (None, len(grids)):
        raise ValueError(f"its {name} are no grids of tokens")
    return grids.long()


def _size(sides: Any) -> tuple[int, int]:
    width, height = sides
    check_size(width, height)
    return width, height


def _dropped(cells: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    if cells.dtype != torch.bool or cells.shape != tokens.shape:
        raise ValueError("its dropped tokens are no grids of yes and no")
    return cells


def save_prior(prior: Prior, path: str | Path) -> None:
    """Write a plan to a safetensors file."""
    Path(path).write_bytes(to_bytes(prior))


def prior_text(prior: Prior) -> str:
    """A plan as the text that a PNG carries under TEXT_KEY."""
    return base64.b64encode(to_bytes(prior)).decode("ascii")


def load_prior(path: str | Path) -> Prior:
    """The plan in a file that `save_prior` wrote, or in a PNG that carries one.

    Raises ValueError for any other file: a damaged one, one of a newer version, a PNG without a plan.
    """
    path = Path(path)
    with path.open("rb") as file:
        is_png = file.read(len(PNG_MAGIC)) == PNG_MAGIC
    if is_png:
        return from_bytes(_carried(path), path)
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path} has {human_bytes(size)}, and a plan has a few kB; choose a file from GLM-Image Save Prior")
    return from_bytes(path.read_bytes(), path)


def _carried(path: Path) -> bytes:
    """The file in a PNG's text."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if TEXT_KEY not in picture.info:
                picture.load()  # texts may stand behind the pixels
            text = picture.info.get(TEXT_KEY)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is a damaged picture ({error})") from error
    if text is None:
        raise ValueError(
            f"{path} carries no plan: it was saved without one, or another program removed it; connect the pictures to "
            "GLM-Image Save Prior to keep the plan in them"
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the plan in {path} is damaged ({error}); save the picture again") from error
