"""Loading: one node for a whole checkpoint, and one a component for a graph that holds only what it uses."""

from pathlib import Path

import torch

from ..glmimage_core.glm_image.dit import configure_compute
from ..glmimage_core.glm_image.files import components
from ..glmimage_core.glm_image.files.components import BUILT_IN, NANO, find_checkpoint, list_checkpoints
from ..glmimage_core.glm_image.files.load import load_ar, load_dit, load_glyph_encoder, load_vae, stored_component
from ..glmimage_core.glm_image.files.single_file import SUFFIXES, find_file, list_files
from ..glmimage_core.language import vlm
from ..glmimage_core.placement.compute import check_attention_backend, check_compiler
from .checkpoint_loader import CheckpointLoader, QuantizingLoader
from .host import host
from .sockets import AR, CATEGORY, GLYPH_ENCODER, VLM, validation_message
from .widgets import ATTENTION, COMPILE, DEVICE, DTYPE, QUANTIZATION

FOLDER = (
    "Checkpoint folder below models/diffusers whose model_index.json names GlmImagePipeline, such as the one downloaded from "
    f"{components.RELEASED}"
)


class _GlmImageLoader(CheckpointLoader):
    """A loader of one component of GLM-Image, from a checkpoint folder or from a single file."""

    COMPONENT: components.ComponentKind

    @classmethod
    def names(cls):
        folder = cls.COMPONENT.comfy_folder
        files = list_files(cls.COMPONENT, host.model_roots(folder)) if folder else []
        return [*list_checkpoints(host.checkpoint_roots()), *files, *BUILT_IN]

    @classmethod
    def where(cls):
        folder = cls.COMPONENT.comfy_folder
        file = f", or one safetensors or GGUF file of this model below models/{folder}" if folder else ""
        return f"{FOLDER}{file}. {NANO} is a very small model that draws coloured shapes and words, to try a graph with."

    @classmethod
    def find(cls, checkpoint):
        if checkpoint.endswith(SUFFIXES) and (folder := cls.COMPONENT.comfy_folder):
            return find_file(checkpoint, cls.COMPONENT, host.model_roots(folder))
        return find_checkpoint(checkpoint, host.checkpoint_roots())

    @classmethod
    def inspect(cls, path: Path):
        return stored_component(path, cls.COMPONENT, host.checkpoint_roots()).report


class GLMImageLoadAR(_GlmImageLoader, QuantizingLoader):
    COMPONENT = components.AR
    TITLE = "Load GLM-Image AR Model"
    DESCRIPTION = "Loads the 9B autoregressive model that plans a picture as prior tokens and reads reference images."
    SEARCH_ALIASES = ("glm image autoregressive", "glm vision language encoder", "glm image model loader")
    RETURN_TYPES = (AR,)
    RETURN_NAMES = ("ar",)
    OUTPUT_TOOLTIPS = ("The AR model with its tokenizer, for Generate Prior and Encode Reference.",)

    def load(self, checkpoint, dtype, quantization, device="default"):
        options = {"quantization": quantization, "roots": host.checkpoint_roots(), "device": host.device(device)}
        return (host.wire(load_ar(self.find(checkpoint), dtype, **options), device),)


class GLMImageLoadGlyphEncoder(_GlmImageLoader):
    COMPONENT = components.GLYPH_ENCODER
    TITLE = "Load GLM-Image Glyph Encoder"
    DESCRIPTION = "Loads ByT5, the small model that encodes the text to be drawn, letter by letter."
    SEARCH_ALIASES = ("glm image text encoder", "byt5", "glm clip")
    RETURN_TYPES = (GLYPH_ENCODER,)
    RETURN_NAMES = ("glyph_encoder",)
    OUTPUT_TOOLTIPS = ("The glyph encoder with its tokenizer, for Encode Prompt.",)

    def load(self, checkpoint, dtype, device="default"):
        return (host.wire(load_glyph_encoder(self.find(checkpoint), dtype, device=host.device(device)), device),)


class GLMImageLoadDiT(_GlmImageLoader, QuantizingLoader):
    COMPONENT = components.DIT
    TITLE = "Load GLM-Image DiT"
    DESCRIPTION = "Loads the 7B diffusion transformer that paints the picture the prior tokens plan."
    SEARCH_ALIASES = ("glm image diffusion model", "glm image transformer", "glm unet")
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The diffusion transformer, for GLM-Image Sampler. It keeps the caches of its last references.",)

    @classmethod
    def INPUT_TYPES(cls):
        inputs = super().INPUT_TYPES()
        return inputs | {"optional": {"attention": ATTENTION, "compile": COMPILE, **inputs["optional"]}}

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint, *, quantization="none", attention="auto", compile=False, device="default"):
        """Also check that the attention backend and a compiler are installed."""

        def check() -> None:
            cls.check(checkpoint, quantization, device)
            cls.check_compute(attention or "auto", compile, host.device(device or "default"))

        return validation_message(check)

    @staticmethod
    def check_compute(attention: str, compile: bool, device: torch.device) -> None:
        """Raise ImportError or ValueError for an attention backend that cannot be used, and where nothing can compile."""
        check_attention_backend(attention, device)
        if compile:
            check_compiler()

    def load(self, checkpoint, dtype, quantization, attention="auto", compile=False, device="default"):
        self.check_compute(attention, compile, host.device(device))  # before weights are read
        options = {"quantization": quantization, "roots": host.checkpoint_roots(), "device": host.device(device)}
        dit = load_dit(self.find(checkpoint), dtype, **options)
        return (host.wire(configure_compute(dit, attention, compile, host.device(device)), device),)


