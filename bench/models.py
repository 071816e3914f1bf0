"""Random models of a size, made on the device: no checkpoint is written or read."""

from dataclasses import replace
from pathlib import Path

import torch

from ..glmimage_core.checkpoints import folders
from ..glmimage_core.component import Component
from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.dit import Dit
from ..glmimage_core.glm_image.files import load as checkpoints
from ..glmimage_core.glm_image.files.components import build
from ..glmimage_core.glm_image.files.inspect import latent_space, scheduler_shift
from ..glmimage_core.glm_image.glyphs import GlyphEncoder
from ..glmimage_core.tiny.glm_image import write_layout
from ..glmimage_core.tiny.spec import RELEASED, SPECS
from ..glmimage_core.tiny.weights import randomize
from ..glmimage_core.vae import Vae

FULL = "full"
LAYOUT = Path("diffusers", "GLM-Image")


class Models:
    """Makes each model when asked, in a place of its own: whoever asks holds it.

    folder gets all of a checkpoint but its weights. The byte-level tokenizer of the small sizes serves the released one too,
    with its ids: a prompt is several times as many tokens as the released tokenizer makes of it.
    """

    def __init__(self, folder: Path, size: str, device: torch.device, dtype: torch.dtype, seed: int):
        if size == FULL and device.type == "cpu":
            raise ValueError(f"--size {FULL} needs an accelerator, of 24 GB or more; the CPU would be busy for hours")
        self.models, self.folder = folder, folder / LAYOUT
        self.device, self.dtype, self.seed = device, dtype, seed
        write_layout(self.folder, RELEASED if size == FULL else SPECS[size], seed)

    def ar(self) -> ArModel:
        from transformers import GenerationConfig

        model = self._made("vision_language_encoder")
        model.generation_config = GenerationConfig.from_pretrained(self.folder / "vision_language_encoder")
        return self._placed(checkpoints.ar_model(model, self.folder))

    def glyph_encoder(self) -> GlyphEncoder:
        return self._placed(checkpoints.glyph_encoder(self._made("text_encoder"), self.folder))

    def dit(self) -> Dit:
        space, shift = latent_space(self.folder), scheduler_shift(self.folder)
        return self._placed(Dit(self._made("transformer"), space, shift, checkpoint=self.folder))

    def vae(self) -> Vae:
        return self._placed(Vae(self._made("vae"), latent_space(self.folder)))

    def _made(self, name: str) -> torch.nn.Module:
        config_file = self.folder / name / "config.json"
        config = folders.read_json(config_file)
        model = build(name, config, config_file, self.device, self.dtype).eval()
        randomize(model, f"{self.seed}/{name}")
        return model

    def _placed(self, component: Component) -> Component:
        return replace(component.on(self.device), weights_are_static=True)
