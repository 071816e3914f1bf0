"""A checkpoint as a function from prompt to picture, by the library's own functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.denoise import Approximations, sample
from ..glmimage_core.glm_image.dit import Dit
from ..glmimage_core.glm_image.files.load import load_ar, load_dit, load_glyph_encoder, load_vae
from ..glmimage_core.glm_image.glyphs import GlyphEncoder, encode_glyph_texts
from ..glmimage_core.glm_image.prior import Sampling, generate_prior
from ..glmimage_core.glm_image.references import Reference, encode_reference
from ..glmimage_core.images import to_pictures
from ..glmimage_core.quoted import find_quoted_texts
from ..glmimage_core.vae import Vae, decode


@dataclass(frozen=True, eq=False)
class Painter:
    """Paints a prompt, with or without reference pictures. One seed is used for the prior tokens and for the noise."""

    ar: ArModel
    glyph_encoder: GlyphEncoder
    dit: Dit
    vae: Vae
    steps: int = 20
    cfg: float = 1.5
    sampling: Sampling = Sampling()  # noqa: RUF009, immutable
    approximations: Approximations = Approximations()  # noqa: RUF009, immutable

    @classmethod
    def of(cls, checkpoint: Path, dtype: str = "auto", quantization: str = "none", **settings) -> "Painter":
        """Load a checkpoint folder. quantization: of AR model and DiT. Raises as the loaders do."""
        return cls(
            load_ar(checkpoint, dtype, quantization),
            load_glyph_encoder(checkpoint, dtype),
            load_dit(checkpoint, dtype, quantization),
            load_vae(checkpoint, dtype),
            **settings,
        )

    def __call__(self, prompt: str, pictures: Sequence[torch.Tensor], width: int, height: int, *, seed: int) -> torch.Tensor:
        """pictures: the references, [H, W, 3] in 0..1; sides in pixels. Returns [height, width, 3] float32 in 0..1."""
        references = [self.reference(picture) for picture in pictures]
        settings = {"seed": seed, "sampling": self.sampling, "references": references}
        prior = generate_prior(self.ar, prompt, width, height, **settings)
        positive = encode_glyph_texts(self.glyph_encoder, find_quoted_texts(prompt))
        negative = encode_glyph_texts(self.glyph_encoder, [])
        latents = sample(
            self.dit,
            prior,
            positive,
            negative,
            seeds=[seed],
            steps=self.steps,
            cfg=self.cfg,
            references=references,
            approximations=self.approximations,
        )
        return decode(self.vae, latents)[0]

    def reference(self, picture: torch.Tensor) -> Reference:
        """A picture [H, W, 3] in 0..1 as both models see it."""
        return encode_reference(self.ar, self.vae, to_pictures(picture[None])[0])
