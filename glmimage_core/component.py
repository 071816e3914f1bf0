"""A component: one model of a checkpoint, and where and in what precision it computes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from typing_extensions import Self

if TYPE_CHECKING:
    from .weights.lora import WeightedLora


@dataclass(frozen=True, eq=False)
class Component:
    """What all components share.

    device: where inputs go. The weights are there too, or are copied there layer by layer by whoever placed the model.
    weights_are_static: all weights are on the device and keep their addresses for as long as the component is placed.
    may_join: weights may be laid out anew, several as parts of one; not where others move them one by one.
    may_record: passes may be recorded as CUDA graphs, which fails while others use a GPU.
    streamed: some weights are copied to the device in every pass.
    compute_dtype: the precision of the computation where it differs from that of the weights.
    loras: applied to the weights by whoever places the model. weights_key changes when a LoRA changes the weights; cached
    results that depend on the weights are stored under it.
    quantized_by: the external library that owns the weights, if any; LoRAs cannot be applied to those.
    target_device overrides the host's default device.
    """

    model: torch.nn.Module
    device: torch.device = field(default=torch.device("cpu"), kw_only=True)
    compute_dtype: torch.dtype | None = field(default=None, kw_only=True)
    weights_key: str = field(default="", kw_only=True)
    loras: "tuple[WeightedLora, ...]" = field(default=(), kw_only=True)
    weights_are_static: bool = field(default=False, kw_only=True)
    may_join: bool = field(default=True, kw_only=True)
    may_record: bool = field(default=True, kw_only=True)
    streamed: bool = field(default=False, kw_only=True)
    target_device: torch.device | None = field(default=None, kw_only=True)
    quantized_by: str = field(default="", kw_only=True)

    @property
    def parts(self) -> Mapping[str, torch.nn.Module]:
        """The modules that can be placed alone, by name."""
        return {"model": self.model}

    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        """The modules that run one after another, if the model can be streamed to a device by them."""
        return ()

    @property
    def dtype(self) -> torch.dtype:
        return self.compute_dtype or self.model.dtype

    def on(self, device: torch.device, compute_dtype: torch.dtype | None = None) -> Self:
        """The same component computing elsewhere. Moves nothing."""
        return replace(self, device=device, compute_dtype=compute_dtype)
