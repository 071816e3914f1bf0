"""What a GPU would be asked for, counted without one: tensors on PyTorch's meta device stand for tensors on the card.

    counting   a with block in which all operations on meta tensors are counted
    Counts     kernels with their traffic and arithmetic, copies, waits, and the most bytes alive

Operations arrive as CUDA would launch them: PyTorch's own C++ takes composite ones apart. What CUDA does otherwise than the meta
device is stated here. Attention is one kernel, flash without a mask and memory-efficient with an added one. rms_norm is one:
`aten::_fused_rms_norm` has a CUDA kernel since PyTorch 2.9, and older ones launch about six. group_norm is three: moments,
factors, their use. A convolution adds its bias in a kernel of its own, as with cuDNN. Any other operation is one kernel, however
many a library launches for it, as for a sort or for a product that is split along its inner side.

A kernel moves its inputs and outputs once. A lookup reads the rows that it takes, an expanded tensor is read once, and what a
kernel only overwrites is not read. Bytes alive are those of storages, without the allocator's rounding and libraries' workspaces.

As on CUDA, a CPU tensor with dimensions must not meet the device's, except as an index and in a copy, and a copy that is not
asked to be non-blocking makes the CPU wait. Small integer tensors that come from the CPU are followed, since their values decide
shapes. Of all others, what comes back to the CPU is 0, and a single number is 1.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple
from weakref import finalize

import torch
from torch._C import DispatchKey, _dispatch_has_kernel_for_dispatch_key
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from ..glmimage_core.weights.formats import inner_tensors

META = torch.device("meta")
TO_DEVICE, TO_HOST = "to the device", "to the host"
FOLLOWED = 2**16  # numbers of an integer tensor, at most, whose values are followed
COMPOSITE = DispatchKey.CompositeImplicitAutograd
NO_KERNEL = {"_unsafe_view", "resize_", "set_", "detach_"}
READS_NO_INPUT = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like", "zero_", "fill_"}
LOOKUPS = {"embedding": 0, "index_select": 0, "gather": 0, "index": 0, "_unsafe_index": 0}  # the argument that is looked up in
WRITES = {"copy_": 0, "index_put_": 0, "scatter_": 0, "index_copy_": 0}  # the argument that is written without being read
aten = torch.ops.aten


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


@contextmanager
def counting(*models: torch.nn.Module) -> Iterator["Counting"]:
    """Count what a with block asks of the device, in inference mode. models: on the meta device; they hold the weights."""
    weights = [tensor for model in models for tensor in [*model.parameters(), *model.buffers()]]
    with (
        torch.inference_mode(),
        _DataOfPython(),
        Counting(inner for weight in weights for inner in inner_tensors(weight)) as counter,
    ):
        yield counter


class _DataOfPython(TorchFunctionMode):
    """torch.tensor(numbers) on the device is a tensor on the CPU and a copy; on the meta device PyTorch would skip both."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == META:
            return func(*args, **kwargs | {"device": "cpu"}).to(META)
        return func(*args, **kwargs)


