"""A DiT with more blocks than the tiny checkpoint's two."""

from dataclasses import replace

from glm_image_pack.glmimage_core.glm_image.dit import Dit
from glm_image_pack.glmimage_core.tiny.weights import randomize


def deepened(dit: Dit, blocks: int) -> Dit:
    config = {key: value for key, value in dit.model.config.items() if not key.startswith("_")}
    model = type(dit.model).from_config(config | {"num_layers": blocks})
    randomize(model, f"{blocks} blocks")
    return replace(dit, model=model.eval().requires_grad_(False), cached_references={})
