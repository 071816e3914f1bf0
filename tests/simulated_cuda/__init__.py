"""A CUDA card that is not there: tensors that say cuda:0 and hold their numbers on the CPU.

What a card would refuse is refused: an operation over two devices, a wait or a copy from pageable memory inside a capture, more
memory than it has. What a card would forgive and then compute wrongly is refused too: work on a stream that did not wait for
what it reads, a graph over memory that was freed. A captured graph is replayed operation by operation, so that whatever a step
takes from Python is frozen in it, as on a card. Time and kernels are not simulated.

order      streams and events: what is done before what
card       memory, waits, and failures on demand
arguments  the tensors among an operation's arguments
graphs     capture and replay
tensors    the tensors, and what happens to each operation
install    puts all this in the place of torch.cuda for a while
"""

from .card import Card
from .install import simulated_cuda, why_not
from .order import RaceError
from .tensors import SimulatedTensor

__all__ = ["Card", "RaceError", "SimulatedTensor", "simulated_cuda", "why_not"]
