"""Loading: one node a component, so that a graph holds only what it uses."""

from pathlib import Path

from ..glmimage_core.checkpoints.report import DTYPES, ComponentReport, check_quantization
from ..glmimage_core.glm_image.files import components as folders
from ..glmimage_core.glm_image.files import single_file
from ..glmimage_core.glm_image.files.components import FOLDERS
from ..glmimage_core.glm_image.files.inspect import check_model
from ..glmimage_core.glm_image.files.load import load_ar, load_glyph_encoder, load_vae
from ..glmimage_core.glm_image.files.single_file import SUFFIX, check_file, find_file, list_files, load_dit_from
from ..glmimage_core.language import vlm
from ..glmimage_core.weights.formats import CHOICES
from .host import host
from .host.devices import DEVICES
from .sockets import AR, CATEGORY, GLYPH_ENCODER, VLM, validation_message

DTYPE = (
    ["auto", *DTYPES],
    {
        "default": "auto",
        "tooltip": "Precision of the weights. auto keeps the one they are stored in, bfloat16 in the released checkpoint.",
    },
)
QUANTIZATION = (
    list(CHOICES),
    {
        "default": "none",
        "tooltip": "Attention and feed-forward weights in fewer bits, made while loading: int8 and fp8 take 60 % of the "
        "memory of bfloat16, nf4 40 %. int8 is the most exact, nf4 the least. none keeps the weights as they are stored. Needs "
        "comfy-kitchen.",
    },
)
ATTENTION = (
    ["auto", "sdpa", "cudnn", "flash", "sage"],
    {
        "default": "auto",
        "tooltip": "Who computes attention. auto is PyTorch's; flash needs the package flash-attn, sage needs sageattention, "
        "which is faster and rounds more.",
    },
)
COMPILE = (
    "BOOLEAN",
    {
        "default": False,
        "tooltip": "Compile the blocks of the DiT with torch.compile: the first step of a new size takes a minute or so longer, "
        "the others less. Needs Triton on a GPU.",
    },
)
DEVICE = (
    list(DEVICES),
    {
        "default": "default",
        "tooltip": "Where it computes. On a card that is not the default one, the AR model plans beside what other nodes do. "
        "Where there is no such card, the default one is taken.",
    },
)
FOLDER = (
    "Checkpoint folder below models/diffusers whose model_index.json names GlmImagePipeline, such as the one downloaded from "
    "zai-org/GLM-Image"
)


class _Loader:
    """What the loaders share: the checkpoint input, and a check of its name before anything runs."""

    CATEGORY = CATEGORY
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        names, tooltip = list(folders.list_checkpoints(host.checkpoint_roots())), FOLDER
        if kind := FOLDERS.get(cls.COMPONENT):
            names += list_files(cls.COMPONENT, host.model_roots(kind))
            tooltip += f", or one safetensors file of this model below models/{kind}"
        tooltip += f". {folders.NANO} is a very small model that draws coloured shapes and words, to try a graph with."
        return {
            "required": {"checkpoint": ([*names, *folders.BUILT_IN], {"tooltip": tooltip}), "dtype": DTYPE},
            "optional": {"device": DEVICE},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint):
        """Look at the component's config and file headers before a graph runs, so that no work is lost to a broken file."""
        return validation_message(lambda: cls._check(checkpoint))

    @classmethod
    def _check(cls, checkpoint, quantization="none", device="default") -> None:
        if checkpoint is not None:  # else it comes over a link and is checked when it is loaded
            report = cls._report(cls._path(checkpoint))
            check_quantization(report, quantization or "none", host.device(device or "default"))

    @classmethod
    def _report(cls, path: Path) -> ComponentReport:
        if path.is_file():
            return check_file(path, cls.COMPONENT, host.checkpoint_roots())
        return check_model(path, cls.COMPONENT)

    @classmethod
    def _path(cls, checkpoint: str) -> Path:
        """The single file or the checkpoint folder of that name."""
        if checkpoint.endswith(SUFFIX) and (kind := FOLDERS.get(cls.COMPONENT)):
            return find_file(checkpoint, cls.COMPONENT, host.model_roots(kind))
        return folders.find_checkpoint(checkpoint, host.checkpoint_roots())


