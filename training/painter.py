"""A checkpoint's whole way from a prompt to a picture, as training and scoring ask for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..glmimage_core.glm_image.denoise import Approximations
from ..glmimage_core.glm_image.pipeline import GlmImage
from ..glmimage_core.glm_image.prior import Sampling
from ..glmimage_core.images import to_pictures


@dataclass(frozen=True, eq=False)
class Painter:
    """Paints what a prompt says, from reference pictures or without; one seed plans and paints."""

    glm: GlmImage
    steps: int = 20
    cfg: float = 1.5
    sampling: Sampling = Sampling()  # noqa: RUF009, immutable
    approximations: Approximations = Approximations()  # noqa: RUF009, immutable

    @classmethod
    def of(cls, checkpoint: Path, dtype: str = "auto", quantization: str = "none", **settings) -> "Painter":
        """Paint with a checkpoint folder, on the CPU. quantization: of AR model and DiT."""
        return cls(GlmImage.load(checkpoint, dtype=dtype, quantization=quantization), **settings)

    def __call__(self, prompt: str, pictures: Sequence[torch.Tensor], width: int, height: int, seed: int) -> torch.Tensor:
        """pictures: the references, [H, W, 3] in 0..1. width, height: pixels. Returns [height, width, 3] float32 in 0..1."""
        references = [self.glm.reference(to_pictures(picture[None])[0]) for picture in pictures]
        plan = self.glm.plan(prompt, width, height, seed=seed, references=references, sampling=self.sampling)
        painted = self.glm.paint_tensor(
            plan,
            seed=seed,
            steps=self.steps,
            cfg=self.cfg,
            references=references,
            approximations=self.approximations,
        )
        return painted[0]
