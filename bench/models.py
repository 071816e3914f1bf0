"""GLM-Image with random weights of a size, made on the device; on the meta device only its shapes. No weights are read."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from typing_extensions import Self

from ..glmimage_core import GlmImage
from ..glmimage_core.checkpoints.report import DTYPES
from ..glmimage_core.component import Component
from ..glmimage_core.glm_image.ar_model import ArModel, halves_of
from ..glmimage_core.glm_image.dit import Dit
from ..glmimage_core.glm_image.files import load as checkpoints
from ..glmimage_core.glm_image.files.components import COMPONENTS
from ..glmimage_core.glm_image.files.inspect import latent_space, scheduler_shift
from ..glmimage_core.glm_image.files.processor import load_image_processor, reference_limits
from ..glmimage_core.glm_image.glyphs import GlyphEncoder
from ..glmimage_core.tiny.glm_image import write_layout
from ..glmimage_core.tiny.spec import RELEASED, SPECS
from ..glmimage_core.tiny.weights import random_weights
from ..glmimage_core.vae import Vae
from ..glmimage_core.weights.formats import Mark, stored_headers
from ..glmimage_core.weights.linear import assemble_weight, quantizable, quantize_weight, set_quantized_weight

FULL = "full"
LAYOUT = Path("diffusers", "GLM-Image")
CPU = torch.device("cpu")
EVERYTHING = ("",)  # as `offloaded`: all names begin so


@dataclass(eq=False)
class RandomGlmImage(GlmImage):
    """Each model is made when it is first asked for. `del` gives its memory back, and the next one is made anew.

    checkpoint: holds everything but weights. The full size has a byte-level tokenizer with the released ids: it makes several
    times as many tokens of a prompt as the released tokenizer does. offloaded: parameters whose names begin so are made on the
    device too, and stay on the CPU.
    """

    seed: int = 0
    offloaded: tuple[str, ...] = ()

    @classmethod
    def make(cls, models: Path, size: str, *, device: torch.device, dtype: str, seed: int, quantization: str = "none") -> Self:
        """models: the models folder that gets the checkpoint. quantization: of the AR model and the DiT."""
        if size == FULL and device.type == "cpu":
            raise ValueError(f"--size {FULL} needs an accelerator with 24 GB or more; on the CPU it would take hours")
        checkpoint = models / LAYOUT
        write_layout(checkpoint, RELEASED if size == FULL else SPECS[size], seed)
        return cls(checkpoint, device, dtype=dtype, seed=seed, quantization=quantization)

    @cached_property
    def ar(self) -> ArModel:
        from transformers import GenerationConfig

        model = self._random_model("vision_language_encoder")
        model.generation_config = GenerationConfig.from_pretrained(self.checkpoint / "vision_language_encoder")
        return self._on_device(checkpoints.ar_model(model, self.checkpoint))

    @cached_property
    def glyph_encoder(self) -> GlyphEncoder:
        return self._on_device(checkpoints.glyph_encoder(self._random_model("text_encoder"), self.checkpoint))

    @cached_property
    def dit(self) -> Dit:
        space, shift = latent_space(self.checkpoint), scheduler_shift(self.checkpoint)
        return self._on_device(Dit(self._random_model("transformer"), space, shift, checkpoint=self.checkpoint))

    @cached_property
    def vae(self) -> Vae:
        return self._on_device(Vae(self._random_model("vae"), latent_space(self.checkpoint)))

    def _random_model(self, name: str) -> torch.nn.Module:
        """Made and quantized on the device, one parameter at a time, so that it needs no more room there than it takes."""
        dtype = DTYPES[self.dtype]
        model = COMPONENTS[name].build_from(self.checkpoint, dtype=dtype, buffers=True).eval()
        quantized = quantizable(model, self.quantization)
        for full_name, numbers in random_weights(model, f"{self.seed}/{name}", self.device):
            weight, layer = numbers.to(dtype), quantized.get(full_name.removesuffix(".weight"))
            if layer is not None:
                set_quantized_weight(layer, quantize_weight(weight, self.quantization).to(self._home(full_name)))
                continue
            owner, _, kind = full_name.rpartition(".")
            filled = torch.nn.Parameter(weight.to(self._home(full_name)), requires_grad=False)
            model.get_submodule(owner)._parameters[kind] = filled
        for full_name, buffer in list(model.named_buffers()):
            owner, _, kind = full_name.rpartition(".")
            model.get_submodule(owner)._buffers[kind] = buffer.to(self._home(full_name))
        return model

    def _home(self, full_name: str) -> torch.device:
        return CPU if full_name.startswith(self.offloaded) else self.device

    def _on_device(self, component: Component) -> Component:
        return replace(component.on(self.device), weights_are_static=True)


class MetaGlmImage(RandomGlmImage):
    """The same on the meta device: shapes without numbers, also of quantized weights. The AR model has no tokenizer."""

    @cached_property
    def ar(self) -> ArModel:
        model, processor = self._random_model("vision_language_encoder"), load_image_processor(self.checkpoint)
        shortest_edge, longest_edge = reference_limits(processor)
        ar = ArModel(
            model=model,
            halves=halves_of(model),
            tokenizer=None,
            image_processor=processor,
            shortest_edge=shortest_edge,
            longest_edge=longest_edge,
            codebook="",
            palette=torch.zeros(model.config.vq_config.num_embeddings, 3, dtype=torch.uint8),
        )
        return self._on_device(ar)

    def _random_model(self, name: str) -> torch.nn.Module:
        dtype = DTYPES[self.dtype]
        model = COMPONENTS[name].build_from(self.checkpoint, device=self.device, dtype=dtype).eval().requires_grad_(False)
        for layer_name, layer in quantizable(model, self.quantization).items():
            codes, scale = list(stored_headers(layer_name, tuple(layer.weight.shape), self.quantization).values())[:2]
            codes, scale = (torch.empty(header.shape, dtype=header.dtype, device=self.device) for header in (codes, scale))
            set_quantized_weight(layer, assemble_weight(layer, codes, scale, mark=Mark(self.quantization), dtype=dtype))
        return model
