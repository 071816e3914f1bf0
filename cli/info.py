"""`python . info`: what a bug report needs."""

import argparse
import os
import platform
from collections.abc import Sequence

from ..glmimage_core.version import NAME, pack_version
from .version import version_of

REQUIRED = ("transformers", "diffusers", "accelerate", "safetensors")
OPTIONAL = (
    *("comfy-kitchen", "bitsandbytes", "torchao", "gguf", "sdnq"),  # quantized weights
    *("triton", "flash-attn", "sageattention"),  # torch.compile and attention
    *("sentencepiece", "protobuf", "torchvision", "scipy"),  # tokenizers, image processors, `score`
)
"""Names of packages as pip knows them."""


def add_parser(commands, common: Sequence[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "info",
        parents=common,
        help="print versions and devices, for a bug report",
        description="Prints versions, devices, memory and the optional libraries that are installed.",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    _line(NAME, pack_version())
    _line("Python", f"{platform.python_version()}, {platform.platform()}")

    import psutil
    import torch

    from ..glmimage_core.units import human_bytes

    _line("torch", torch.__version__)
    for name in REQUIRED:
        _line(name, version_of(name) or "not installed")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        _line(f"cuda:{index}", f"{properties.name}, {human_bytes(total)}, {human_bytes(free)} free, {runtime}")
    if torch.backends.mps.is_available():
        _line("mps", f"{human_bytes(torch.mps.recommended_max_memory())} recommended at most")
    _line("cpu", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    memory = psutil.virtual_memory()
    _line("RAM", f"{human_bytes(memory.total)}, {human_bytes(memory.available)} available")
    versions = {name: version_of(name) for name in OPTIONAL}
    _line("optional", ", ".join(f"{name} {found}" for name, found in versions.items() if found) or "none")
    _line("not installed", ", ".join(name for name, found in versions.items() if not found) or "none")
    return 0


def _line(name: str, value: str) -> None:
    print(f"{name + ':':19} {value}")