class _QuantizingLoader(_Loader):
    """A loader of one of the big models."""

    @classmethod
    def INPUT_TYPES(cls):
        inputs = super().INPUT_TYPES()
        return inputs | {"required": inputs["required"] | {"quantization": QUANTIZATION}}

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint, quantization="none", device="default"):
        """Also whether installation and device can compute with such weights."""
        return validation_message(lambda: cls._check(checkpoint, quantization, device))


class GLMImageLoadAR(_QuantizingLoader):
    COMPONENT = "vision_language_encoder"
    TITLE = "Load GLM-Image AR Model"
    DESCRIPTION = "Loads the 9B autoregressive model that plans a picture as prior tokens and reads reference images."
    SEARCH_ALIASES = ("glm image autoregressive", "glm vision language encoder", "glm image model loader")
    RETURN_TYPES = (AR,)
    RETURN_NAMES = ("ar",)
    OUTPUT_TOOLTIPS = ("The AR model with its tokenizer, for Generate Prior and Encode Reference.",)

    def load(self, checkpoint, dtype, quantization, device="default"):
        path = self._path(checkpoint)
        if path.is_file():
            return (host.wire(single_file.load_ar(path, dtype, host.checkpoint_roots(), quantization), device),)
        return (host.wire(load_ar(path, dtype, quantization), device),)


class GLMImageLoadGlyphEncoder(_Loader):
    COMPONENT = "text_encoder"
    TITLE = "Load GLM-Image Glyph Encoder"
    DESCRIPTION = "Loads the small ByT5 model that encodes, letter by letter, the text to be drawn."
    SEARCH_ALIASES = ("glm image text encoder", "byt5", "glm clip")
    RETURN_TYPES = (GLYPH_ENCODER,)
    RETURN_NAMES = ("glyph_encoder",)
    OUTPUT_TOOLTIPS = ("The glyph encoder with its tokenizer, for Encode Prompt.",)

    def load(self, checkpoint, dtype, device="default"):
        return (host.wire(load_glyph_encoder(self._path(checkpoint), dtype), device),)


class GLMImageLoadDiT(_QuantizingLoader):
    COMPONENT = "transformer"
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
    def VALIDATE_INPUTS(cls, checkpoint, quantization="none", attention="auto", compile=False, device="default"):
        """Also whether attention and compiler are there."""
        from ..glmimage_core.placement.compute import check_attention_backend, check_compiler

        def check() -> None:
            cls._check(checkpoint, quantization, device)
            check_attention_backend(attention or "auto", host.device(device or "default"))
            if compile:
                check_compiler()

        return validation_message(check)

    def load(self, checkpoint, dtype, quantization, attention="auto", compile=False, device="default"):
        dit = load_dit_from(self._path(checkpoint), dtype, host.checkpoint_roots(), quantization)
        from ..glmimage_core.glm_image.dit import configure_compute

        return (host.wire(configure_compute(dit, attention, compile, host.device(device)), device),)


class GLMImageLoadVAE(_Loader):
    COMPONENT = "vae"
    TITLE = "Load GLM-Image VAE"
    DESCRIPTION = "Loads the VAE that turns latents into pixels and reference images into latents."
    SEARCH_ALIASES = ("glm image autoencoder", "glm vae loader")
    RETURN_TYPES = ("VAE",)
    RETURN_NAMES = ("vae",)
    OUTPUT_TOOLTIPS = ("The VAE, for GLM-Image VAE Decode, VAE Encode and Encode Reference.",)

    def load(self, checkpoint, dtype, device="default"):
        path = self._path(checkpoint)
        if path.is_file():
            return (host.wire(single_file.load_vae(path, dtype, host.checkpoint_roots()), device),)
        return (host.wire(load_vae(path, dtype), device),)


class GLMImageLoadVLM(_QuantizingLoader):
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
    def INPUT_TYPES(cls):
        tooltip = "Folder below models/LLM with config.json, safetensors and tokenizer, as downloaded from its page."
        names = list(vlm.list_vlms(host.model_roots("LLM")))
        required = {"checkpoint": (names, {"tooltip": tooltip}), "dtype": DTYPE, "quantization": QUANTIZATION}
        return {"required": required, "optional": {"device": DEVICE}}

    @classmethod
    def _report(cls, path):
        return vlm.check_vlm(path)

    @classmethod
    def _path(cls, checkpoint):
        return vlm.find_vlm(checkpoint, host.model_roots("LLM"))

    def load(self, checkpoint, dtype, quantization, device="default"):
        return (host.wire(vlm.load_vlm(self._path(checkpoint), dtype, quantization, device=host.device(device)), device),)
