"""Capture and replay of CUDA graphs, operation by operation."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .arguments import tensors_in
from .card import Card, Memory
from .order import Stream

POISON = {torch.bool: True, torch.uint8: 255}


class Graph:
    """What stands in for torch.cuda.CUDAGraph.

    A capture runs nothing: what operations wrote to memory that was there before is taken back, and what they made is undefined
    until the first replay.
    """

    def __init__(self, card: Card, keep_graph: bool = False):
        self.card = card
        self.is_broken = False  # by an operation that no capture allows
        self._operations: list[tuple[Callable, tuple, dict, list[torch.Tensor]]] = []
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._own: list[Memory] = []
        self._outer: dict[int, weakref.ref[Memory]] = {}
        self._written: list[weakref.ref[Memory]] = []

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    def save(self, written: list[torch.Tensor]) -> None:
        """Note numbers that the next operation overwrites."""
        self._before += [(numbers, numbers.clone()) for numbers in written]

    def record(self, call: tuple[Callable, tuple, dict], made: list[torch.Tensor], reads: list[Memory], writes: list[Memory]):
        """An operation on CPU tensors. made: its results in new memory."""
        self._operations.append((*call, made))
        new = [self.card.memory_of(tensor) for tensor in made]
        self._own += new
        for memory in reads:
            if memory not in self._own:
                self._outer[id(memory)] = weakref.ref(memory)
        self._written += [weakref.ref(memory) for memory in writes]

    def begin(self) -> None:
        if self.card.capture_error:
            raise RuntimeError(self.card.capture_error)
        self.card.capture = self

    def end(self) -> None:
        self.card.capture = None
        for numbers, before in reversed(self._before):
            numbers.copy_(before)
        self._before.clear()
        for *_, made in self._operations:
            for numbers in made:
                undefined = float("nan") if numbers.is_floating_point() else POISON.get(numbers.dtype, -(2**20))
                numbers.fill_(undefined)
        if self.is_broken:
            self.reset()
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.card.captures += 1

    def replay(self) -> None:
        """Run the operations again over the same memory."""
        outer = [memory() for memory in self._outer.values()]
        assert self._operations, "a graph is replayed that holds nothing"
        assert None not in outer, "a graph reads memory that was freed"
        self.card.run(outer, [*self._own, *(memory() for memory in self._written if memory() is not None)])
        self.card.replays += 1
        for function, args, kwargs, made in self._operations:
            results = tensors_in(function(*args, **kwargs))
            if made:
                for numbers, result in zip(made, results, strict=True):
                    numbers.copy_(result)

    def reset(self) -> None:
        self.card.resets += bool(self._operations)
        for held in (self._operations, self._own, self._outer, self._written):
            held.clear()


@contextmanager
def capturing(
    card: Card, graph: Graph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    """What stands in for torch.cuda.graph. As there, a capture that failed leaves its own stream the current one.

    Theirs also waits for the whole device before it begins. Nobody should need that, so this one does not.
    """
    before, card.stream = card.stream, stream or card.new_stream()
    graph.begin()
    try:
        yield
    finally:
        graph.end()
    card.stream = before
