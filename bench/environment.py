"""What the figures of a benchmark depend on besides the code: libraries, device, settings."""

import platform
from argparse import Namespace
from importlib.metadata import version

import torch

from .table import Value


def environment(name: str, options: Namespace) -> dict[str, Value]:
    """Printed above the tables and saved with them. Counts have no rounds, nor what goes with them."""
    measured = (
        {"threads": torch.get_num_threads(), "rounds": options.rounds, "seed": options.seed} if hasattr(options, "rounds") else {}
    )
    return {
        "bench": name,
        "size": options.size,
        "dtype": str(options.dtype).removeprefix("torch."),
        "device": _device_name(options.device),
        **measured,
        "torch": torch.__version__,  # unlike the metadata, it says which CUDA or ROCm it was built for
        **{library: version(library) for library in ("transformers", "diffusers")},
    }


def _device_name(device: torch.device) -> str:
    if device.type == "meta":
        return "none, PyTorch's meta device stands for one"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
