"""LoRA for both halves of the model."""

import logging

from ..glmimage_core.weights.lora import LoraError, Match, match, read_lora
from .host import host
from .sockets import AR, CATEGORY, glm_ar, glm_dit

log = logging.getLogger(__name__)


def _strength_input(what: str) -> tuple:
    tooltip = f"How strongly the LoRA changes {what}. 0 changes nothing; a negative strength reverses the change."
    return ("FLOAT", {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.01, "tooltip": tooltip})


class GLMImageLoadLoRA:
    TITLE = "Load GLM-Image LoRA"
    DESCRIPTION = (
        "Applies a LoRA to the DiT, the AR model or both. It reads the key names of diffusers, PEFT, kohya and ComfyUI, and "
        "counts keys that match nothing. The loaded models do not change. Chain these nodes for several LoRAs."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm lora", "glm peft adapter")
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", AR)
    RETURN_NAMES = ("model", "ar")
    OUTPUT_TOOLTIPS = (
        "The DiT with the LoRA. Empty if no model is connected.",
        "The AR model with the LoRA. Empty if no AR model is connected.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "lora_name": (
                    host.loras() or ["none"],
                    {"tooltip": "A safetensors file below models/loras."},
                ),
                "strength_model": _strength_input("the DiT"),
                "strength_ar": _strength_input("the AR model"),
            },
            "optional": {
                "model": ("MODEL", {"tooltip": "The DiT, from Load GLM-Image DiT."}),
                "ar": (AR, {"tooltip": "The AR model, from Load GLM-Image AR Model."}),
            },
        }

    def load(self, lora_name, strength_model, strength_ar, model=None, ar=None):
        file = host.lora_file(lora_name)
        if model is None and ar is None:
            raise ValueError("neither model nor ar is connected; connect the one that the LoRA is for, or both")
        halves = ([] if model is None else [glm_dit(model)]) + ([] if ar is None else [glm_ar(ar)])
        if library := next((half.quantized_by for half in halves if half.quantized_by), ""):
            raise ValueError(
                f"{lora_name} cannot be applied to weights that {library} quantized; load the original checkpoint and, for less "
                "memory, choose a quantization in its loader"
            )
        lora = read_lora(file)
        try:
            dit = None if model is None else match(lora, glm_dit(model).model)
            writer = None if ar is None else match(lora, glm_ar(ar).model)
        except LoraError as error:
            raise ValueError(f"{lora_name}: {error}") from error
        _report(lora_name, lora, {"DiT": dit, "AR model": writer})
        if dit and dit.weights and strength_model:
            model = host.with_lora(model, dit.tensors, strength_model)
        if writer and writer.weights and strength_ar:
            ar = host.with_lora(ar, writer.tensors, strength_ar)
        return (model, ar)


def _report(name: str, lora: dict, matches: dict[str, Match | None]) -> None:
    """Tell the user which weights a LoRA changes. Raises ValueError if it changes none."""
    found = {half: match for half, match in matches.items() if match is not None}
    if not any(match.weights for match in found.values()):
        example = f", such as {next(iter(lora))}" if lora else ""
        raise ValueError(f"{name} changes nothing in the {' or the '.join(found)}: its {len(lora)} keys match no weight{example}")
    has = ", ".join(f"{match.weights} weights of the {half}" for half, match in found.items())
    nowhere = set.intersection(*(set(match.unmatched) for match in found.values()))
    if not nowhere:
        log.info("%s is for %s", name, has)
        return
    absent = "".join(f" (the {half} is not connected)" for half, match in matches.items() if match is None)
    host.warn(f"{name} is for {has}; {len(nowhere)} of its keys match nothing here{absent}, such as {min(nowhere)}")
