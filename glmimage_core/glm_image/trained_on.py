"""What a checkpoint was trained on: the sizes of its pictures and, where they are few, the words of its prompts.

A checkpoint states it in the config.json of its AR model. transformers keeps entries that it does not know, so what copies or
quantizes a config carries them along:

    "trained_on": {"sides": [192, 512], "words": ["a", "red", "star"]}

    sides    the shortest and the longest side of a picture, in pixels
    pixels   the smallest and the largest area of a picture, in pixels
    words    all words of its prompts, in lower case; those of a script without spaces are pieces that texts are made of

What is not stated has no limit. Without the entry, limits are those of the released model, as z.ai's service has them:
https://docs.z.ai/api-reference/image/generate-image-async
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import Self

from ..quoted import without_quotations
from .geometry import MAX_SIDE, MIN_SIDE, PRIOR_PX, whole_tokens

FIELD = "trained_on"
ROUNDING = 0.95  # sides rounded to multiples of 32 may miss an area by this factor
SHOWN_WORDS = 8  # in a message
RANGES = ("sides", "pixels")
WORD = re.compile(r"[a-z]+|\d+|[^\W\d_a-z]+")  # the last kind: a run of letters of other scripts


@dataclass(frozen=True)
class TrainedOn:
    """Limits of what a checkpoint knows. sides, pixels: least and most. Without words it takes any."""

    sides: tuple[int, int] | None = None
    pixels: tuple[int, int] | None = None
    words: frozenset[str] = frozenset()

    @classmethod
    def stated_in(cls, config: Any, source: Path | str) -> Self:
        """What the config of an AR model states: a dict, or transformers' object. source: where it was read, for messages.

        Raises ValueError for an entry that is not as above.
        """
        stated = config.get(FIELD) if isinstance(config, dict) else getattr(config, FIELD, None)
        if stated is None:
            return cls(pixels=RELEASED_PIXELS)
        if not isinstance(stated, dict) or not all(_is_range(stated.get(name)) for name in RANGES) or not _are_words(stated):
            raise ValueError(
                f"{FIELD} in {source} is no object with sides and pixels (each the least and the most) and words (texts); "
                "correct it, or remove it for the limits of the released model"
            )
        ranges = {name: tuple(stated[name]) for name in RANGES if stated.get(name)}
        return cls(**ranges, words=frozenset(stated.get("words") or ()))

    def warnings(self, width: int, height: int, prompt: str) -> list[str]:
        """What to say of a picture of width x height pixels and of its prompt."""
        return [*self.size_warnings(width, height), *self.prompt_warnings(prompt)]

    def size_warnings(self, width: int, height: int) -> list[str]:
        """What to say of a picture of width x height pixels: nothing, if pictures like it were in the training."""
        size, warnings = f"{width}x{height}", []
        if self.sides and not all(self.sides[0] <= side <= self.sides[1] for side in (width, height)):
            least, most = self.sides
            warnings.append(
                f"{size} is no size that this model knows: it was trained on sides of {least} to {most} pixels, and other sizes "
                "may come out broken"
            )
        if self.pixels and width * height < ROUNDING * self.pixels[0]:
            warnings.append(f"{size} has fewer pixels than {_square(self.pixels[0])}, the smallest area that {_TRAINED_FOR}")
        if self.pixels and width * height > self.pixels[1] / ROUNDING:
            warnings.append(f"{size} has more pixels than {_square(self.pixels[1])}, the largest area that {_TRAINED_FOR}")
        return warnings

    def nearest_size(self, width: int, height: int) -> tuple[int, int]:
        """The size in pixels, in multiples of 32, nearest to width x height that pictures in the training had.

        The aspect stays as near as the limits let it.
        """
        here = whole_tokens(width, height)
        if not self.size_warnings(*here) and all(MIN_SIDE <= side <= MAX_SIDE for side in here):
            return here
        least, most = self.sides or (MIN_SIDE, MAX_SIDE)
        least, most = math.ceil(least / PRIOR_PX) * PRIOR_PX, most // PRIOR_PX * PRIOR_PX
        area = width * height
        scale = 1.0 if self.pixels is None else math.sqrt(min(max(area, self.pixels[0]), self.pixels[1]) / area)
        scale = max(min(scale, most / max(width, height)), least / min(width, height))
        fitted = whole_tokens(width * scale, height * scale)
        return tuple(min(max(side, least), most) for side in fitted)

    def prompt_warnings(self, prompt: str) -> list[str]:
        """What to say of a prompt: nothing, if the model knows all its words."""
        unknown = self.unknown_words(prompt)
        if not unknown:
            return []
        shown = ", ".join(unknown[:SHOWN_WORDS]) + (f" and {len(unknown) - SHOWN_WORDS} more" if unknown[SHOWN_WORDS:] else "")
        return [f"this model was trained on few words, and does not know: {shown}; the picture will show something else"]

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the model does not know, in order and each once; text in quotation marks is none of them."""
        if not self.words:
            return []
        found = words_of(without_quotations(prompt))
        unknown = (piece for word in found if word not in self.words for piece in self._unknown_pieces(word))
        return list(dict.fromkeys(unknown))

    def _unknown_pieces(self, word: str) -> list[str]:
        """What is left of a run of letters when known pieces are cut out; a word of a script with spaces is one piece."""
        return [word] if word.isascii() else self._pieces.sub(" ", word).split()

    @cached_property
    def _pieces(self) -> re.Pattern:
        longest_first = sorted((word for word in self.words if not word.isascii()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")  # the last one matches nothing


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case: runs of Latin letters, of digits, and of letters of other scripts."""
    return WORD.findall(text.lower())


def _is_range(stated: Any) -> bool:
    if stated is None:
        return True
    return isinstance(stated, list) and len(stated) == 2 and all(type(n) is int for n in stated) and 0 < stated[0] <= stated[1]


def _are_words(stated: dict) -> bool:
    words = stated.get("words") or []
    return isinstance(words, list) and all(isinstance(word, str) for word in words)


def _square(pixels: int) -> str:
    side = math.isqrt(pixels)
    return f"{side}x{side}"


_TRAINED_FOR = "GLM-Image was trained for"
RELEASED_PIXELS = (1024 * 1024, 2048 * 2048)
RELEASED = TrainedOn(pixels=RELEASED_PIXELS)
"""The released model: 1 to 4 megapixels, any words."""
