"""How a model computes on its device: the attention backend, torch.compile, comfy-kitchen's operations."""

import shutil
from importlib.util import find_spec
from types import MethodType, ModuleType

import torch

from ..libraries import started

# Our names, and diffusers' names for its backends
ATTENTION_BACKENDS = {"sdpa": "native", "cudnn": "_native_cudnn", "flash": "flash", "sage": "sage"}
PACKAGES = {"flash": "flash-attn", "sage": "sageattention"}


def emulates(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device has no instructions of its own for products in a dtype: a CPU in half precision without AVX-512.

    It converts each product then, which takes many times as long as float32.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return False
    if not torch.backends.mkldnn.is_available():
        return True
    of_dtype = "bf16" if dtype == torch.bfloat16 else "fp16"
    return not getattr(torch.ops.mkldnn, f"_is_mkldnn_{of_dtype}_supported")()


def check_attention_backend(attention: str, device: torch.device) -> None:
    """Raise ImportError, with what to install, for a missing backend, ValueError for a device that it does not run on."""
    if attention == "auto":
        return
    from diffusers.models.attention_dispatch import attention_backend

    if attention not in ATTENTION_BACKENDS:
        raise ValueError(f"attention {attention!r} is not one of auto, {', '.join(ATTENTION_BACKENDS)}")
    try:
        with attention_backend(ATTENTION_BACKENDS[attention]):
            pass
    except RuntimeError as error:
        raise ImportError(
            f"attention {attention} needs {PACKAGES.get(attention, 'a newer PyTorch')}, which is missing or too old; install it, "
            f"or choose auto or sdpa ({error})"
        ) from error
    if attention != "sdpa" and device.type != "cuda":
        raise ValueError(f"attention {attention} runs on CUDA, not on {device.type}; choose auto or sdpa")


def use_attention_backend(model: torch.nn.Module, attention: str, device: torch.device) -> None:
    """Compute a model's attention by one of ATTENTION_BACKENDS; auto leaves the choice to diffusers."""
    check_attention_backend(attention, device)
    if attention in PACKAGES and model.dtype == torch.float32:
        raise ValueError(
            f"attention {attention} computes in bfloat16 and float16, and this model is in float32; choose another dtype"
        )
    if attention != "auto":
        from diffusers.models.attention_dispatch import attention_backend

        backend = ATTENTION_BACKENDS[attention]
        with attention_backend(backend):  # diffusers changes the backend of other models too; the with block restores it
            model.set_attention_backend(backend)


def comfy_kitchen_with(operation: str) -> ModuleType | None:
    """comfy-kitchen where it starts and has an operation. Older releases lack some."""
    comfy_kitchen = started("comfy_kitchen")
    return comfy_kitchen if hasattr(comfy_kitchen, operation) else None


def check_compiler() -> None:
    """Raise ImportError where torch.compile cannot make kernels for the device of this machine."""
    if torch.cuda.is_available():
        if find_spec("triton") is None:
            raise ImportError("compile needs Triton, which is missing: pip install triton (on Windows, triton-windows)")
    elif not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise ImportError("compile needs a C++ compiler, and none was found; install one, or switch compile off")


def compile_blocks(model: torch.nn.Module) -> None:
    """Compile each block when it first runs, which takes about a minute; all blocks share the compiled code.

    The forward alone: hooks, which put streamed weights in place, run before and after it as they are.
    """
    check_compiler()
    for block in model.transformer_blocks:
        block.forward = MethodType(torch.compile(type(block).forward), block)  # a copy of the block gets its own
