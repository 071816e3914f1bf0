"""CogView3-Plus, GLM-Image's smaller predecessor: no plan, and every word of the prompt reaches the DiT."""

from ..glmimage_core.cogview3 import base as cogview3_base
from ..glmimage_core.cogview3 import memory
from ..glmimage_core.cogview3 import text as cogview3_text
from ..glmimage_core.cogview3.plus import (
    MAX_SIDE,
    MIN_SIDE,
    PIPELINE_CLASS,
    SIDE_STEP,
    check_folder,
    check_run,
    check_size,
    check_text,
    find_folder,
    list_folders,
    load_dit,
)
from ..glmimage_core.cogview3.shared import MAX_BATCH, load_vae
from ..glmimage_core.cogview3.text import MicroConditions, load_text_encoder
from .host import host
from .host.requests import MICRO_CONDITIONS_KEY, CogView3Request
from .loaders import DEVICE, DTYPE
from .sampling import DENOISE, STEPS, cfg_input, noise_mask
from .sockets import CATEGORY, COGVIEW3_TEXT, cogview3_dit, one_conditioning, seed_input, validation_message

FOLDER = f"Folder below models/diffusers whose model_index.json names {PIPELINE_CLASS}, as of THUDM/CogView3-Plus-3B."
OWN = "0: as the picture is."
TOKENS = {"CogView3-Plus": cogview3_text.TOKENS, "CogView3-Base": cogview3_base.TOKENS}


def _side(name: str) -> tuple:
    options = {"default": 1024, "min": MIN_SIDE, "max": MAX_SIDE, "step": SIDE_STEP}
    tooltip = f"{name} of the picture in pixels, a multiple of {SIDE_STEP}; 2 megapixels at most in all."
    return ("INT", options | {"tooltip": tooltip})


def _told(tooltip: str) -> tuple:
    return ("INT", {"default": 0, "min": 0, "max": 8192, "tooltip": tooltip})


class GLMImageLoadCogView3:
    TITLE = "Load CogView3-Plus"
    DESCRIPTION = "Loads CogView3-Plus: a 3B diffusion transformer, the T5 that reads its prompts, and its VAE."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("cogview3", "cogview loader", "cogview3 plus 3b")
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", COGVIEW3_TEXT, "VAE")
    RETURN_NAMES = ("model", "text_encoder", "vae")
    OUTPUT_TOOLTIPS = (
        "The diffusion transformer, for CogView3-Plus Sampler or KSampler.",
        "T5 with its tokenizer, for CogView3 Encode Prompt.",
        "The VAE, for GLM-Image VAE Decode or VAE Decode.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        names = list(list_folders(host.checkpoint_roots()))
        return {"required": {"checkpoint": (names, {"tooltip": FOLDER}), "dtype": DTYPE}, "optional": {"device": DEVICE}}

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint):
        """Look at configs and file headers before a graph runs. A name that comes over a link is None and not known yet."""
        return checkpoint is None or validation_message(lambda: check_folder(find_folder(checkpoint, host.checkpoint_roots())))

    def load(self, checkpoint, dtype, device="default"):
        folder = find_folder(checkpoint, host.checkpoint_roots())
        loaded = (part(folder, dtype) for part in (load_dit, load_text_encoder, load_vae))
        return tuple(host.wire(part, device) for part in loaded)


