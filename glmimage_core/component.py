"""A component: one model of a checkpoint, and where and in what precision it computes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from typing_extensions import Self

if TYPE_CHECKING:
    from .weights.lora import LayeredLora


@dataclass(frozen=True, eq=False)
class Component:
    """What the components share.

    Inputs go to `device`. The weights are there too, or are brought there layer by layer by whoever placed the model; when
    `settled`, all are there and stay at their addresses for as long as the component is placed.
    compute_dtype is the precision of the computation where it is not that of the weights. loras are to be laid over the
    weights by whoever places the model. `weights` names what was laid over them: what depends on the weights, and is kept, goes
    by it. quantized_by names the library, other than this one, that holds the weights: nothing can be laid over those. home is
    the device that it is to be placed on, where that is not left to whoever places it.
    """

    model: torch.nn.Module
    device: torch.device = field(default=torch.device("cpu"), kw_only=True)
    compute_dtype: torch.dtype | None = field(default=None, kw_only=True)
    weights: str = field(default="", kw_only=True)
    loras: "tuple[LayeredLora, ...]" = field(default=(), kw_only=True)
    settled: bool = field(default=False, kw_only=True)
    home: torch.device | None = field(default=None, kw_only=True)
    quantized_by: str = field(default="", kw_only=True)

    @property
    def parts(self) -> Mapping[str, torch.nn.Module]:
        """What can be placed on its own, by name."""
        return {"model": self.model}

    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        """The parts that run one after another and make up most of the model, if it can be brought to a device by them."""
        return ()

    @property
    def dtype(self) -> torch.dtype:
        return self.compute_dtype or self.model.dtype

    def on(self, device: torch.device, compute_dtype: torch.dtype | None = None) -> Self:
        """The same component computing elsewhere. Moves nothing."""
        return replace(self, device=device, compute_dtype=compute_dtype)
