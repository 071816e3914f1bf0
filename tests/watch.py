"""What a module is called with."""

import torch


def watch_inputs(module: torch.nn.Module) -> set[torch.device]:
    """Collects the devices of all tensors that a module is called with; the meta device lets some strays pass."""
    seen = set()

    def look(thing) -> None:
        if isinstance(thing, torch.Tensor):
            seen.add(thing.device)
        elif isinstance(thing, tuple | list | dict):
            for part in thing.values() if isinstance(thing, dict) else thing:
                look(part)

    module.register_forward_pre_hook(lambda module, args, kwargs: look((args, kwargs)), with_kwargs=True)
    return seen
