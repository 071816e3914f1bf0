"""The tensors, and what happens to each operation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from .arguments import mapped, tensors_in
from .card import Card, Memory


class SimulatedTensor(Tensor):
    """A tensor that says cuda:0. numbers: the CPU tensor that it stands for. It keeps its memory allocated."""

    numbers: Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, card: Card, numbers: Tensor):
        memory = card.memory_of(numbers)
        layout = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset(), "dtype": numbers.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, numbers.shape, device=card.device, **layout)
        tensor.numbers, tensor.memory = numbers, memory
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        assert set(types) - PLAIN, f"{operation} on a tensor of a simulated card that is gone"
        return NotImplemented

    def __repr__(self, *, tensor_contents: str | None = None) -> str:
        return f"{self.numbers!r} on cuda:0"

    def tolist(self) -> Any:
        return self.cpu().tolist()  # PyTorch has none for subclasses


PLAIN = {SimulatedTensor, Tensor, Parameter}

# Operations after which the CPU must know numbers before it goes on.
WAITING = {
    *("item", "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "argwhere", "nonzero_numpy", "masked_select"),
    *("unique", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPYING = {"to", "_to_copy", "copy_"}
RANDOM_IN_TRAINING = {"scaled_dot_product_attention", "dropout", "dropout_", "feature_dropout", "native_dropout"}


class Kind(NamedTuple):
    """What an operation's schema says of it. written: the names of the arguments that it changes."""

    name: str
    arguments: tuple[str, ...]
    written: tuple[str, ...]
    is_random: bool


@cache
def kind_of(operation: Callable) -> Kind:
    schema = operation._schema
    name = schema.name.split("::")[1]
    return Kind(
        name,
        arguments=tuple(argument.name for argument in schema.arguments),
        written=tuple(argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write),
        is_random=torch.Tag.nondeterministic_seeded in operation.tags and name not in RANDOM_IN_TRAINING,
    )


@dataclass
class Call:
    """An operation with what it is given."""

    operation: Callable
    args: tuple
    kwargs: dict[str, Any]

    def __post_init__(self):
        self.kind = kind_of(self.operation)
        self.named = dict(zip(self.kind.arguments, self.args, strict=False)) | self.kwargs
        self.tensors = tensors_in((self.args, self.kwargs))
        self.ours = [tensor for tensor in self.tensors if isinstance(tensor, SimulatedTensor)]

    @cached_property
    def is_on_card(self) -> bool:
        """Whether the result is the card's."""
        if self.kind.name == "copy_":
            return isinstance(self.named["self"], SimulatedTensor)
        if self.kind.name == "to" and "other" in self.named:
            return isinstance(self.named["other"], SimulatedTensor)
        device = self.named.get("device")
        return bool(self.ours) if device is None else torch.device(device).type == "cuda"

    @property
    def without_pinning(self) -> dict[str, Any]:
        """The keyword arguments for a PyTorch that knows no pinned memory."""
        return {name: value for name, value in self.kwargs.items() if name != "pin_memory"}

    @property
    def copied(self) -> Tensor | None:
        """What goes from one device to the other, if this is such a copy."""
        if self.kind.name not in COPYING:
            return None
        source = self.named["src" if self.kind.name == "copy_" else "self"]
        return source if isinstance(source, SimulatedTensor) != self.is_on_card else None

    @property
    def written(self) -> list[SimulatedTensor]:
        values = (self.named.get(name) for name in self.kind.written)
        return [value for value in values if isinstance(value, SimulatedTensor)]

    @property
    def strays(self) -> list[Tensor]:
        """CPU tensors among the card's. Numbers without dimensions may be there, but where tensors are joined."""
        plain = [tensor for tensor in self.tensors if not isinstance(tensor, SimulatedTensor)]
        return [tensor for tensor in plain if tensor.dim() or self.kind.name in ("cat", "stack")] if self.ours else []

    @property
    def is_sized_by_numbers(self) -> bool:
        """Whether the numbers of an index or of repeats decide about the size of the result."""
        if self.kind.name in INDEXING:
            return any(isinstance(index, SimulatedTensor) and index.dtype == torch.bool for index in self.named["indices"])
        repeats = self.named.get("repeats") if self.kind.name == "repeat_interleave" else None
        return isinstance(repeats, SimulatedTensor) and self.named.get("output_size") is None


