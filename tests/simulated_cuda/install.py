"""Puts a simulated card in the place of torch.cuda for a while."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from pytest import MonkeyPatch

from .card import Card
from .graphs import Graph, capturing
from .order import Event, Stream
from .tensors import Dispatch

GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry, by device type
CPU, CUDA = 0, 1


def why_not() -> str:
    """Why no card can be simulated here; nothing where it can."""
    if torch.cuda.is_available():
        return "there is a real card"
    try:
        device_guards()
    except (OSError, ValueError) as error:
        return f"this build of PyTorch does not show its device guards: {error}"
    return ""


@contextmanager
def simulated_cuda(total: int = 2**40) -> Iterator[Card]:
    """A card of so many bytes, as torch.cuda and to every operation, in this thread and for as long as a with block runs."""
    card = Card(total)
    lifts_cpu_tensors = torch._C._only_lift_cpu_tensors()
    with MonkeyPatch.context() as patch, _cpu_guard_for_cuda():
        for name, value in _stand_ins(card).items():
            patch.setattr(torch.cuda, name, value)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes its numbers on the CPU
        try:
            with torch._C._AutoDispatchBelowADInplaceOrView(), Dispatch(card):
                yield card
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts_cpu_tensors)


def device_guards() -> ctypes.Array:
    """The addresses of PyTorch's guards of a current device, for the CPU and for CUDA."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    return (ctypes.c_void_p * 2).in_dll(library, GUARDS)


@contextmanager
def _cpu_guard_for_cuda() -> Iterator[None]:
    """What indexes a tensor makes its device the current one first; here that is to do nothing, as for the CPU."""
    guards = device_guards()
    before, guards[CUDA] = guards[CUDA], guards[CPU]
    try:
        yield
    finally:
        guards[CUDA] = before


def _stand_ins(card: Card) -> dict[str, object]:
    """The names of torch.cuda that are replaced."""

    @contextmanager
    def stream(new: Stream | None) -> Iterator[None]:
        before, card.stream = card.stream, new or card.stream
        try:
            yield
        finally:
            card.stream = before

    @contextmanager
    def device(index: object) -> Iterator[None]:
        yield

    def set_stream(new: Stream) -> None:
        card.stream = new

    def set_sync_debug_mode(mode: int | str) -> None:
        card.sync_debug_mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)

    properties = SimpleNamespace(name="Simulated", total_memory=card.total, major=9, minor=0, multi_processor_count=132)
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": device,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "mem_get_info": lambda device=None: (card.total - card.allocated, card.total),
        "memory_allocated": lambda device=None: card.allocated,
        "memory_reserved": lambda device=None: card.allocated,
        "max_memory_allocated": lambda device=None: card.peak,
        "reset_peak_memory_stats": lambda device=None: setattr(card, "peak", card.allocated),
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: card.wait("synchronize"),
        "Stream": card.new_stream,
        "Event": lambda *_, **__: Event(),
        "stream": stream,
        "current_stream": lambda device=None: card.stream,
        "default_stream": lambda device=None: card.default_stream,
        "set_stream": set_stream,
        "CUDAGraph": partial(Graph, card),
        "graph": partial(capturing, card),
        "is_current_stream_capturing": lambda: card.capture is not None,
        "get_sync_debug_mode": lambda: card.sync_debug_mode,
        "set_sync_debug_mode": set_sync_debug_mode,
    }
