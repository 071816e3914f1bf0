"""Which models are on the device, and which one leaves.

Models are loaded to the CPU and copied to the device when a stage needs them. They stay there while there is room; the least
recently used one leaves first. Where no two models fit together, one model at a time is on the device. The CPU keeps the weights,
so nothing is copied back: a weight that changed on the device is again as it was.
"""

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import psutil
import torch

from ..units import human_bytes
from ..weights.formats import inner_tensors
from .streaming import least_bytes, resident_blocks, streamed, tensor_slots

# Bytes for what no formula counts: workspaces of libraries, fragmentation, other programs. ComfyUI reserves 400 MiB for the same
# (600 on Windows; EXTRA_RESERVED_VRAM in its model_management).
HEADROOM = 512 * 2**20

log = logging.getLogger(__name__)


class Residency:
    """Places models on one device.

    free_bytes returns how many bytes of the device are free. make_room, if given, asks other owners of the device to free that
    many bytes. Models are held weakly: a model that nobody else holds is gone. Not for several threads at once.
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
        self._resident: list[weakref.ref[torch.nn.Module]] = []  # the least recently used one first
        self._left: weakref.WeakKeyDictionary[torch.nn.Module, _Tensors] = weakref.WeakKeyDictionary()  # on the CPU

    @property
    def resident(self) -> list[torch.nn.Module]:
        """The models on the device, the least recently used one first."""
        return [model for ref in self._resident if (model := ref()) is not None]

    @contextmanager
    def hold(
        self, model: torch.nn.Module, working_bytes: int = 0, blocks: Sequence[torch.nn.Module] = ()
    ) -> Iterator[torch.device]:
        """Keep the model on the device, with `working_bytes` more free, for as long as a with block runs.

        It stays afterwards, and leaves when another model needs the room. A model that does not fit beside its working memory
        is streamed, if `blocks` names its blocks in the order in which they run. Raises torch.OutOfMemoryError where not even
        that fits.
        """
        if self.device == self._offload_device:
            yield self.device
        elif self._make_space(model, working_bytes) or not blocks:
            self._admit(model)
            yield self.device
        else:
            self.release(model)
            with self._streamed(model, working_bytes, blocks):
                yield self.device

    def fits(self, model: torch.nn.Module, working_bytes: int) -> bool:
        """Whether the model would fit beside its working memory if all others left."""
        if self.device == self._offload_device:
            return True
        return self.free_bytes() + sum(map(model_bytes, self.resident)) >= model_bytes(model) + working_bytes

    def release(self, model: torch.nn.Module) -> None:
        """Take a model off the device: it gets back the weights that it left. Does nothing for a model that is not there."""
        self._resident = [ref for ref in self._resident if ref() not in (None, model)]
        if model in self._left:
            self._left.pop(model).put_back()
        if self.device != self._offload_device:
            model.to(self._offload_device)  # what came to it on the device

    def _make_space(self, model: torch.nn.Module, working_bytes: int) -> bool:
        """Have others leave until the model fits beside its working memory; whether it does."""
        resident = self.resident
        others = [other for other in resident if other is not model]
        is_resident = len(others) < len(resident)
        needed = working_bytes + (0 if is_resident else model_bytes(model))
        if self.free_bytes() < needed:
            self._make_room(needed)
        while others and self.free_bytes() < needed:
            leaving = others.pop(0)
            log.info("%s leaves %s for %s", type(leaving).__name__, self.device, type(model).__name__)
            self.release(leaving)
        return self.free_bytes() >= needed

    def _admit(self, model: torch.nn.Module) -> None:
        """Move a model to the device. A move that fails leaves no part of the model there."""
        self._resident = [ref for ref in self._resident if ref() not in (None, model)]
        if model not in self._left:
            self._left[model] = _Tensors(model)
        try:
            model.to(self.device)
        except torch.OutOfMemoryError as error:
            self.release(model)
            raise torch.OutOfMemoryError(
                f"Not enough memory on {self.device}: {type(model).__name__} takes {human_bytes(model_bytes(model))}; "
                f"{human_bytes(self.free_bytes())} is free without any other model. Choose a quantization in its loader."
            ) from error
        except BaseException:
            self.release(model)
            raise
        self._resident.append(weakref.ref(model))

    def _streamed(
        self, model: torch.nn.Module, working_bytes: int, blocks: Sequence[torch.nn.Module]
    ) -> AbstractContextManager[None]:
        """Stream a model, with as many of its blocks on the device all the time as fit beside its working memory."""
        sizes = [model_bytes(block) for block in blocks]
        others, free = model_bytes(model) - sum(sizes), self.free_bytes()
        resident = resident_blocks(others, sizes, free - working_bytes)
        if resident is None:
            raise torch.OutOfMemoryError(
                f"Not enough memory on {self.device}: {type(model).__name__} needs {human_bytes(least_bytes(others, sizes))} "
                f"even when streamed block by block, plus {human_bytes(working_bytes)} for activations; {human_bytes(free)} is "
                "free. Use a smaller size or batch, or a quantization."
            )
        copied = human_bytes(sum(sizes[resident:]))
        log.info("%s: %s are copied to %s in every pass", type(model).__name__, copied, self.device)
        return streamed(model, blocks, resident=resident, device=self.device)


class _Tensors:
    """The parameters and buffers that a model has now. Does not hold the model."""

    def __init__(self, model: torch.nn.Module):
        self.places = [
            (tensors, name, tensor := tensors[name], tensor.data if _is_plain(tensor) else tensor)
            for tensors, name in tensor_slots(model.modules())
        ]

    def put_back(self) -> None:
        for tensors, name, tensor, data in self.places:
            if _is_plain(tensor):
                tensor.data = data  # which `Module.to` has changed
            tensors[name] = tensor


def _is_plain(tensor: torch.Tensor) -> bool:
    return not hasattr(tensor, "__tensor_flatten__")


def current(device: torch.device) -> AbstractContextManager:
    """Make a GPU the current one for as long as a with block runs: kernels of other libraries go by the current device.

    Kinds of which a machine has one only, such as mps, know no current device.
    """
    if device.index is None or device.type not in ("cuda", "xpu"):
        return nullcontext()
    return torch.get_device_module(device).device(device)


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers; of quantized ones those of codes and scales."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(inner.numel() * inner.element_size() for tensor in tensors for inner in inner_tensors(tensor))


def free_device_bytes(device: torch.device) -> int:
    """Bytes that can be counted on: free memory and PyTorch's own unused reserve, less HEADROOM.

    Raises ValueError for a kind of device whose free memory PyTorch cannot tell.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve - HEADROOM
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory() - HEADROOM
    if device.type == "cpu":
        return psutil.virtual_memory().available - HEADROOM
    raise ValueError(f"cannot tell the free memory of {device}; give Residency a free_bytes")