class Counting(TorchDispatchMode):
    """Counts operations on meta tensors; `take` gives what was counted since it was last called. Made by `counting`."""

    def __init__(self, weights: Iterator[torch.Tensor]):
        super().__init__()
        self.weights = {_storage(weight)._cdata for weight in weights}
        self.alive: dict[int, int] = {}  # bytes by storage, of all that was made here
        self.now = 0  # bytes alive
        self.counts = Counts()
        self.peak = 0

    def take(self) -> Counts:
        """What was counted since the last call. The next peak starts from what is alive now."""
        taken = Counts(self.counts.kernels, self.counts.copies, self.counts.copied, self.counts.waits, peak=self.peak)
        self.counts, self.peak = Counts(), self.now
        return taken

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a quantized weight: its own class takes the operation apart
        name = func._schema.name.removeprefix("aten::")
        leaves = tree_leaves((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if META not in leaves and not any(map(_on_device, inputs)):
            return func(*args, **kwargs)
        if name in ("_to_copy", "copy_") and (copy := self._copy(func, args, kwargs)) is not None:
            return copy
        if name in AS_ON_CUDA and (done := AS_ON_CUDA[name](self, *args, **kwargs)) is not None:
            return done
        if _dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        if strangers := [tensor for tensor in inputs if tensor.dim() and not _on_device(tensor)]:
            if name not in LOOKUPS:
                raise RuntimeError(
                    f"{func} got a tensor of shape {list(strangers[0].shape)} on the CPU among tensors on the device"
                )
            with self:
                return func(*tree_map_only(torch.Tensor, lambda tensor: tensor.to(META), args), **kwargs)
        return self._launch(func, args, kwargs)

    def _launch(self, func, args: tuple, kwargs: dict) -> Any:
        """Run an operation on the meta device and count it, if it is a kernel."""
        name = func._schema.name.removeprefix("aten::")
        if waits := _shape_depends_on_values(func, kwargs):
            self.wait(name)
        out = None if waits and _all_followed(func, args, kwargs) else func(*args, **kwargs)
        out = _follow(func, args, kwargs, out)
        inputs, outputs = ([t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)] for tree in ((args, kwargs), out))
        if _is_view(func) or name in NO_KERNEL:
            return out
        known = {_storage(tensor)._cdata for tensor in inputs}
        self.made(*(tensor for tensor in outputs if _storage(tensor)._cdata not in known))  # not what is changed in place
        if name.startswith(("empty", "new_empty")):
            return out
        if name in READS_NO_INPUT:
            read = []
        elif name in LOOKUPS:
            read = [*outputs, *(tensor for tensor in inputs if tensor is not args[LOOKUPS[name]])]
        elif name in WRITES:
            read = [tensor for tensor in inputs if tensor is not args[WRITES[name]]]
        else:
            read = inputs
        written = inputs[-1:] if name == "index_put_" else outputs
        self.kernel(name, read, written, flops=_flops(func, args, kwargs, out))
        return out

    def kernel(self, name: str, read: Sequence[torch.Tensor], written: Sequence[torch.Tensor], *, flops: int = 0) -> None:
        """Count a launch that reads and writes these tensors."""
        read = [tensor for tensor in read if _on_device(tensor)]
        weights = sum(_bytes(tensor) for tensor in read if _storage(tensor)._cdata in self.weights)
        products = read[-1].dtype if flops else None
        self.counts.kernels[Kernel(name, sum(map(_bytes, [*read, *written])), weights, flops, products)] += 1

    def made(self, *tensors: torch.Tensor) -> None:
        """Count the storages of new tensors as alive until they go."""
        for tensor in tensors:
            storage = _storage(tensor)
            key, size = storage._cdata, storage.nbytes()
            if _on_device(tensor) and key not in self.alive:
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
        into, source = (args[0], args[1]) if func is aten.copy_.default else (None, args[0])
        target = torch.device(kwargs.get("device") or source.device) if into is None else into.device
        if _on_device(source) == (target == META):
            return None
        direction = TO_HOST if _on_device(source) else TO_DEVICE
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
        if _may_be_followed(source) and _may_be_followed(into):
            into.followed = source.to(into.dtype, copy=True).expand(into.shape).clone()
        return into


def _follow(func, args: tuple, kwargs: dict, out: Any) -> Any:
    """Remember the values of the integers that an operation gives, where all that it takes is known. Returns what it gives.

    out: that, or None where its shape depends on these values.
    """
    results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    if not (_all_followed(func, args, kwargs) and all(map(_may_be_followed, results))):
        for tensor in results:
            tensor.__dict__.pop("followed", None)  # what was known of it is overwritten
        return out
    known_args, known_kwargs = tree_map_only(torch.Tensor, lambda tensor: getattr(tensor, "followed", tensor), (args, kwargs))
    if "device" in kwargs:
        known_kwargs["device"] = torch.device("cpu")
    values = func(*known_args, **known_kwargs)
    if out is None:
        out = tree_map_only(torch.Tensor, lambda value: torch.empty(value.shape, dtype=value.dtype, device=META), values)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    for tensor, value in zip(results, (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)), strict=True):
        tensor.followed = value
    return out


