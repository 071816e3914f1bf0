"""Random weights under which activations keep their size."""

import hashlib

import torch


@torch.no_grad()
def randomize(model: torch.nn.Module, key: str) -> None:
    """Fill a model with random weights that keep activations near unit size, so that every input changes the output.

    key: seeds a generator for each parameter, with its name; the numbers are drawn on the parameter's device. The AR model's
    head gives ids beyond the codebook a logit of 0: the trained model makes them unlikely, and the reference implementation does
    not mask them.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for name, parameter in model.named_parameters():
        seed = int.from_bytes(hashlib.sha256(f"{key}/{name}".encode()).digest()[:7], "big")
        generator = torch.Generator(parameter.device).manual_seed(seed)
        noise = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32)
        if parameter.ndim == 1:  # norms around 1, biases around 0
            parameter.copy_(0.1 * noise + (1 if name.endswith("weight") else 0))
        elif id(parameter) in embeddings:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        if name == "lm_head.weight" and hasattr(model.config, "vq_config"):
            parameter[model.config.vq_config.num_embeddings :] = 0
