"""A model from its config, or as its library loads it."""

from functools import cache
from pathlib import Path

import torch

from ..libraries import check_version, start

LIBRARIES = ("transformers", "diffusers", "accelerate", "safetensors")
"""Without which no model loads."""


def check_libraries() -> None:
    """Raise ImportError, with what to install, where a library that models need is missing, too old, or does not start."""
    for library in LIBRARIES:
        check_version(library)
    _start_libraries()


@cache
def _start_libraries() -> None:
    """What both libraries import first of all. They find a fault of a third library only then, and tell it as their own."""
    start("transformers.modeling_utils")
    start("diffusers.models.modeling_utils")


def load_pretrained(model_class, folder: Path, **precision):
    """A model as its library loads it, on the CPU. Raises ValueError where a weight is missing.

    precision: dtype for transformers, torch_dtype for diffusers.
    """
    model, info = model_class.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **precision
    )
    if missing := sorted(info["missing_keys"]):  # the library would leave them random
        raise ValueError(f"{folder} does not hold all its weights: {len(missing)} tensors not found, such as {missing[0]}")
    return model.eval()


def build_model(
    model_class: type[torch.nn.Module],
    config: dict,
    source: Path | str,
    *,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
    buffers: bool = False,
) -> torch.nn.Module:
    """A model from a config that was read from `source`, without its weights: on the meta device shapes, elsewhere any numbers.

    With `buffers`, parameters are on the meta device and buffers are created for real. Raises ValueError for a config that
    describes no model.
    """
    init_empty_weights = start("accelerate").init_empty_weights
    from huggingface_hub.errors import StrictDataclassError

    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False) if buffers else torch.device(device):
            if hasattr(model_class, "from_config"):  # diffusers; transformers' models have a class for their config
                return model_class.from_config(config)
            return model_class(model_class.config_class.from_dict(config))
    except (StrictDataclassError, TypeError, ValueError, KeyError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        class_name = config.get("_class_name", model_class.__name__)
        raise ValueError(f"{source} describes no {class_name} that can be built: {error}") from error
    finally:
        torch.set_default_dtype(default_dtype)
