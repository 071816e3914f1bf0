"""CogView3-Base: a picture of 512 x 512 pixels, and a relay that paints it anew at twice the sides."""

from ..glmimage_core.cogview3 import base as cogview3_base
from ..glmimage_core.cogview3 import text as cogview3
from ..glmimage_core.cogview3.base import STAGES, check_folder, check_run, check_text, enlarged
from ..glmimage_core.cogview3.shared import MAX_BATCH
from ..glmimage_core.vae import encode, vae_encode_bytes
from .host import host
from .host.requests import CogView3BaseRequest
from .loaders import DEVICE, DTYPE
from .sampling import STEPS, cfg_input
from .sockets import CATEGORY, COGVIEW3_TEXT, cogview3_unet, one_conditioning, seed_input, validation_message
from .vae import placed_vae

T5_FOLDER = "Folder below models/diffusers with T5 and its tokenizer, as CogView3-Plus-3B or CogVideoX-2b has them."
FOLDER = "Folder below models/diffusers as `python . convert` writes it from a published checkpoint."
CFG = "Guidance: how far to steer from the negative to the positive. A distilled model is told it, and needs one pass a step."
LATENT = "Latents of the picture or pictures, for GLM-Image VAE Decode."


class GLMImageLoadT5:
    TITLE = "Load T5"
    DESCRIPTION = "Loads the T5 that reads the prompts of CogView3, without a diffusion model."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("cogview3 text encoder loader", "t5 loader", "t5xxl")
    FUNCTION = "load"
    RETURN_TYPES = (COGVIEW3_TEXT,)
    RETURN_NAMES = ("text_encoder",)
    OUTPUT_TOOLTIPS = ("T5 with its tokenizer, for CogView3 Encode Prompt.",)

    @classmethod
    def INPUT_TYPES(cls):
        names = list(cogview3.list_text_encoders(host.checkpoint_roots()))
        return {"required": {"checkpoint": (names, {"tooltip": T5_FOLDER}), "dtype": DTYPE}, "optional": {"device": DEVICE}}

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint):
        """Look at config and file headers before a graph runs. A name that comes over a link is None and not known yet."""
        return checkpoint is None or validation_message(lambda: cogview3.check_text_encoder(_t5_folder(checkpoint)))

    def load(self, checkpoint, dtype, device="default"):
        return (host.wire(cogview3.load_text_encoder(_t5_folder(checkpoint), dtype), device),)


def _t5_folder(name: str):
    return cogview3.find_text_encoder(name, host.checkpoint_roots())


class GLMImageLoadCogView3Base:
    TITLE = "Load CogView3-Base"
    DESCRIPTION = "Loads one stage of CogView3-Base, the base or the relay, full or distilled, with its VAE."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("cogview3 base loader", "cogview3 relay loader", "relay diffusion")
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "VAE")
    RETURN_NAMES = ("model", "vae")
    OUTPUT_TOOLTIPS = (
        "The UNet: of the base for CogView3-Base Sampler or KSampler, of the relay for CogView3 Relay.",
        "The VAE, the same for both stages.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        names = list(cogview3_base.list_folders(host.checkpoint_roots()))
        return {"required": {"checkpoint": (names, {"tooltip": FOLDER}), "dtype": DTYPE}, "optional": {"device": DEVICE}}

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint):
        """Look at configs and file headers before a graph runs. A name that comes over a link is None and not known yet."""
        return checkpoint is None or validation_message(
            lambda: check_folder(cogview3_base.find_folder(checkpoint, host.checkpoint_roots()))
        )

    def load(self, checkpoint, dtype, device="default"):
        folder = cogview3_base.find_folder(checkpoint, host.checkpoint_roots())
        return tuple(host.wire(part(folder, dtype), device) for part in (cogview3_base.load_unet, cogview3_base.load_vae))