class GLMImageCogView3Encode:
    TITLE = "CogView3 Encode Prompt"
    DESCRIPTION = "Encodes a prompt for CogView3, of which 224 tokens are read, or 225: long, precise captions work best."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("cogview3 text encode", "cogview clip text encode", "t5 text encoder")
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("positive", "negative", "truncated")
    OUTPUT_TOOLTIPS = (
        "The prompt's embeddings, for CogView3-Plus Sampler or KSampler.",
        "The negative prompt's embeddings: zeros where it is empty.",
        "The end of the prompt, where it is longer than what is read.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "text_encoder": (COGVIEW3_TEXT, {"tooltip": "From Load CogView3-Plus, or from Load T5."}),
                "prompt": (
                    "STRING",
                    {"multiline": True, "dynamicPrompts": True, "tooltip": "What the picture shows, in English."},
                ),
                "negative_prompt": (
                    "STRING",
                    {"default": "", "multiline": True, "tooltip": "What to steer away from. Usually empty."},
                ),
            },
            "optional": {
                "original_width": _told(f"Width that the picture is said to have had; less looks blurred. {OWN}"),
                "original_height": _told(f"Height that the picture is said to have had. {OWN}"),
                "crop_left": _told("Pixels said to have been cut off on the left. 0 is centred."),
                "crop_top": _told("Pixels said to have been cut off at the top. 0 is centred."),
                "target_width": _told(f"Width that the picture is said to be of now. {OWN}"),
                "target_height": _told(f"Height that the picture is said to be of now. {OWN}"),
                "family": (
                    list(TOKENS),
                    {
                        "default": "CogView3-Plus",
                        "tooltip": "Who is to read it: CogView3-Base and its relay read a token more.",
                    },
                ),
            },
        }

    def encode(
        self,
        text_encoder,
        prompt,
        negative_prompt="",
        original_width=0,
        original_height=0,
        crop_left=0,
        crop_top=0,
        target_width=0,
        target_height=0,
        family="CogView3-Plus",
    ):
        t5, tokens = host.component(text_encoder), TOKENS[family]
        needed = memory.t5_bytes(t5.model.config, t5.dtype.itemsize, tokens)
        with host.placed(text_encoder, needed, "t5") as encoder:
            positive, negative = (cogview3_text.encode(encoder, text, tokens) for text in (prompt, negative_prompt))
        if positive.truncated:
            host.warn(f"the prompt is longer than {tokens} tokens; left out: {positive.truncated}")
        micro = MicroConditions((original_height, original_width), (crop_top, crop_left), (target_height, target_width))
        options = {MICRO_CONDITIONS_KEY: micro}
        return ([[positive.embeddings, options]], [[negative.embeddings, options]], positive.truncated)


class GLMImageCogView3Sampler:
    TITLE = "CogView3-Plus Sampler"
    DESCRIPTION = "Paints the latents of a picture with CogView3-Plus, with the reference implementation's schedule and guidance."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("cogview3 ksampler", "cogview denoise")
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("Latents of the picture or pictures, for GLM-Image VAE Decode.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "From Load CogView3-Plus."}),
                "positive": ("CONDITIONING", {"tooltip": "From CogView3 Encode Prompt."}),
                "negative": ("CONDITIONING", {"tooltip": "From CogView3 Encode Prompt. Not used when cfg is 1."}),
                "width": _side("Width"),
                "height": _side("Height"),
                "batch_size": (
                    "INT",
                    {"default": 1, "min": 1, "max": MAX_BATCH, "tooltip": "How many pictures to paint together."},
                ),
                "seed": seed_input("the noise"),
                "steps": STEPS,
                "cfg": cfg_input(5.0),
                "denoise": DENOISE,
            },
            "optional": {
                "latent_image": (
                    "LATENT",
                    {"tooltip": "Where a denoise below 1 starts from, of the picture's size. A noise mask on it is honoured."},
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width, height):
        # What comes over a link is not known yet and is None; it is checked when the node runs.
        return validation_message(lambda: check_size(width or MIN_SIDE, height or MIN_SIDE))

    def sample(self, model, positive, negative, width, height, batch_size, seed, steps, cfg, denoise, latent_image=None):
        dit = cogview3_dit(model)
        start = latent_image or {}
        latents, mask = start.get("samples"), noise_mask(start)
        run = {"width": width, "height": height, "batch": batch_size, "steps": steps, "cfg": cfg, "denoise": denoise}
        check_run(dit, **run, latents=latents, mask=mask)
        sides = (one_conditioning(side, name, self.TITLE) for name, side in (("positive", positive), ("negative", negative)))
        check_text(dit, *(embeddings for embeddings, _ in sides))
        request = CogView3Request(positive, negative, width, height, seed, batch_size, steps, cfg, denoise, latents, mask)
        return ({"samples": host.paint_cogview3(model, request)},)
