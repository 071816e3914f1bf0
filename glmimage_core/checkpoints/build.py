"""A model from its config, or as its library loads it."""

from contextlib import nullcontext
from functools import cache
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from ..libraries import check_version, start
from .settings import count

LIBRARIES = ("transformers", "diffusers", "accelerate", "safetensors")
"""Without which no model loads."""

# What transformers and diffusers raise, in no order, for settings in a config that mean nothing
CONFIG_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError),
    *(OSError, RecursionError, RuntimeError, TypeError, ValueError),
)
TENSORS_BESIDE = 1000  # that a model has beside those that its files hold: buffers, weights that are tied or quantized otherwise
MOST_LABELS = 10_000


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


def _check_entries(config: dict, source: Path | str) -> None:
    """Raise ValueError for what transformers does not check in a config or one inside it.

    It makes a name for each of num_labels, and looks a model_type up in tables while it loads.
    """
    for key, value in config.items():
        if key == "model_type" and not isinstance(value, str):
            raise ValueError(f"model_type in {source} is {str(value)[:40]}, which is no name")
        if key == "num_labels":
            count(value, f"num_labels in {source}", MOST_LABELS)
        elif isinstance(value, dict):
            _check_entries(value, source)


class _AtMost(TorchFunctionMode):
    """Stops the building of a model that has many more tensors than its files hold."""

    def __init__(self, stored: int):
        self.stored, self.left = stored, 2 * stored + TENSORS_BESIDE
        super().__init__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.empty, torch.ones, torch.zeros, torch.arange):
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"it has many more tensors than the {self.stored} that are stored")
        return func(*args, **(kwargs or {}))


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
    tensors: int | None = None,
) -> torch.nn.Module:
    """A model from a config that was read from `source`, without its weights: on the meta device shapes, elsewhere any numbers.

    With `buffers`, parameters are on the meta device and buffers are created for real. tensors: how many the model's files hold;
    a config of many more is refused as soon as these are counted. Raises ValueError for a config that describes no model.
    """
    init_empty_weights = start("accelerate").init_empty_weights
    from huggingface_hub.errors import StrictDataclassError

    _check_entries(config, source)
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        bound = nullcontext() if tensors is None else _AtMost(tensors)
        with bound, init_empty_weights(include_buffers=False) if buffers else torch.device(device):
            if hasattr(model_class, "from_config"):  # diffusers; transformers' models have a class for their config
                return model_class.from_config(config)
            return model_class(model_class.config_class.from_dict(config))
    except (StrictDataclassError, *CONFIG_ERRORS) as error:
        class_name = config.get("_class_name", model_class.__name__)
        raise ValueError(f"{source} describes no {class_name} that can be built: {error}") from error
    finally:
        torch.set_default_dtype(default_dtype)
