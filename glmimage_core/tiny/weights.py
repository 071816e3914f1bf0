"""Random weights that keep a signal's size."""

import hashlib

import torch


@torch.no_grad()
def randomize(model: torch.nn.Module, key: str) -> None:
    """Fill a model with random weights that keep activations near unit size, so that every input shows in the output.

    The numbers are drawn where the weights are. Ids beyond the AR model's codebook get a logit of 0, as unlikely as in the
    trained model, whose reference does not mask them.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for name, parameter in model.named_parameters():
        number = int.from_bytes(hashlib.sha256(f"{key}/{name}".encode()).digest()[:7], "big")
        generator = torch.Generator(parameter.device).manual_seed(number)
        noise = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32)
        if parameter.ndim == 1:  # norms around 1, biases around 0
            parameter.copy_(0.1 * noise + (1 if name.endswith("weight") else 0))
        elif id(parameter) in tables:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        if name == "lm_head.weight" and hasattr(model.config, "vq_config"):
            parameter[model.config.vq_config.num_embeddings :] = 0
