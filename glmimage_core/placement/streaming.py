"""A model that does not fit on the device: its blocks are brought there one by one, each while the one before computes.

The weights stay where they are; what is on the device are copies, so nothing has to be brought back.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch.nn import Module, Parameter

from ..weights.formats import inner_tensors, rebuilt


class _StreamedModules:
    """Modules whose weights are replaced by copies on a device for a while.

    Copies are made on `stream`, if there is one. It waits for what was asked of the device before, so memory that was freed
    for computing can be written again; whoever computes waits for it in turn.
    """

    def __init__(self, modules: Sequence[Module], device: torch.device, stream: "torch.cuda.Stream | None"):
        self.slots = [
            (tensors, name)
            for module in modules
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self.device, self.stream = device, stream
        self._copies: list[torch.Tensor] | None = None
        self._originals: list[torch.Tensor] | None = None
        self._made: torch.cuda.Event | None = None

    def prefetch(self) -> None:
        """Begin to copy what is there now. Does nothing where that was begun already."""
        if self._copies is not None:
            return
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            self._copies = [rebuilt(tensors[name], self._copy) for tensors, name in self.slots]
            if self.stream is not None:
                self._made = self.stream.record_event()

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)

    def attach(self) -> None:
        """Have the modules compute with the copies."""
        # A quantized weight cannot be made a parameter of another mode than the one it was made in.
        with torch.inference_mode(False), torch.no_grad():
            self.prefetch()
            if self._made is not None:
                torch.cuda.current_stream(self.device).wait_event(self._made)
            self._originals = [tensors[name] for tensors, name in self.slots]
            for (tensors, name), here, copy in zip(self.slots, self._originals, self._copies, strict=True):
                tensors[name] = Parameter(copy, requires_grad=False) if isinstance(here, Parameter) else copy

    def release(self) -> None:
        """Drop the copies and have the modules as they were."""
        if self._originals is not None:
            for (tensors, name), original in zip(self.slots, self._originals, strict=True):
                tensors[name] = original
        self._copies = self._originals = None


@contextmanager
def streamed(model: Module, blocks: Sequence[Module], resident: int, device: torch.device) -> Iterator[None]:
    """Have a model compute on `device` for the length of a with block, with `resident` of its blocks there all the time.

    blocks run in their order, any number of times. The others are brought when the block before them begins, so that two at
    most are there beside the resident ones.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream is not None:
        _pin(blocks[resident:])
    inside = {module for block in blocks[resident:] for module in block.modules()}
    staying = _StreamedModules([module for module in model.modules() if module not in inside], device, None)
    coming = [_StreamedModules(list(block.modules()), device, stream) for block in blocks[resident:]]
    hooks = []
    try:
        staying.attach()
        for index, (block, one) in enumerate(zip(blocks[resident:], coming, strict=True)):
            following = coming[(index + 1) % len(coming)]

            def begin(module, inputs, one=one, following=following):
                one.attach()
                with torch.inference_mode(False), torch.no_grad():
                    following.prefetch()

            hooks.append(block.register_forward_pre_hook(begin))
            hooks.append(block.register_forward_hook(lambda module, inputs, output, one=one: one.release()))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for one in (staying, *coming):
            one.release()


def _pin(blocks: Sequence[Module]) -> None:
    """Put weights into memory that the device copies from by itself; they stay there."""
    for module in (module for block in blocks for module in block.modules()):
        for name, parameter in module._parameters.items():
            if parameter is not None and not all(part.is_pinned() for part in inner_tensors(parameter)):
                module._parameters[name] = Parameter(rebuilt(parameter, torch.Tensor.pin_memory), requires_grad=False)


def resident_blocks(others_bytes: int, block_bytes: Sequence[int], room: int) -> int | None:
    """How many blocks can be on a device with `room` bytes for weights, beside the rest of the model and two that come and go.

    None where not even those two fit.
    """
    left = room - others_bytes - 2 * max(block_bytes)
    if left < 0:
        return None
    count = 0
    for size in block_bytes[:-2]:
        left -= size
        if left < 0:
            break
        count += 1
    return count