def _all_followed(func, args: tuple, kwargs: dict) -> bool:
    """Whether the values of all that an operation takes are known, and decide what it gives."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    decided = func.namespace == "aten" and "empty" not in func._schema.name and torch.Tag.nondeterministic_seeded not in func.tags
    return decided and all(hasattr(tensor, "followed") for tensor in tensors if _on_device(tensor))


def _may_be_followed(tensor: torch.Tensor) -> bool:
    return tensor.numel() <= FOLLOWED and not tensor.is_floating_point()


def _shape_depends_on_values(func, kwargs: dict) -> bool:
    """Whether the CPU must wait for an operation's input before it knows the shape of what the operation gives."""
    of_masks = func._schema.name in ("aten::index", "aten::_unsafe_index")  # which `_index` sees to
    return torch.Tag.dynamic_output_shape in func.tags and not of_masks and kwargs.get("output_size") is None


def _on_device(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "meta"


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _bytes(tensor: torch.Tensor) -> int:
    """The bytes of a tensor's numbers in memory: those of an expanded one are there once."""
    return tensor.element_size() * prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)


def _is_view(func) -> bool:
    """Whether an operation only looks at its input in another way."""
    returns = [returned.alias_info for returned in func._schema.returns]
    return bool(returns) and all(alias is not None and not alias.is_write for alias in returns)


def _flops(func, args: tuple, kwargs: dict, out: Any) -> int:
    """Operations of a product or a convolution, by PyTorch's own formulas."""
    formula = flop_registry.get(func._overloadpacket)
    return formula(*args, **kwargs, out_val=out) if formula else 0


def _item(counter: Counting, tensor: torch.Tensor) -> int | float | bool:
    counter.wait("item")
    followed = getattr(tensor, "followed", None)
    return torch.ones((), dtype=tensor.dtype).item() if followed is None else followed.item()


def _nonzero(counter: Counting, tensor: torch.Tensor) -> torch.Tensor | None:
    """As if nothing were zero, where the values are not known."""
    if hasattr(tensor, "followed"):
        return None
    counter.wait("nonzero")
    out = torch.empty(tensor.numel(), tensor.dim(), dtype=torch.int64, device=META)
    counter.made(out)
    counter.kernel("nonzero", [tensor], [out])
    return out


def _index(counter: Counting, tensor: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """A boolean index is the places where it is true, for which the CPU waits."""
    if not any(index is not None and index.dtype == torch.bool for index in indices):
        return None
    places: list[torch.Tensor | None] = []
    with counter:
        for index in indices:
            is_mask = index is not None and index.dtype == torch.bool
            places += index.nonzero().unbind(1) if is_mask else [index]
        return aten.index.Tensor(tensor, places)


def _attention(
    counter: Counting,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_,
    **__,
) -> torch.Tensor:
    """[B, heads, T, width] -> the same, whose memory is laid out [B, T, heads, width]."""
    with counter:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask, -torch.inf)
        if attn_mask is not None and attn_mask.shape[-1] % ALIGNED:
            attn_mask = torch.nn.functional.pad(attn_mask, (0, -attn_mask.shape[-1] % ALIGNED))
        batch, heads, rows, _ = query.shape
        out = query.new_empty(batch, rows, heads, value.shape[-1]).transpose(1, 2)
    name, masks = ("flash_attention", []) if attn_mask is None else ("efficient_attention", [attn_mask])
    counter.kernel(name, [*masks, query, key, value], [out], flops=4 * query.numel() * key.shape[-2])
    return out


