"""CogView3-Plus, GLM-Image's smaller predecessor: no plan, and every word of the prompt reaches the DiT."""

from ..glmimage_core.cogview3 import base, plus, shared
from ..glmimage_core.cogview3 import text as cogview3_text
from ..glmimage_core.cogview3.memory import t5_bytes
from ..glmimage_core.cogview3.text import MicroConditions, load_text_encoder
from .checkpoint_loader import CheckpointLoader
from .host import host
from .host.requests import MICRO_CONDITIONS_KEY, CogView3Request
from .sampling import noise_mask
from .sockets import CATEGORY, COGVIEW3_TEXT, cogview3_dit, one_conditioning, validation_message
from .widgets import DENOISE, STEPS, batch_input, cfg_input, seed_input, side_input

TOKENS = {"CogView3-Plus": cogview3_text.TOKENS, "CogView3-Base": base.TOKENS}


def _side_input(name: str) -> tuple:
    limits = "Width times height is 2 megapixels at most."
    return side_input(name, least=plus.MIN_SIDE, most=plus.MAX_SIDE, step=plus.SIDE_STEP, limits=limits)


def _claimed_input(tooltip: str) -> tuple:
    """One value of the size conditioning, in pixels."""
    return ("INT", {"default": 0, "min": 0, "max": 8192, "tooltip": tooltip})


class GLMImageLoadCogView3(CheckpointLoader):
    TITLE = "Load CogView3-Plus"
    DESCRIPTION = "Loads CogView3-Plus: a 3B diffusion transformer, the T5 that encodes its prompts, and its VAE."
    SEARCH_ALIASES = ("cogview3", "cogview loader", "cogview3 plus 3b")
    RETURN_TYPES = ("MODEL", COGVIEW3_TEXT, "VAE")
    RETURN_NAMES = ("model", "text_encoder", "vae")
    OUTPUT_TOOLTIPS = (
        "The diffusion transformer, for CogView3-Plus Sampler or KSampler.",
        "T5 with its tokenizer, for CogView3 Encode Prompt.",
        "The VAE, for GLM-Image VAE Decode or VAE Decode.",
    )

    @classmethod
    def names(cls):
        return list(plus.list_folders(host.checkpoint_roots()))

    @classmethod
    def where(cls):
        return f"Folder below models/diffusers whose model_index.json names {plus.PIPELINE_CLASS}, as of THUDM/CogView3-Plus-3B."

    @classmethod
    def find(cls, checkpoint):
        return plus.find_folder(checkpoint, host.checkpoint_roots())

    @classmethod
    def inspect(cls, path):
        plus.check_folder(path)

    def load(self, checkpoint, dtype, device="default"):
        folder = self.find(checkpoint)
        loaders, place = (plus.load_dit, load_text_encoder, shared.load_vae), host.device(device)
        return tuple(host.wire(load(folder, dtype, device=place), device) for load in loaders)


class GLMImageCogView3Encode:
    TITLE = "CogView3 Encode Prompt"
    DESCRIPTION = (
        "Encodes a prompt for CogView3. CogView3-Plus reads its first 224 tokens, CogView3-Base 225. Long, precise captions "
        "work best."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("cogview3 text encode", "cogview clip text encode", "t5 text encoder")
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("positive", "negative", "truncated")
    OUTPUT_TOOLTIPS = (
        "The prompt's embeddings, for CogView3-Plus Sampler or KSampler.",
        "The negative prompt's embeddings; zeros for an empty one.",
        "The end of a prompt that is too long, which the model does not read. Empty otherwise.",
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
                "original_width": _claimed_input(
                    "SDXL-style size conditioning: the claimed original width. Small values look blurred. 0 uses the "
                    "output width."
                ),
                "original_height": _claimed_input("The claimed original height. 0 uses the output height."),
                "crop_left": _claimed_input("Pixels claimed to be cropped on the left. Above 0 the subject moves off centre."),
                "crop_top": _claimed_input("Pixels claimed to be cropped at the top. Above 0 the subject moves off centre."),
                "target_width": _claimed_input("The claimed width after cropping. 0 uses the output width."),
                "target_height": _claimed_input("The claimed height after cropping. 0 uses the output height."),
                "family": (
                    list(TOKENS),
                    {
                        "default": "CogView3-Plus",
                        "tooltip": "The model that reads the conditioning. CogView3-Base and its relay read one token more.",
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
        needed = t5_bytes(t5.model.config, t5.dtype.itemsize, tokens)
        with host.placed(text_encoder, needed, "t5") as encoder:
            positive, negative = (cogview3_text.encode(encoder, text, tokens) for text in (prompt, negative_prompt))
        if positive.truncated:
            host.warn(f"the prompt is longer than {tokens} tokens; left out: {positive.truncated}")
        micro = MicroConditions(
            original=(original_height, original_width),
            cropped=(crop_top, crop_left),
            target=(target_height, target_width),
        )
        options = {MICRO_CONDITIONS_KEY: micro}
        return ([[positive.embeddings, options]], [[negative.embeddings, options]], positive.truncated)


class GLMImageCogView3Sampler:
    TITLE = "CogView3-Plus Sampler"
    DESCRIPTION = "Paints the latents of a picture with CogView3-Plus, with the schedule and guidance of diffusers."
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
                "width": _side_input("Width"),
                "height": _side_input("Height"),
                "batch_size": batch_input(shared.MAX_BATCH),
                "seed": seed_input("the noise"),
                "steps": STEPS,
                "cfg": cfg_input(5.0),
                "denoise": DENOISE,
            },
            "optional": {
                "latent_image": (
                    "LATENT",
                    {
                        "tooltip": "Start of a run with denoise below 1, of the picture's size. Its noise mask is honoured: "
                        "what is masked out comes back unchanged."
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width, *, height=None):
        # A value over a link is None here; it is checked when the node runs.
        return validation_message(lambda: plus.check_size(width or plus.MIN_SIDE, height or plus.MIN_SIDE))

    def sample(self, model, positive, negative, width, height, batch_size, seed, steps, cfg, denoise, latent_image=None):
        dit = cogview3_dit(model)
        plus.check_size(width, height)
        start = latent_image or {}
        latents, mask = start.get("samples"), noise_mask(start)
        plus.check_run(
            dit,
            width=width,
            height=height,
            batch=batch_size,
            steps=steps,
            cfg=cfg,
            denoise=denoise,
            latents=latents,
            mask=mask,
        )
        sides = (one_conditioning(side, name, self.TITLE) for name, side in (("positive", positive), ("negative", negative)))
        plus.check_text(dit, *(embeddings for embeddings, _ in sides))
        request = CogView3Request(
            positive=positive,
            negative=negative,
            seed=seed,
            batch=batch_size,
            steps=steps,
            cfg=cfg,
            width=width,
            height=height,
            denoise=denoise,
            latents=latents,
            mask=mask,
        )
        return ({"samples": host.sample(model, request)},)
