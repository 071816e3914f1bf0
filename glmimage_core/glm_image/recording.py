"""Passes of the decoder with their draws, in the fastest way for a device: on CUDA a recorded graph for each number of tokens."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..placement.streams import side_stream
from .decoder import DecodeState, Window, decode_window, filled_window, masked_window
from .draw import Sampling, draw

log = logging.getLogger(__name__)

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(tokens [B, W], the step of the first of each sequence [B] int64, noise [B, W, V]), on the model's device -> the token drawn
after each, [B, W] int64. A recorded step writes them to the same memory each time."""


@contextmanager
def decoder(state: DecodeState, sampling: Sampling) -> Iterator[Step]:
    """The fastest way to run a pass and draw on the state's device; but for rounding, all ways give the same tokens.

    On the CPU a token attends to the filled part of the cache. Elsewhere it attends to all of it behind a mask, so that
    every pass of as many tokens is the same operations on the same memory and can be recorded as a CUDA graph. Where the
    weights do not keep their addresses, or recording failed before, passes are not recorded.
    """
    ar = state.ar
    if ar.device.type == "cpu":
        yield PlainSteps(state, sampling, filled_window)
    elif ar.device.type == "cuda" and ar.weights_are_static and ar.may_record and ar.device not in ar.cannot_record:
        steps = RecordedSteps(state, sampling)
        try:
            yield steps
        finally:
            steps.reset()
    else:
        yield PlainSteps(state, sampling, masked_window)


@dataclass(frozen=True)
class PlainSteps:
    """Passes, each as its operations. window: over which part of the cache, filled_window or masked_window."""

    state: DecodeState
    sampling: Sampling
    window: Callable[[DecodeState, torch.Tensor, int], Window]

    def __call__(self, tokens: torch.Tensor, steps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        window = self.window(self.state, steps, tokens.shape[1])
        return draw(self.sampling, decode_window(self.state, tokens, window), noise)


RECORD_AFTER = 2  # plain passes of a size in a run: recording takes about as long as a few of them


class RecordedSteps:
    """Passes as CUDA graphs: one for each number of tokens that a run uses often, over the same memory.

    A pass that waits for the device cannot be recorded. That is found out beforehand, by a pass that may not wait. Where that or
    recording fails, the model's passes are not recorded on this device again.
    """

    def __init__(self, state: DecodeState, sampling: Sampling):
        self.plain, self.ar, self.device = PlainSteps(state, sampling, masked_window), state.ar, state.ar.device
        self.recordings: dict[int, Recording] = {}
        self.uses: Counter[int] = Counter()  # of each number of tokens

    def __call__(self, tokens: torch.Tensor, steps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        rows = tokens.shape[1]
        self.uses[rows] += 1
        if self.uses[rows] > RECORD_AFTER and rows not in self.recordings and self.device not in self.ar.cannot_record:
            self._record(tokens, steps, noise)
        return self.recordings.get(rows, self.plain)(tokens, steps, noise)

    def reset(self) -> None:
        """Free the graphs while the memory that they use is still there."""
        for recording in self.recordings.values():
            recording.graph.reset()

    def _record(self, *first: torch.Tensor) -> None:
        """Record a pass of as many tokens as these inputs have. No other thread may wait for a GPU meanwhile."""
        inputs = [value.clone() for value in first]
        main, before = torch.cuda.current_stream(self.device), torch.cuda.get_sync_debug_mode()
        side, graph = side_stream(self.device, "recording"), torch.cuda.CUDAGraph()
        pool = next((recording.graph.pool() for recording in self.recordings.values()), None)
        side.wait_stream(main)
        try:
            with torch.cuda.stream(side):
                self.plain(*inputs)  # writes where the next pass will; libraries allocate their workspaces
                torch.cuda.set_sync_debug_mode("error")
                self.plain(*inputs)
            torch.cuda.set_sync_debug_mode(before)
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                drawn = self.plain(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("decoding without a CUDA graph, which is slower: %s", str(error).splitlines()[0])
            self.ar.cannot_record.add(self.device)
        else:
            self.recordings[inputs[0].shape[1]] = Recording(graph, inputs, drawn)
        finally:
            torch.cuda.set_sync_debug_mode(before)
            torch.cuda.set_stream(main)  # a recording that fails leaves its own
            main.wait_stream(side)


class Recording(NamedTuple):
    """A pass as a CUDA graph, with the memory that it reads (tokens, steps and noise) and the one that it writes."""

    graph: "torch.cuda.CUDAGraph"
    inputs: Sequence[torch.Tensor]
    drawn: torch.Tensor

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        for place, value in zip(self.inputs, inputs, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.drawn
