"""What a GPU would be asked for, counted without one: tensors on PyTorch's meta device stand for tensors on the card.

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

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

from ..glmimage_core.weights.formats import inner_tensors
from .counter import META, Counting
from .cuda_kernels import AS_ON_CUDA


@contextmanager
def counting(*models: torch.nn.Module) -> Iterator[Counting]:
    """Count what a with block asks of the device, in inference mode. models: on the meta device; they hold the weights."""
    weights = [tensor for model in models for tensor in [*model.parameters(), *model.buffers()]]
    inner = (tensor for weight in weights for tensor in inner_tensors(weight))
    with torch.inference_mode(), _DataOfPython(), Counting(inner, AS_ON_CUDA) as counter:
        yield counter


class _DataOfPython(TorchFunctionMode):
    """torch.tensor(numbers) on the device is a tensor on the CPU and a copy; on the meta device PyTorch would skip both."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == META:
            return func(*args, **kwargs | {"device": "cpu"}).to(META)
        return func(*args, **kwargs)
