"""Streams and events: each knows how many operations of each stream are done before its next one begins."""

from collections import Counter
from dataclasses import dataclass, field


class RaceError(AssertionError):
    """Work began that another stream's work may still disturb. No RuntimeError, which a program may take for a failed capture."""


@dataclass(eq=False)
class Event:
    done: Counter = field(default_factory=Counter)


@dataclass(eq=False)
class Stream:
    """done: operations by stream, of which its own are all those that it was given. `cpu` is what the CPU has waited for."""

    cpu: Counter
    device: object = None
    done: Counter = field(default_factory=Counter)

    def launch(self) -> int:
        """Give the stream an operation; returns its number."""
        self.done |= self.cpu
        self.done[self] += 1
        return self.done[self]

    def wait_stream(self, other: "Stream") -> None:
        self.done |= other.done

    def wait_event(self, event: Event) -> None:
        self.done |= event.done

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.done = Counter(self.done)
        return event

    def check_after(self, uses: Counter, what: str) -> None:
        """Raise RaceError unless uses, operations by stream, are done before the next operation of this stream."""
        if any(self.done[stream] < number and self.cpu[stream] < number for stream, number in uses.items()):
            raise RaceError(f"{what} without waiting for the stream that uses the memory")
