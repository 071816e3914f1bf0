"""Which model is on the device, and who must leave.

Models are loaded to the CPU and brought to the device when a stage needs them. They stay there while there is room; the
one unused for longest leaves first. When nothing fits beside anything, one model at a time is on the device.
"""

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from ..weights.formats import inner_tensors
from .streaming import resident_blocks, streamed

HEADROOM = 512 * 2**20  # bytes for what no formula knows: libraries' workspaces, fragmentation, other programs

log = logging.getLogger(__name__)


class Residency:
    """Places models on one device.

    free_bytes tells how much of the device is free. make_room, if given, first asks others than this object to
    free that many bytes. Models are held weakly: one that nobody else holds is gone. Not for several threads at once.
    """

    def __init__(
        self,
        device: torch.device,
        free_bytes: Callable[[], int] | None = None,
        make_room: Callable[[int], None] = lambda needed: None,
    ):
        self.device = device
        self.free_bytes = free_bytes or (lambda: free_device_bytes(device))
        self._make_room = make_room
        self._offload_device = torch.device("cpu")
        self._resident: list[weakref.ref[torch.nn.Module]] = []  # the one unused for longest first

    @property
    def resident(self) -> list[torch.nn.Module]:
        """The models on the device, the one unused for longest first."""
        return [model for ref in self._resident if (model := ref()) is not None]

    @contextmanager
    def hold(
        self, model: torch.nn.Module, working_bytes: int = 0, blocks: Sequence[torch.nn.Module] = ()
    ) -> Iterator[torch.device]:
        """Have the model on the device, with `working_bytes` more free, for the length of a with block.

        It stays afterwards, and leaves when another one needs the room. One that does not fit beside its working memory is
        brought block by block, where it names the `blocks` that it runs in their order.
        """
        if self.device == self._offload_device or self._make_space(model, working_bytes) or not blocks:
            if self.device != self._offload_device:
                self._admit(model)
            yield self.device
            return
        self.release(model)
        sizes = [model_bytes(block) for block in blocks]
        others, room = model_bytes(model) - sum(sizes), self.free_bytes() - working_bytes
        resident = resident_blocks(others, sizes, room)
        if resident is None:
            raise torch.OutOfMemoryError(
                f"{type(model).__name__} needs {(others + 2 * max(sizes)) / 1e9:.1f} GB even when it is brought block by block, "
                f"and {working_bytes / 1e9:.1f} GB to work with; {self.device} has {self.free_bytes() / 1e9:.1f} GB free: make a "
                "smaller picture or fewer at once, or quantize the model"
            )
        brought = sum(sizes[resident:]) / 1e9
        log.info("%s: %.1f GB are brought to %s in every pass", type(model).__name__, brought, self.device)
        with streamed(model, blocks, resident, self.device):
            yield self.device

    def fits(self, model: torch.nn.Module, working_bytes: int) -> bool:
        """Whether the model would fit beside its working memory if all others left."""
        if self.device == self._offload_device:
            return True
        return self.free_bytes() + sum(map(model_bytes, self.resident)) >= model_bytes(model) + working_bytes

    def release(self, model: torch.nn.Module) -> None:
        """Move a model off the device. Does nothing for one that is not there."""
        self._resident = [ref for ref in self._resident if ref() not in (None, model)]
        if self.device != self._offload_device:
            model.to(self._offload_device)

    def _make_space(self, model: torch.nn.Module, working_bytes: int) -> bool:
        """Have others leave until the model fits beside its working memory; whether it does."""
        here = self.resident
        others = [other for other in here if other is not model]
        needed = working_bytes + (0 if len(others) < len(here) else model_bytes(model))
        if self.free_bytes() < needed:
            self._make_room(needed)
        while others and self.free_bytes() < needed:
            leaving = others.pop(0)
            log.info("%s leaves %s for %s", type(leaving).__name__, self.device, type(model).__name__)
            self.release(leaving)
        return self.free_bytes() >= needed

    def _admit(self, model: torch.nn.Module) -> None:
        self._resident = [ref for ref in self._resident if ref() not in (None, model)]
        try:
            model.to(self.device)
        except torch.OutOfMemoryError as error:
            model.to(self._offload_device)  # no part of it stays behind
            size, free = model_bytes(model) / 1e9, self.free_bytes() / 1e9
            raise torch.OutOfMemoryError(
                f"{type(model).__name__} takes {size:.1f} GB, and {self.device} has {free:.1f} GB free without any other model; "
                "choose a quantization where the model is loaded"
            ) from error
        except BaseException:
            model.to(self._offload_device)
            raise
        self._resident.append(weakref.ref(model))


def current(device: torch.device) -> AbstractContextManager:
    """Have a GPU be the current one for the length of a with block: kernels of other libraries go by that."""
    return nullcontext() if device.index is None or device.type == "cpu" else torch.get_device_module(device).device(device)


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers; of quantized ones those of codes and scales."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(part.numel() * part.element_size() for tensor in tensors for part in inner_tensors(tensor))


def free_device_bytes(device: torch.device) -> int:
    """Bytes that can be counted on: what is free and PyTorch's own unused reserve, less HEADROOM.

    Raises ValueError for a kind of device whose free memory PyTorch cannot tell.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve - HEADROOM
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory() - HEADROOM
    raise ValueError(f"cannot tell the free memory of {device}; give Residency a free_bytes")
