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

from .diffusion import Grid
from .geometry import PRIOR_PX, reference_grid
from .images import from_picture
from .prior import ArModel
from .vae import LatentSpace, Vae, encode


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


def fit(ar: ArModel, picture: Image.Image) -> Image.Image:
    """Resize a picture of any size to the one that the AR model's vision grid implies, both sides multiples of 32 px."""
    grid = reference_grid(*picture.size, ar.shortest_edge, ar.longest_edge)
    size = (grid.width * PRIOR_PX, grid.height * PRIOR_PX)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


@torch.inference_mode()
def vision_tokens(ar: ArModel, fitted: Image.Image) -> torch.Tensor:
    """The AR model's tokens of a fitted picture: [height / 32, width / 32] int64 on the CPU.

    The picture is halved with the processor's own filter, since the AR model sees 16 x 16 pixels a token.
    """
    grid = Grid(fitted.height // PRIOR_PX, fitted.width // PRIOR_PX)
    halved = fitted.resize((fitted.width // 2, fitted.height // 2), ar.image_processor.resample)
    patches = ar.image_processor(images=halved, do_resize=False, return_tensors="pt").pixel_values  # [tokens, 3*16*16]
    core = ar.model.model
    features = core.visual(
        patches.to(ar.device, ar.dtype),
        grid_thw=torch.tensor([[1, *grid]], device=ar.device),
    ).last_hidden_state  # [tokens, C]
    features = features.T.reshape(1, -1, *grid)  # [1, C, H, W]
    return core.vqmodel.encode(features).image_tokens.reshape(grid).cpu()


def latents_of(vae: Vae, fitted: Image.Image, tiled: bool = False) -> torch.Tensor:
    """The VAE's latents of a fitted picture: [1, 16, height / 8, width / 8] float32 on the CPU."""
    return encode(vae, from_picture(fitted), tiled)


def encode_reference(ar: ArModel, vae: Vae, picture: Image.Image) -> Reference:
    """A picture of any size as both models see it; they are where they are. Raises as `encode` does."""
    fitted = fit(ar, picture)
    return Reference(*fitted.size, vision_tokens(ar, fitted), latents_of(vae, fitted), ar.codebook, vae.space)


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
