"""The processor of the AR model and the tokenizer of the glyph encoder: loading them is the only check of them.

They are small, so a check before a graph runs loads them whole. What it says is remembered until a file changes.
"""

from functools import lru_cache
from pathlib import Path
from traceback import format_exception_only
from typing import Any, NamedTuple

from ...checkpoints.build import CONFIG_ERRORS
from ...checkpoints.folders import read_json, stamp
from ...checkpoints.settings import count, finite, finite_list, positive
from .components import LAYOUT, SIDE_FILES

Problem = ValueError | FileNotFoundError
IMAGE_CONFIGS = ("preprocessor_config.json", "processor_config.json")  # transformers writes one of them
CHANNELS = 3
WIDEST_PX = 2**14  # of a picture that a reference may be enlarged to
MARKS = ("image_token", "grid_bos_token", "grid_eos_token", "bos_token")


class Processor(NamedTuple):
    """transformers' tokenizer and image processor, and the shortest and longest side of a reference in pixels."""

    tokenizer: Any
    image_processor: Any
    shortest_edge: int
    longest_edge: int


def load_processor(folder: Path) -> Processor:
    """The processor of the AR model in a folder's `processor`.

    Raises FileNotFoundError or ValueError for one that is not whole or that no picture can go through.
    """
    own = folder / "processor"
    _check_files(own)
    if not any((own / name).is_file() for name in IMAGE_CONFIGS):
        raise FileNotFoundError(f"{own / IMAGE_CONFIGS[0]} is missing; {LAYOUT}")
    image_processor = load_image_processor(folder)
    _check_image_processor(image_processor, own)
    tokenizer = _tokenizer(own)
    _check_template(tokenizer, own)
    return Processor(tokenizer, image_processor, *reference_limits(image_processor))


def load_image_processor(folder: Path):
    """The image processor in a folder's `processor`, always the one over PIL."""
    try:
        return _pil_image_processor_class().from_pretrained(folder / "processor", local_files_only=True)
    except CONFIG_ERRORS as error:
        raise ValueError(f"the image processor in {folder / 'processor'} cannot be read: {_said(error)}") from error


def reference_limits(image_processor) -> tuple[int, int]:
    """The shortest and the longest side in pixels that the processor gives a reference, from the areas it is configured by."""
    return round(image_processor.size["shortest_edge"] ** 0.5), round(image_processor.size["longest_edge"] ** 0.5)


def load_glyph_tokenizer(folder: Path):
    """ByT5's tokenizer in a checkpoint's `tokenizer`. Raises FileNotFoundError or ValueError for one that cannot be read."""
    from transformers import ByT5Tokenizer

    own = folder / "tokenizer"
    _check_files(own)
    try:
        tokenizer = ByT5Tokenizer.from_pretrained(own, local_files_only=True)
        tokenizer("a")
    except CONFIG_ERRORS as error:
        raise ValueError(f"the tokenizer in {own} cannot be read: {_said(error)}") from error
    return tokenizer


def side_problems(folder: Path, name: str) -> list[Problem]:
    """What keeps the tokenizer or processor in a checkpoint's folder of that name from being loaded."""
    files = sorted(file for file in (folder / name).glob("*") if file.is_file())
    return list(_side_problems(folder, name, tuple((file.name, *stamp(file)) for file in files)))


@lru_cache(maxsize=64)
def _side_problems(folder: Path, name: str, stamps: tuple) -> tuple[Problem, ...]:
    try:
        {"processor": load_processor, "tokenizer": load_glyph_tokenizer}[name](folder)
    except (ValueError, FileNotFoundError) as error:
        return (error,)
    return ()


def _check_files(own: Path) -> None:
    for needed in SIDE_FILES[own.name]:
        if not (own / needed).is_file():
            raise FileNotFoundError(f"{own / needed} is missing; {LAYOUT}")
    for config in sorted(own.glob("*.json")):
        if config.is_file():
            read_json(config)


def _check_image_processor(image_processor, own: Path) -> None:
    """Raise ValueError for settings under which a picture gives no patches, or no numbers."""
    what = f"of the image processor in {own}"
    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        count(getattr(image_processor, name), f"{name} {what}", WIDEST_PX)
    size = dict(image_processor.size)  # a class of transformers' own, before 5.2 a dict
    for name, area in {name: size.get(name) for name in ("shortest_edge", "longest_edge")}.items():
        count(area, f"size.{name} {what}", WIDEST_PX**2)
    if size["shortest_edge"] > size["longest_edge"]:
        raise ValueError(f"size.shortest_edge {what} is above its longest_edge")
    for name in ("image_mean", "image_std"):
        if len(finite_list(getattr(image_processor, name), f"{name} {what}")) != CHANNELS:
            raise ValueError(f"{name} {what} has not {CHANNELS} numbers")
    for value in image_processor.image_std:
        positive(value, f"image_std {what}")
    finite(image_processor.rescale_factor, f"rescale_factor {what}")
    if image_processor.resample not in range(6):  # Pillow's filters
        raise ValueError(f"resample {what} is {image_processor.resample!r}, which is no filter of Pillow")


def _tokenizer(own: Path):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(own, local_files_only=True)
    except CONFIG_ERRORS as error:
        raise ValueError(f"the tokenizer in {own} cannot be read: {_said(error)}") from error
    except Exception as error:
        if type(error) is not Exception:  # which the library `tokenizers` raises for a tokenizer.json that it cannot read
            raise
        raise ValueError(f"{own / 'tokenizer.json'} is not understood: {error}") from error


def _check_template(tokenizer, own: Path) -> None:
    """Raise ValueError where a prompt with a reference does not come out as the AR model reads it."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ValueError(f"{own} has no chat template (chat_template.jinja), which puts references into a prompt")
    for mark in MARKS:
        if not isinstance(getattr(tokenizer, mark, None), str):
            raise ValueError(f"the tokenizer in {own} has no {mark}: this is not the processor of GLM-Image")
    content = [{"type": "image"}, {"type": "text", "text": "a"}]
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        ids = tokenizer(text).input_ids
    except (TemplateError, *CONFIG_ERRORS) as error:
        raise ValueError(f"the chat template in {own} cannot be used: {_said(error)}") from error
    if ids.count(tokenizer.convert_tokens_to_ids(tokenizer.image_token)) != 1:
        raise ValueError(f"the chat template in {own} does not put a reference into a prompt as one {tokenizer.image_token}")


def _said(error: Exception) -> str:
    """An error in one line with its kind, without which a KeyError says nothing."""
    return " ".join(format_exception_only(error)[-1].split())


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