class GLMImageCogView3BaseSampler:
    TITLE = "CogView3-Base Sampler"
    DESCRIPTION = "Paints the latents of a picture with CogView3-Base, full or distilled, as it was published."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("cogview3 base ksampler", "cogview3 distilled")
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = (LATENT,)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The stage base, from Load CogView3-Base."}),
                "positive": ("CONDITIONING", {"tooltip": "From CogView3 Encode Prompt, for the family CogView3-Base."}),
                "negative": ("CONDITIONING", {"tooltip": "From the same. Not used by a distilled model, nor when cfg is 1."}),
                "width": _side("Width"),
                "height": _side("Height"),
                "batch_size": (
                    "INT",
                    {"default": 1, "min": 1, "max": MAX_BATCH, "tooltip": "How many pictures to paint together."},
                ),
                "seed": seed_input("the noise"),
                "steps": _steps(50, "Denoising steps: 50, or 4 or 8 for a model distilled so."),
                "cfg": _cfg(),
            }
        }

    def sample(self, model, positive, negative, width, height, batch_size, seed, steps, cfg):
        check_run(cogview3_unet(model), "base", width=width, height=height, batch=batch_size, steps=steps, cfg=cfg)
        _check_sides(self, model, positive, negative)
        request = CogView3BaseRequest(positive, negative, width, height, seed, batch_size, steps, cfg)
        return ({"samples": host.paint_cogview3_base(model, request)},)


class GLMImageCogView3Relay:
    TITLE = "CogView3 Relay"
    DESCRIPTION = "Paints a picture of CogView3-Base anew at twice the sides: relay diffusion, from the enlarged picture on."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("relay diffusion", "cogview3 upscale", "cogview3 super resolution")
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = (LATENT,)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The stage relay, from Load CogView3-Base."}),
                "vae": ("VAE", {"tooltip": "From Load CogView3-Base, of either stage."}),
                "image": ("IMAGE", {"tooltip": "What the base painted, decoded. Sides are multiples of 16 pixels."}),
                "positive": ("CONDITIONING", {"tooltip": "The one the base had."}),
                "negative": ("CONDITIONING", {"tooltip": "The one the base had."}),
                "seed": seed_input("the noise"),
                "steps": _steps(24, "Into how many steps a whole run would be cut: 24, or 5 for the model distilled to 1 step."),
                "relay_steps": _steps(12, "How many of the last ones are taken: half of them, or 1 of 5 for that distilled one."),
                "cfg": _cfg(),
            }
        }

    def sample(self, model, vae, image, positive, negative, seed, steps, relay_steps, cfg):
        height, width = (2 * side for side in image.shape[1:3])
        settings = {"batch": len(image), "steps": steps, "relay_steps": relay_steps, "cfg": cfg}
        check_run(cogview3_unet(model), "relay", width=width, height=height, **settings)
        _check_sides(self, model, positive, negative)
        with placed_vae(vae, "auto", vae_encode_bytes, width, height) as (coder, tiled):
            low = encode(coder, enlarged(image), tiled)
        request = CogView3BaseRequest(positive, negative, width, height, seed, len(image), steps, cfg, relay_steps, low)
        return ({"samples": host.paint_cogview3_base(model, request)},)


def _check_sides(node, model, positive: list, negative: list) -> None:
    sides = (("positive", positive), ("negative", negative))
    check_text(cogview3_unet(model), *(one_conditioning(side, name, node.TITLE)[0] for name, side in sides))


def _side(name: str) -> tuple:
    base = STAGES["base"]
    tooltip = f"{name} of the picture in pixels, a multiple of {cogview3_base.SIDE_STEP}. Trained at {base.side}."
    return (
        "INT",
        {"default": base.side, "min": base.least, "max": base.most, "step": cogview3_base.SIDE_STEP, "tooltip": tooltip},
    )


def _steps(default: int, tooltip: str) -> tuple:
    return ("INT", STEPS[1] | {"default": default, "max": 999, "tooltip": tooltip})


def _cfg() -> tuple:
    kind, options = cfg_input(7.5)
    return (kind, options | {"tooltip": CFG})
