"""What the figures of a benchmark depend on besides the code: libraries, device, settings."""

import platform
from argparse import Namespace

import torch
from torch.utils import collect_env

from ..cli.version import version_of
from ..glmimage_core.version import NAME, pack_version
from .table import Value

LIBRARIES = ("transformers", "diffusers", "comfy-kitchen", "bitsandbytes")


def environment(name: str, options: Namespace) -> dict[str, Value]:
    """Printed above the tables and saved with them. Counts have no rounds, nor what goes with them."""
    measured = (
        {"threads": torch.get_num_threads(), "rounds": options.rounds, "seed": options.seed} if hasattr(options, "rounds") else {}
    )
    return {
        "bench": name,
        "size": options.size,
        "dtype": str(options.dtype).removeprefix("torch."),
        **({"quantization": options.quantization} if "quantization" in options else {}),
        "device": _device_name(options.device),
        **(_cuda(options.device) if options.device.type == "cuda" else {}),
        **measured,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,  # unlike the metadata, it says which CUDA or ROCm it was built for
        **{library: version_of(library) for library in LIBRARIES},
        NAME: pack_version(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "meta":
        return "none, PyTorch's meta device stands for one"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def _cuda(device: torch.device) -> dict[str, Value]:
    """Of a GPU of NVIDIA or AMD. The driver is None where PyTorch does not find it."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "memory": properties.total_memory,  # bytes
        "capability": f"{properties.major}.{properties.minor}",
        "driver": None if torch.version.hip else collect_env.get_nvidia_driver_version(collect_env.run),
        "runtime": f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}",
        "allocator": torch.cuda.get_allocator_backend(),
    }