class Dispatch(TorchDispatchMode):
    """Has operations on simulated tensors compute their numbers, and raises where a card would fail."""

    def __init__(self, card: Card):
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if set(types) - PLAIN:
            return NotImplemented  # a tensor that holds others, such as a quantized one, asks for those
        call = Call(operation, args, kwargs or {})
        name = call.kind.name
        if name == "_has_compatible_shallow_copy_type":
            return len(call.ours) != 1
        if name == "is_pinned":
            return not call.ours and self.card.is_pinned(call.tensors[0])
        if name in ("pin_memory", "_pin_memory"):
            return self.card.pin(call.tensors[0].clone())
        if not call.ours and not call.is_on_card:
            return self._in_memory(call, operation(*args, **call.without_pinning))
        assert not call.kind.is_random, f"{operation}: a card draws other random numbers than the CPU"
        waits_for = self._waits_for(call)
        result = self._compute(call)
        if waits_for:
            self.card.wait(waits_for)
        return result

    def _waits_for(self, call: Call) -> str:
        """What the CPU waits for after an operation. Raises RuntimeError for an operation that no card can do."""
        if (copied := call.copied) is not None:
            at_once = not call.named.get("non_blocking")
            if call.is_on_card:
                self.card.copy_in(copied)
                return "write" if at_once else ""
            assert at_once, "what a card writes to the CPU in its own time is not simulated"
            return "read"
        if strays := call.strays:
            if call.kind.name in INDEXING and isinstance(call.named["self"], SimulatedTensor):
                return "write"  # the index is copied first
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({call.operation}, {[list(tensor.shape) for tensor in strays]} on the CPU)"
            )
        return "read" if call.kind.name in WAITING or call.is_sized_by_numbers else ""

    def _compute(self, call: Call) -> Any:
        """The result, its allocation, and the place of the operation on its stream or in a graph."""
        card, capture, written = self.card, self.card.capture, call.written
        args, kwargs = mapped(self._numbers, (call.args, call.without_pinning))
        if capture is not None:
            capture.save([tensor.numbers for tensor in written])
        result = call.operation(*args, **kwargs)
        if call.copied is not None and not written and any(result is one for one in tensors_in((args, kwargs))):
            result = result.clone()  # on the CPU it was there already
        made = []
        if call.is_on_card:
            held = {id(tensor.numbers): tensor for tensor in call.ours}
            result = mapped(lambda one: self._wrap(one, held) if isinstance(one, Tensor) else one, result)
            before = {tensor.memory for tensor in call.ours}
            made = [tensor for tensor in tensors_in(result) if tensor.memory not in before]
            if tensors_in(result) and not made and not written:
                return result  # a view
        reads, writes = ([tensor.memory for tensor in tensors] for tensors in (call.ours, [*written, *made]))
        if capture is None:
            card.run(reads, writes)
        else:
            capture.record((call.operation, args, kwargs), [tensor.numbers for tensor in made], reads, writes)
        return self._in_memory(call, result)

    def _in_memory(self, call: Call, result: Any) -> Any:
        """A result of the CPU's in memory of the kind that was asked for."""
        return self.card.pin(result) if call.kwargs.get("pin_memory") else result

    def _numbers(self, value: Any) -> Any:
        if isinstance(value, SimulatedTensor):
            return value.numbers
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if isinstance(value, Tensor) and not value.dim() and self.card.capture is not None:
            return value.clone()  # a graph keeps the number that was there
        return value

    def _wrap(self, numbers: Tensor, held: dict[int, SimulatedTensor]) -> SimulatedTensor:
        return held[id(numbers)] if id(numbers) in held else SimulatedTensor(self.card, numbers)