class GLMImageLoadVAE(_GlmImageLoader):
    COMPONENT = components.VAE
    TITLE = "Load GLM-Image VAE"
    DESCRIPTION = "Loads the VAE that turns latents into pixels and reference images into latents."
    SEARCH_ALIASES = ("glm image autoencoder", "glm vae loader")
    RETURN_TYPES = ("VAE",)
    RETURN_NAMES = ("vae",)
    OUTPUT_TOOLTIPS = ("The VAE, for GLM-Image VAE Decode, VAE Encode and Encode Reference.",)

    def load(self, checkpoint, dtype, device="default"):
        options = {"roots": host.checkpoint_roots(), "device": host.device(device)}
        return (host.wire(load_vae(self.find(checkpoint), dtype, **options), device),)


class GLMImageLoad:
    TITLE = "Load GLM-Image"
    DESCRIPTION = (
        "Loads the four parts of a GLM-Image checkpoint: DiT, AR model, glyph encoder and VAE. The loaders of single parts have "
        "more settings, take single files, and let parts come from different places."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm image checkpoint", "glm image all in one", "glm image model loader", "checkpoint loader")
    FUNCTION = "load"
    # Without ComfyUI each part is loaded when it is needed, and goes after its last use.
    PARTS = (GLMImageLoadDiT, GLMImageLoadAR, GLMImageLoadGlyphEncoder, GLMImageLoadVAE)
    RETURN_TYPES = tuple(part.RETURN_TYPES[0] for part in PARTS)
    RETURN_NAMES = tuple(part.RETURN_NAMES[0] for part in PARTS)
    OUTPUT_TOOLTIPS = tuple(part.OUTPUT_TOOLTIPS[0] for part in PARTS)

    @classmethod
    def INPUT_TYPES(cls):
        names = [*list_checkpoints(host.checkpoint_roots()), *BUILT_IN]
        where = f"{FOLDER}. {NANO} is a very small model that draws coloured shapes and words, to try a graph with."
        return {
            "required": {"checkpoint": (names, {"tooltip": where}), "dtype": DTYPE, "quantization": QUANTIZATION},
            "optional": {"device": DEVICE},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint, *, quantization="none", device="default"):
        """Read configs and file headers of all parts before a graph runs."""

        def check() -> None:
            for part in cls.PARTS:
                part.check(checkpoint, quantization if issubclass(part, QuantizingLoader) else "none", device)

        return validation_message(check)

    def load(self, checkpoint, dtype, quantization, device="default"):
        quantized = {"checkpoint": checkpoint, "dtype": dtype, "quantization": quantization, "device": device}
        whole = {"checkpoint": checkpoint, "dtype": dtype, "device": device}
        loaded = (part().load(**(quantized if issubclass(part, QuantizingLoader) else whole)) for part in self.PARTS)
        return tuple(wire for (wire,) in loaded)


class GLMImageLoadVLM(QuantizingLoader):
    TITLE = "Load GLM-Image VLM"
    DESCRIPTION = (
        "Loads a vision-language model that rewrites prompts and describes pictures: Glmga, GLM-4.1V, GLM-4.6V or another that "
        "transformers knows for image-text-to-text."
    )
    SEARCH_ALIASES = ("glm vision language model", "glmga", "glm-4.1v", "glm-4.6v", "llm loader")
    RETURN_TYPES = (VLM,)
    RETURN_NAMES = ("vlm",)
    OUTPUT_TOOLTIPS = ("The vision-language model with its processor, for Enhance Prompt and Describe.",)

    @classmethod
    def names(cls):
        return list(vlm.list_vlms(host.model_roots("LLM")))

    @classmethod
    def where(cls):
        return "Folder below models/LLM with config.json, safetensors and tokenizer, as downloaded from the model's page."

    @classmethod
    def find(cls, checkpoint):
        return vlm.find_vlm(checkpoint, host.model_roots("LLM"))

    @classmethod
    def inspect(cls, path):
        return vlm.check_vlm(path)

    def load(self, checkpoint, dtype, quantization, device="default"):
        return (host.wire(vlm.load_vlm(self.find(checkpoint), dtype, quantization, device=host.device(device)), device),)
