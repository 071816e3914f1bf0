"""Random models of a size, created on the device. No weights are written or read."""

from dataclasses import replace
from pathlib import Path

import torch

from ..glmimage_core.component import Component
from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.dit import Dit
from ..glmimage_core.glm_image.files import load as checkpoints
from ..glmimage_core.glm_image.files.components import COMPONENTS
from ..glmimage_core.glm_image.files.inspect import latent_space, scheduler_shift
from ..glmimage_core.glm_image.glyphs import GlyphEncoder
from ..glmimage_core.tiny.glm_image import write_layout
from ..glmimage_core.tiny.spec import RELEASED, SPECS
from ..glmimage_core.tiny.weights import randomize
from ..glmimage_core.vae import Vae

FULL = "full"
LAYOUT = Path("diffusers", "GLM-Image")


class Models:
    """Creates a new model at each call, so the caller decides how long it lives.

    folder: gets a checkpoint without its weights. The full size has a byte-level tokenizer with the released ids: it makes
    several times as many tokens of a prompt as the released tokenizer does.
    """

    def __init__(self, folder: Path, size: str, *, device: torch.device, dtype: torch.dtype, seed: int):
        if size == FULL and device.type == "cpu":
            raise ValueError(f"--size {FULL} needs an accelerator with 24 GB or more; on the CPU it would take hours")
        self.models, self.folder = folder, folder / LAYOUT
        self.device, self.dtype, self.seed = device, dtype, seed
        write_layout(self.folder, RELEASED if size == FULL else SPECS[size], seed)

    def ar(self) -> ArModel:
        from transformers import GenerationConfig

        model = self._random_model("vision_language_encoder")
        model.generation_config = GenerationConfig.from_pretrained(self.folder / "vision_language_encoder")
        return self._placed(checkpoints.ar_model(model, self.folder))

    def glyph_encoder(self) -> GlyphEncoder:
        return self._placed(checkpoints.glyph_encoder(self._random_model("text_encoder"), self.folder))

    def dit(self) -> Dit:
        space, shift = latent_space(self.folder), scheduler_shift(self.folder)
        return self._placed(Dit(self._random_model("transformer"), space, shift, checkpoint=self.folder))

    def vae(self) -> Vae:
        return self._placed(Vae(self._random_model("vae"), latent_space(self.folder)))

    def _random_model(self, name: str) -> torch.nn.Module:
        model = COMPONENTS[name].build_from(self.folder, device=self.device, dtype=self.dtype).eval()
        randomize(model, f"{self.seed}/{name}")
        return model

    def _placed(self, component: Component) -> Component:
        return replace(component.on(self.device), weights_are_static=True)
