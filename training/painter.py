"""A checkpoint's whole way from a prompt to a picture, as scoring asks for it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from ..glmimage_core.glm_image.denoise import Approximations
from ..glmimage_core.glm_image.draw import Sampling
from ..glmimage_core.glm_image.lookahead import AUTO
from ..glmimage_core.glm_image.pipeline import GlmImage
from ..glmimage_core.images import to_pictures
from ..glmimage_core.quoted import find_quoted_texts
from .drawing import draw_plan
from .reading import read
from .world import letters_in


class Planned(NamedTuple):
    """How a plan was made: in how many seconds, with how many tokens a pass."""

    seconds: float
    tokens_a_pass: float


NOT_PLANNED = Planned(0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Painter:
    """Paints what a prompt says, from reference pictures or without; one seed plans and paints.

    plans_alone: draw each plan by code instead, so that the planner alone is judged. planned: how the plan of each picture so far
    was made.
    """

    glm: GlmImage
    steps: int = 20
    cfg: float = 1.5
    sampling: Sampling = Sampling()  # noqa: RUF009, immutable
    approximations: Approximations = Approximations()  # noqa: RUF009, immutable
    lookahead: int = AUTO
    plans_alone: bool = False
    planned: list[Planned] = field(default_factory=list)

    @classmethod
    def of(cls, checkpoint: Path, dtype: str = "auto", quantization: str = "none", **settings) -> "Painter":
        """Paint with a checkpoint folder, on the CPU. quantization: of AR model and DiT."""
        return cls(GlmImage.load(checkpoint, dtype=dtype, quantization=quantization), **settings)

    def __call__(
        self,
        prompt: str,
        pictures: Sequence[torch.Tensor],
        width: int,
        height: int,
        *,
        seed: int,
        glyph_texts: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """pictures: the references, [H, W, 3] in 0..1. width, height: pixels. glyph_texts: as `GlmImage.paint` takes them.

        Returns [height, width, 3] float32 in 0..1.
        """
        references = [self.glm.reference(to_pictures(picture[None])[0]) for picture in pictures]
        began = time.perf_counter()
        plan = self.glm.plan(
            prompt,
            width,
            height,
            seed=seed,
            references=references,
            sampling=self.sampling,
            lookahead=self.lookahead,
        )
        self.planned.append(Planned(time.perf_counter() - began, plan.tokens_a_pass))
        if self.plans_alone:
            tokens = plan.tokens[0]
            return draw_plan(tokens, _word(tokens, prompt, pictures, glyph_texts))
        painted = self.glm.paint_tensor(
            plan,
            seed=seed,
            steps=self.steps,
            cfg=self.cfg,
            references=references,
            glyph_texts=glyph_texts,
            approximations=self.approximations,
        )
        return painted[0]


def _word(tokens: torch.Tensor, prompt: str, pictures: Sequence[torch.Tensor], glyph_texts: Sequence[str] | None) -> str:
    """The word that a plan shows, if any: of the glyph texts, of the prompt, or else of a reference, one of its length first."""
    texts = find_quoted_texts(prompt) if glyph_texts is None else list(glyph_texts)
    if not texts:
        texts = [word.text for picture in pictures if (word := read(picture).word)]
        length = letters_in(tokens)
        texts.sort(key=lambda text: len(text) != length)
    return texts[0] if texts else ""
