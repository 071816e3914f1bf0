"""The rotary position embedding, in place: of the AR model's tokens, and of a picture's tokens in the DiT.

Numbers of a head are rotated in pairs that stand half of the rotated part apart: (a, b) becomes (a cos - b sin, b cos + a sin).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from typing_extensions import Self

from ..placement.compute import comfy_kitchen_with

IN_PLACE = "apply_rope_split_half_"  # comes with the one for a single tensor


@dataclass(frozen=True)
class Rotation:
    """How to rotate the heads of T tokens, x [B, T, heads, width]: the first R numbers of each head.

    cosine, sine: [B or 1, T, 1, R], for the first numbers of all pairs and then for the second ones. matrices: of the pairs,
    [B or 1, T, 1, R / 2, 2, 2] float32, where comfy-kitchen rotates in one operation; else None.
    """

    cosine: torch.Tensor
    sine: torch.Tensor
    matrices: torch.Tensor | None

    @classmethod
    def of(cls, cosine: torch.Tensor, sine: torch.Tensor) -> Self:
        """cosine, sine: [T, R]. On the CPU one operation is not faster, and comfy-kitchen's knows no gradients."""
        cosine, sine = (table[None, :, None] for table in (cosine, sine))
        if cosine.device.type == "cpu" or torch.is_grad_enabled() or comfy_kitchen_with(IN_PLACE) is None:
            return cls(cosine, sine, None)
        (first, second), (down, up) = (table.float().chunk(2, dim=-1) for table in (cosine, sine))
        return cls(cosine, sine, torch.stack((first, -down, up, second), dim=-1).unflatten(-1, (2, 2)))

    def at(self, places: torch.Tensor | slice) -> "Rotation | FusedRotation":
        """The rotation of the tokens at some places, a slice for all sequences or [B, T] int64."""
        index = (slice(None), places) if isinstance(places, slice) else (0, places)
        if self.matrices is not None:
            return FusedRotation(self.matrices[index])
        return Rotation(self.cosine[index], self.sine[index], None)

    def rotate_(self, *tensors: torch.Tensor) -> None:
        """Rotate one or two tensors of one shape in place. They may be parts of larger ones."""
        if self.matrices is not None and not torch.compiler.is_compiling():
            FusedRotation(self.matrices).rotate_(*tensors)
            return
        for x in tensors:
            self._rotate_plain_(x[..., : self.cosine.shape[-1]])

    def _rotate_plain_(self, x: torch.Tensor) -> None:
        """In the higher precision of x and the tables. In half precision it rounds as often as transformers."""
        half = x.shape[-1] // 2
        first, second, down, up = x[..., :half], x[..., half:], self.sine[..., :half], self.sine[..., half:]
        rotated = x * self.cosine
        if rotated.dtype == torch.float32:
            rotated[..., :half].addcmul_(second, down, value=-1)
            rotated[..., half:].addcmul_(first, up)
        else:
            rotated[..., :half] -= second * down
            rotated[..., half:] += first * up
        x.copy_(rotated)


class FusedRotation(NamedTuple):
    """A Rotation of which only the matrices are there."""

    matrices: torch.Tensor

    def rotate_(self, *tensors: torch.Tensor) -> None:
        parts = [x[..., : 2 * self.matrices.shape[-3]] for x in tensors]
        if len(parts) == 2:
            comfy_kitchen_with(IN_PLACE).apply_rope_split_half_(*parts, self.matrices)
        else:
            comfy_kitchen_with(IN_PLACE).apply_rope_split_half1_(*parts, self.matrices)