def _rms_norm(counter: Counting, x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float | None) -> tuple:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    deviations = torch.empty(*x.shape[: x.dim() - len(shape)], *(1 for _ in shape), device=META)  # float32
    counter.made(out, deviations)
    counter.kernel("_fused_rms_norm", [x] if weight is None else [x, weight], [out, deviations])
    return out, deviations


def _plain_rms_norm(counter: Counting, x: torch.Tensor, shape: Sequence[int], weight=None, eps=None) -> torch.Tensor | None:
    """Of one dtype, or PyTorch takes it apart on CUDA too."""
    return None if weight is not None and weight.dtype != x.dtype else _rms_norm(counter, x, shape, weight, eps)[0]


def _group_norm(counter: Counting, x: torch.Tensor, *parameters, **_) -> tuple:
    """Reads its input for the moments, then again for the result."""
    out, mean, deviation = (torch.empty_like(x), *(x.new_empty(x.shape[0], parameters[5]) for _ in range(2)))
    factors = torch.empty(2, x.shape[0], x.shape[1], device=META)
    counter.made(out, mean, deviation, factors)
    affine = [tensor for tensor in parameters[:2] if tensor is not None]
    counter.kernel("group_norm: moments", [x], [mean, deviation])
    counter.kernel("group_norm: factors", [mean, deviation, *affine], [factors])
    counter.kernel("group_norm: result", [x, factors], [out])
    return out, mean, deviation


def _convolution(
    counter: Counting, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *settings
) -> torch.Tensor | None:
    if bias is None:
        return None
    with counter:
        out = aten.convolution.default(x, weight, None, *settings)
        return out.add_(bias.view(1, -1, *(1 for _ in x.shape[2:])))


def _masked_fill(counter: Counting, x: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor:
    with counter:
        return x.clone().masked_fill_(mask, value)


def _pad(counter: Counting, x: torch.Tensor, pad: Sequence[int], value: float = 0) -> torch.Tensor:
    """pad: places before and after, the last side first."""
    before = [0] * (x.dim() - len(pad) // 2) + list(pad[::2])[::-1]
    after = [0] * (x.dim() - len(pad) // 2) + list(pad[1::2])[::-1]
    with counter:
        out = x.new_full([size + a + b for size, a, b in zip(x.shape, before, after, strict=True)], value)
        inside = out
        for side, (start, size) in enumerate(zip(before, x.shape, strict=True)):
            inside = inside.narrow(side, start, size)
        inside.copy_(x)
    return out


def _int8_linear(
    counter: Counting, x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, *_
) -> torch.Tensor:
    """comfy-kitchen's product on CUDA: the rows of the input to 8 bits, then a product that scales its result."""
    rounded, row_scales = torch.empty(x.shape, dtype=torch.int8, device=META), torch.empty(*x.shape[:-1], 1, device=META)
    out = x.new_empty(*x.shape[:-1], len(codes))
    counter.made(rounded, row_scales, out)
    biases = [] if bias is None else [bias]
    counter.kernel("int8: round rows", [x], [rounded, row_scales])
    counter.kernel("int8: product", [*biases, scale, row_scales, rounded, codes], [out], flops=2 * x.numel() * len(codes))
    return out


ALIGNED = 16  # to a multiple of which the memory-efficient attention pads a mask
AS_ON_CUDA: dict[str, Callable] = {
    "_local_scalar_dense": _item,
    "nonzero": _nonzero,
    "index": _index,
    "scaled_dot_product_attention": _attention,
    "_fused_rms_norm": _rms_norm,
    "rms_norm": _plain_rms_norm,
    "native_group_norm": _group_norm,
    "convolution": _convolution,
    "masked_fill": _masked_fill,
    "constant_pad_nd": _pad,
    "comfy_kitchen::int8_linear": _int8_linear,
}
"""Operations that the meta device takes apart otherwise than CUDA, or cannot run. Each returns None where it is as usual."""
