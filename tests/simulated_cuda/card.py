"""The card: its memory, what the CPU waits for, and failures on demand."""

import weakref
from collections import Counter, defaultdict

import torch

from .order import Stream


class Memory:
    """An allocation. uses: the last operation of each stream that read or wrote it; written: only the last one that wrote."""

    def __init__(self, size: int):
        self.size = size
        self.uses = Counter()
        self.written = Counter()


class Card:
    """One simulated card.

    total: bytes. allocated, peak: bytes that tensors hold now, and held at most. allocations: how many there were; number
    fail_at fails, as if memory were short. pinned_total: bytes that can be pinned. capture_error: what a capture fails with.
    waits: how often the CPU waited for the card, by what it waited for: "read" for numbers of the card, "write" for a copy from
    memory that the card cannot read by itself, "synchronize". copied: bytes that went to the card. captures, replays,
    resets: of graphs.
    """

    device = torch.device("cuda", 0)

    def __init__(self, total: int):
        self.total = total
        self.allocated = self.peak = self.allocations = self.pinned = self.copied = 0
        self.fail_at: int | None = None
        self.pinned_total = total
        self.capture_error = ""
        self.waits = Counter()
        self.captures = self.replays = self.resets = 0
        self.cpu = Counter()  # what the CPU has waited for
        self.default_stream = self.stream = self.new_stream()
        self.capture = None  # the graph that is being captured
        self.sync_debug_mode = 0
        self._freed: dict[Stream, Counter] = defaultdict(Counter)  # how the memory was used that a stream may allocate again
        self._memories: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()  # by storage
        self._pinned: set[int] = set()  # storages

    def new_stream(self, device: torch.device | None = None, priority: int = 0) -> Stream:
        return Stream(self.cpu, device)

    def wait(self, kind: str) -> None:
        """The CPU waits for the current stream. Raises RuntimeError where it may not."""
        if self.capture is not None:
            self.capture.is_broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if self.sync_debug_mode == 2:
            raise RuntimeError("called a synchronizing CUDA operation")
        self.waits[kind] += 1
        self.cpu |= self.stream.done

    def memory_of(self, tensor: torch.Tensor) -> Memory:
        """The allocation of a tensor's numbers, allocated now where it is new. Raises torch.OutOfMemoryError."""
        storage = tensor.untyped_storage()
        memory = self._memories.get(storage._cdata)
        if memory is None:
            memory = self._memories[storage._cdata] = self._allocate(storage.nbytes())
        return memory

    def _allocate(self, size: int) -> Memory:
        self.allocations += 1
        if self.allocations == self.fail_at or self.allocated + size > self.total:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.\nOther processes hold the rest.")
        stream, memory = self.stream, Memory(size)
        if self.capture is None:  # a capture has memory of its own
            stream.check_after(self._freed[stream], "memory is taken again")
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(memory, self._free, size, stream, memory.uses).atexit = False
        return memory

    def _free(self, size: int, stream: Stream, uses: Counter) -> None:
        self.allocated -= size
        self._freed[stream] |= uses

    def run(self, reads: list[Memory], writes: list[Memory]) -> None:
        """Give the current stream an operation. Raises RaceError where it did not wait for those of other streams."""
        stream = self.stream
        for memory in reads:
            stream.check_after(memory.written, "memory is read")
        for memory in writes:
            stream.check_after(memory.uses, "memory is written")
        number = stream.launch()
        for memory in (*reads, *writes):
            memory.uses[stream] = number
        for memory in writes:
            memory.written.clear()
            memory.written[stream] = number

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a CPU tensor's memory as pinned for as long as it lives. Raises RuntimeError where no more can be pinned."""
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if self.pinned + size > self.pinned_total:
            raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA.")
        self.pinned += size
        self._pinned.add(storage._cdata)
        weakref.finalize(storage, self._unpin, storage._cdata, size).atexit = False
        return tensor

    def _unpin(self, storage: int, size: int) -> None:
        self.pinned -= size
        self._pinned.discard(storage)

    def copy_in(self, source: torch.Tensor) -> None:
        """Count a copy from the CPU. Raises RuntimeError where a capture would need the CPU for it."""
        if self.capture is not None and not self.is_pinned(source):
            self.capture.is_broken = True
            raise RuntimeError(
                "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor is pinned."
            )
        self.copied += source.numel() * source.element_size()

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._pinned
