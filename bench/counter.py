"""The dispatch mode that counts operations on meta tensors, and what it counts. `counting` has the rules."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Any, NamedTuple
from weakref import finalize

import torch
from torch._C import DispatchKey, _dispatch_has_kernel_for_dispatch_key
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from .followed import all_followed, follow, forget, may_be_followed, on_device, shape_depends_on_values, tensors_in

META = torch.device("meta")
TO_DEVICE, TO_HOST = "to the device", "to the host"
COMPOSITE = DispatchKey.CompositeImplicitAutograd
NO_KERNEL = {"_unsafe_view", "resize_", "set_", "detach_"}
READS_NO_INPUT = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like", "zero_", "fill_"}
LOOKUPS = {"embedding", "index_select", "gather", "index", "_unsafe_index"}  # in their first argument
WRITES = {"copy_", "index_put_", "scatter_", "index_copy_"}  # into their first argument, without reading it


class Kernel(NamedTuple):
    """One launch. moved: bytes read and written. weights: those of them that are the model's. flops: operations of a product, on
    operands of the dtype `products`."""

    name: str
    moved: int
    weights: int = 0
    flops: int = 0
    products: torch.dtype | None = None


@dataclass(frozen=True)
class Counts:
    """kernels: how often each was launched. copies, copied: their number and their bytes, by direction. waits: how often the CPU
    waited for the device, by what for. peak: the most bytes alive beside the weights."""

    kernels: Counter[Kernel] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    copied: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    peak: int = 0

    def __sub__(self, other: "Counts") -> "Counts":
        """What this has beyond the other, as a run of two steps has beyond one of one step. The peak is this one's.

        A kernel that only the other has is there less than no time: of two that differ in their bytes the difference is left.
        """
        differences = {}
        for name in ("kernels", "copies", "copied", "waits"):
            differences[name] = Counter(getattr(self, name))
            differences[name].subtract(getattr(other, name))
        return Counts(**differences, peak=self.peak)

    @property
    def launches(self) -> int:
        return self.kernels.total()

    @property
    def moved(self) -> int:
        return sum(kernel.moved * times for kernel, times in self.kernels.items())

    @property
    def weights(self) -> int:
        return sum(kernel.weights * times for kernel, times in self.kernels.items())

    @property
    def flops(self) -> int:
        return sum(kernel.flops * times for kernel, times in self.kernels.items())

    def by_name(self) -> Counter[str]:
        """How many kernels of each name were launched."""
        names: Counter[str] = Counter()
        for kernel, times in self.kernels.items():
            names[kernel.name] += times
        return Counter({name: times for name, times in names.items() if times})


class Counting(TorchDispatchMode):
    """Counts operations on meta tensors; `take` gives what was counted since it was last called. Made by `counting`.

    weights: the model's tensors. as_on_cuda: functions that stand in for operations, by their names. They take this and the
    operation's arguments, count what CUDA does, and return what the operation gives, or None where it is as usual.
    """

    def __init__(self, weights: Iterable[torch.Tensor], as_on_cuda: Mapping[str, Callable]):
        super().__init__()
        self.as_on_cuda = as_on_cuda
        self.weights = {_storage(weight)._cdata for weight in weights}
        self.alive: dict[int, int] = {}  # bytes by storage, of all that was made here
        self.now = 0  # bytes alive
        self.counts = Counts()
        self.peak = 0

    def take(self) -> Counts:
        """What was counted since the last call. The next peak starts from what is alive now."""
        taken = replace(self.counts, peak=self.peak)
        self.counts, self.peak = Counts(), self.now
        return taken

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a quantized weight: its own class takes the operation apart
        name = func._schema.name.removeprefix("aten::")
        inputs = tensors_in((args, kwargs))
        if META not in (*args, kwargs.get("device")) and not any(map(on_device, inputs)):
            return func(*args, **kwargs)
        if name in ("_to_copy", "copy_") and (copy := self._copy(func, args, kwargs)) is not None:
            return copy
        if name in self.as_on_cuda and (done := self.as_on_cuda[name](self, *args, **kwargs)) is not None:
            return done
        if _is_composite(func):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        if strangers := [tensor for tensor in inputs if tensor.dim() and not on_device(tensor)]:
            if name not in LOOKUPS:
                raise RuntimeError(
                    f"{func} got a tensor of shape {list(strangers[0].shape)} on the CPU among tensors on the device"
                )
            with self:
                return func(*tree_map_only(torch.Tensor, lambda tensor: tensor.to(META), args), **kwargs)
        return self._launch(func, args, kwargs, inputs)

    def _launch(self, func, args: tuple, kwargs: dict, inputs: Sequence[torch.Tensor]) -> Any:
        """Run an operation on the meta device and count it, if it is a kernel. inputs: the tensors among its arguments."""
        name = func._schema.name.removeprefix("aten::")
        if waits := shape_depends_on_values(func, kwargs):
            self.wait(name)
        known = all_followed(func, inputs)
        out = None if waits and known else func(*args, **kwargs)
        out = follow(func, args, kwargs, out) if known else out
        outputs = tensors_in(out)
        if not known:
            forget(outputs)
        if _is_view(func) or name in NO_KERNEL:
            return out
        taken = {_storage(tensor)._cdata for tensor in inputs}
        self.made(*(tensor for tensor in outputs if _storage(tensor)._cdata not in taken))  # not what is changed in place
        if name.startswith(("empty", "new_empty")):
            return out
        if name in READS_NO_INPUT:
            read = []
        elif name in LOOKUPS:
            read = [*outputs, *inputs[1:]]
        elif name in WRITES:
            read = inputs[1:]
        else:
            read = inputs
        written = inputs[-1:] if name == "index_put_" else outputs or _written(func, args)
        self.kernel(name, read, written, flops=_flops(func, args, kwargs, out))
        return out

    def kernel(self, name: str, read: Sequence[torch.Tensor], written: Sequence[torch.Tensor], *, flops: int = 0) -> None:
        """Count a launch that reads and writes these tensors."""
        read = [tensor for tensor in read if on_device(tensor)]
        weights = sum(_bytes(tensor) for tensor in read if _storage(tensor)._cdata in self.weights)
        products = read[-1].dtype if flops else None
        moved = sum(map(_bytes, [*read, *written]))
        self.counts.kernels[Kernel(name, moved, weights, flops=flops, products=products)] += 1

    def made(self, *tensors: torch.Tensor) -> None:
        """Count the storages of new tensors as alive until they go."""
        for tensor in tensors:
            storage = _storage(tensor)
            key, size = storage._cdata, storage.nbytes()
            if on_device(tensor) and key not in self.alive:
                self.alive[key] = size
                self.now += size
                self.peak = max(self.peak, self.now)
                finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key)

    def wait(self, what: str) -> None:
        self.counts.waits[what] += 1

    def _copy(self, func, args: tuple, kwargs: dict) -> torch.Tensor | None:
        """A copy between the CPU and the device, or None where it stays on the device."""
        into, source = (args[0], args[1]) if func is torch.ops.aten.copy_.default else (None, args[0])
        target = torch.device(kwargs.get("device") or source.device) if into is None else into.device
        if on_device(source) == (target == META):
            return None
        direction = TO_HOST if on_device(source) else TO_DEVICE
        self.counts.copies[direction] += 1
        dtype = kwargs.get("dtype") or source.dtype if into is None else into.dtype
        self.counts.copied[direction] += source.numel() * (source.dtype if direction == TO_HOST else dtype).itemsize
        if not (kwargs.get("non_blocking") or args[2:3] == (True,)):
            self.wait(f"copy {direction}")
        if direction == TO_HOST:
            zeros = torch.zeros((), dtype=dtype).expand(source.shape)  # which take no memory
            value = source.followed.to(dtype, copy=True) if hasattr(source, "followed") else zeros
            return value if into is None else into.copy_(value)
        if into is None:
            into = torch.empty(source.shape, dtype=dtype, device=META)
            self.made(into)
        if may_be_followed(source) and may_be_followed(into):
            into.followed = source.to(into.dtype, copy=True).expand(into.shape).clone()
        return into


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _bytes(tensor: torch.Tensor) -> int:
    """The bytes of a tensor's numbers in memory: those of an expanded one are there once."""
    return tensor.element_size() * prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)


@cache
def _is_composite(func) -> bool:
    """Whether PyTorch's C++ makes an operation of others, on every device."""
    return _dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def _is_view(func) -> bool:
    """Whether an operation only looks at its input in another way."""
    returns = [returned.alias_info for returned in func._schema.returns]
    return bool(returns) and all(alias is not None and not alias.is_write for alias in returns)


def _written(func, args: tuple) -> list[torch.Tensor]:
    """The arguments that an operation changes in place."""
    aliases = [declared.alias_info for declared in func._schema.arguments]
    return [arg for arg, alias in zip(args, aliases, strict=False) if alias is not None and alias.is_write]


def _flops(func, args: tuple, kwargs: dict, out: Any) -> int:
    """Operations of a product or a convolution, by PyTorch's own formulas."""
    formula = flop_registry.get(func._overloadpacket)
    return formula(*args, **kwargs, out_val=out) if formula else 0
