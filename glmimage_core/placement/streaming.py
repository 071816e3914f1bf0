"""A model that does not fit on the device: its blocks are copied there one by one, each while the one before it computes.

The weights stay where they are. The device holds copies, so nothing has to be moved back.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch.nn import Module, Parameter

from ..weights.formats import is_pinned, map_inner_tensors
from .streams import side_stream

log = logging.getLogger(__name__)


def tensor_slots(modules: Iterable[Module]) -> list[tuple[dict[str, torch.Tensor | None], str]]:
    """Where modules hold their own parameters and buffers: (those of a module, the name of one)."""
    return [
        (tensors, name)
        for module in modules
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]


class _StreamedModules:
    """Modules that compute with copies of their weights on a device for a while.

    The copies are made on `stream`, if there is one. It waits for the work that the device was given before, so that memory
    which that work frees can be written again. Whoever computes with the copies waits for the stream in turn.
    """

    def __init__(self, modules: Sequence[Module], device: torch.device, stream: "torch.cuda.Stream | None"):
        self.slots = tensor_slots(modules)
        self.device, self.stream = device, stream
        self._copies: list[torch.Tensor] | None = None
        self._originals: list[torch.Tensor] | None = None
        self._copied: torch.cuda.Event | None = None

    def prefetch(self) -> None:
        """Begin to copy the weights. Does nothing where that has begun already."""
        if self._copies is not None:
            return
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            self._copies = [map_inner_tensors(self._copy, tensors[name]) for tensors, name in self.slots]
            if self.stream is not None:
                self._copied = self.stream.record_event()

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)

    def attach(self) -> None:
        """Put the copies into the modules."""
        # A quantized weight cannot become a parameter in another inference mode than it was made in.
        with torch.inference_mode(False), torch.no_grad():
            self.prefetch()
            if self._copied is not None:
                torch.cuda.current_stream(self.device).wait_event(self._copied)
            self._originals = [tensors[name] for tensors, name in self.slots]
            for (tensors, name), original, copy in zip(self.slots, self._originals, self._copies, strict=True):
                tensors[name] = Parameter(copy, original.requires_grad) if isinstance(original, Parameter) else copy

    def release(self) -> None:
        """Drop the copies and put the originals back into the modules."""
        if self._originals is not None:
            for (tensors, name), original in zip(self.slots, self._originals, strict=True):
                tensors[name] = original
        self._copies = self._originals = None


@contextmanager
def streamed(model: Module, blocks: Sequence[Module], *, resident: int, device: torch.device) -> Iterator[None]:
    """Have a model compute on `device` for as long as a with block runs, with its first `resident` blocks there all the time.

    The blocks run in their order, any number of times. Each other block is copied when the block before it begins, so that at
    most two are on the device beside the resident ones.
    """
    stream = side_stream(device, "copying") if device.type == "cuda" else None
    streamed_blocks = blocks[resident:]
    if stream is not None:
        _pin(streamed_blocks)
    inside = {module for block in streamed_blocks for module in block.modules()}
    staying = _StreamedModules([module for module in model.modules() if module not in inside], device, None)
    weights = [_StreamedModules(list(block.modules()), device, stream) for block in streamed_blocks]
    hooks = []
    try:
        staying.attach()
        for index, block in enumerate(streamed_blocks):
            own, following = weights[index], weights[(index + 1) % len(weights)]

            def attach_and_prefetch(module, inputs, own=own, following=following):
                own.attach()
                with torch.inference_mode(False), torch.no_grad():
                    following.prefetch()

            hooks.append(block.register_forward_pre_hook(attach_and_prefetch))
            hooks.append(block.register_forward_hook(lambda module, inputs, output, own=own: own.release()))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for modules in (staying, *weights):
            modules.release()


def _pin(blocks: Sequence[Module]) -> None:
    """Put the weights into pinned memory, which a CUDA device copies from while it computes; they stay there.

    A system may have less of it than the weights need, such as half of the memory. The rest is then copied from where it is.
    """
    for module in (module for block in blocks for module in block.modules()):
        for name, parameter in module._parameters.items():
            if parameter is not None and not is_pinned(parameter):
                try:
                    pinned = map_inner_tensors(torch.Tensor.pin_memory, parameter)
                except RuntimeError as error:
                    log.warning("streaming is slower: not all weights can be pinned (%s)", str(error).splitlines()[0])
                    return
                module._parameters[name] = Parameter(pinned, requires_grad=False)


def least_bytes(others_bytes: int, block_bytes: Sequence[int]) -> int:
    """Bytes of a streamed model on the device when no block is resident: all but the blocks, and the two that come and go."""
    return others_bytes + 2 * max(block_bytes)


def resident_blocks(others_bytes: int, block_bytes: Sequence[int], room: int) -> int | None:
    """How many of the first blocks can stay on a device with `room` bytes for weights. None where not even streaming fits.

    others_bytes: of the rest of the model.
    """
    left = room - least_bytes(others_bytes, block_bytes)
    if left < 0:
        return None
    count = 0
    for size in block_bytes[:-2]:
        left -= size
        if left < 0:
            break
        count += 1
    return count
