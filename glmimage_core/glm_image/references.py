"""Reference images: one fitted picture, seen twice.

The AR model reads a reference as vision tokens, the DiT as latents with those tokens as their prior. Both must come from
the same picture at the same size, so it is fitted once, up front, to the size that the vision tokens imply.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image

from ..diffusion import Grid
from ..images import from_picture
from ..vae import LatentSpace, Vae, encode
from .ar_model import ArModel, fit, vision_tokens


@dataclass(frozen=True, eq=False)
class Reference:
    """One reference image, ready for both models.

    vision_tokens: [height / 32, width / 32] int64. latents: [1, 16, height / 8, width / 8] float32 in the VAE's own
    space. Both on the CPU. `codebook` and `space` say which AR model and which VAE they belong to.
    """

    width: int  # pixels of the fitted picture
    height: int
    vision_tokens: torch.Tensor
    latents: torch.Tensor
    codebook: str
    space: LatentSpace

    @property
    def grid(self) -> Grid:
        return Grid(*self.vision_tokens.shape)

    @cached_property
    def id(self) -> str:
        """Equal for equal content: two encodings of one picture by the same models share it."""
        digest = hashlib.sha256(f"{self.width}x{self.height} {self.codebook} {self.space}".encode())
        digest.update(self.vision_tokens.numpy().tobytes())
        digest.update(self.latents.numpy().tobytes())
        return digest.hexdigest()


def sizes_of(references: Sequence[Reference]) -> tuple[tuple[int, int], ...]:
    """(width, height) of each fitted picture in pixels."""
    return tuple((reference.width, reference.height) for reference in references)


def latents_of(vae: Vae, fitted: Image.Image, tiled: bool = False) -> torch.Tensor:
    """The VAE's latents of a fitted picture: [1, 16, height / 8, width / 8] float32 on the CPU."""
    return encode(vae, from_picture(fitted), tiled)


def encode_reference(ar: ArModel, vae: Vae, picture: Image.Image) -> Reference:
    """A picture of any size as both models see it; they are where they are. Raises as `encode` does."""
    fitted = fit(ar, picture)
    return Reference(*fitted.size, vision_tokens(ar, fitted), latents_of(vae, fitted), codebook=ar.codebook, space=vae.space)


def check_references(references: Sequence[Reference], codebook: str | None = None, space: LatentSpace | None = None):
    """Raise ValueError when a reference was made by another AR model or another VAE than the given ones."""
    for number, reference in enumerate(references, 1):
        if codebook is not None and reference.codebook != codebook:
            raise ValueError(
                f"reference {number} was encoded with another AR model; connect the same Load AR Model to "
                "Encode Reference and to Generate Prior"
            )
        if space is not None and reference.space != space:
            raise ValueError(
                f"reference {number} was encoded with a VAE of another latent space; load it from the DiT's checkpoint"
            )
