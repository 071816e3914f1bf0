"""Random weights under which activations keep their size."""

import hashlib
from collections.abc import Iterator

import torch


@torch.no_grad()
def randomize(model: torch.nn.Module, key: str) -> None:
    """Fill a model with random weights that keep activations near unit size, so that every input changes the output.

    key: as `random_weights` takes it. The numbers are drawn on each parameter's device.
    """
    for name, numbers in random_weights(model, key):
        model.get_parameter(name).copy_(numbers)


@torch.no_grad()
def random_weights(model: torch.nn.Module, key: str, device: torch.device | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """The numbers of each parameter by its name, float32, one parameter at a time.

    key: seeds a generator for each parameter, with its name; the numbers are drawn on `device`, or where the parameter is. The AR
    model's head gives ids beyond the codebook a logit of 0: the trained model makes them unlikely, and the reference
    implementation does not mask them.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for name, parameter in list(model.named_parameters()):  # the caller may replace them
        seed = int.from_bytes(hashlib.sha256(f"{key}/{name}".encode()).digest()[:7], "big")
        there = device or parameter.device
        numbers = torch.randn(
            parameter.shape, generator=torch.Generator(there).manual_seed(seed), device=there, dtype=torch.float32
        )
        if parameter.ndim == 1:  # norms around 1, biases around 0
            numbers = numbers.mul_(0.1).add_(1 if name.endswith("weight") else 0)
        elif id(parameter) not in embeddings:
            numbers = numbers.div_(parameter[0].numel() ** 0.5)
        if name == "lm_head.weight" and hasattr(model.config, "vq_config"):
            numbers[model.config.vq_config.num_embeddings :] = 0
        yield name, numbers
