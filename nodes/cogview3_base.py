"""CogView3-Base: a picture of 512 x 512 pixels, and a relay that paints it again at twice the sides."""

from ..glmimage_core.cogview3 import base, shared
from ..glmimage_core.cogview3 import text as cogview3_text
from ..glmimage_core.cogview3.base import CogView3Unet
from ..glmimage_core.vae import encode, vae_encode_bytes
from .checkpoint_loader import CheckpointLoader
from .host import host
from .host.requests import CogView3BaseRequest, CogView3RelayRequest
from .sockets import CATEGORY, COGVIEW3_TEXT, cogview3_base_vae, cogview3_unet, one_conditioning
from .vae import placed_vae
from .widgets import batch_input, cfg_input, seed_input, side_input, steps_input

CFG = cfg_input(
    7.5,
    "Guidance: how far to steer from the negative to the positive. A distilled model takes it as an input and needs one pass a "
    "step.",
)
LATENT = "Latents of the picture or pictures, for GLM-Image VAE Decode."


class GLMImageLoadT5(CheckpointLoader):
    TITLE = "Load T5"
    DESCRIPTION = "Loads the T5 that encodes the prompts of CogView3, without a diffusion model."
    SEARCH_ALIASES = ("cogview3 text encoder loader", "t5 loader", "t5xxl")
    RETURN_TYPES = (COGVIEW3_TEXT,)
    RETURN_NAMES = ("text_encoder",)
    OUTPUT_TOOLTIPS = ("T5 with its tokenizer, for CogView3 Encode Prompt.",)

    @classmethod
    def names(cls):
        return list(cogview3_text.list_text_encoders(host.checkpoint_roots()))

    @classmethod
    def where(cls):
        return "Folder below models/diffusers with T5 and its tokenizer, such as CogView3-Plus-3B or CogVideoX-2b."

    @classmethod
    def find(cls, checkpoint):
        return cogview3_text.find_text_encoder(checkpoint, host.checkpoint_roots())

    @classmethod
    def inspect(cls, path):
        return cogview3_text.check_text_encoder(path)

    def load(self, checkpoint, dtype, device="default"):
        return (host.wire(cogview3_text.load_text_encoder(self.find(checkpoint), dtype, device=host.device(device)), device),)


class GLMImageLoadCogView3Base(CheckpointLoader):
    TITLE = "Load CogView3-Base"
    DESCRIPTION = "Loads one stage of CogView3-Base, the base or the relay, full or distilled, with its VAE."
    SEARCH_ALIASES = ("cogview3 base loader", "cogview3 relay loader", "relay diffusion")
    RETURN_TYPES = ("MODEL", "VAE")
    RETURN_NAMES = ("model", "vae")
    OUTPUT_TOOLTIPS = (
        "The UNet: of the base for CogView3-Base Sampler or KSampler, of the relay for CogView3 Relay.",
        "The VAE, the same for both stages.",
    )

    @classmethod
    def names(cls):
        return list(base.list_folders(host.checkpoint_roots()))

    @classmethod
    def where(cls):
        return "Folder below models/diffusers that `python . convert` wrote from a published checkpoint."

    @classmethod
    def find(cls, checkpoint):
        return base.find_folder(checkpoint, host.checkpoint_roots())

    @classmethod
    def inspect(cls, path):
        base.check_folder(path)

    def load(self, checkpoint, dtype, device="default"):
        folder = self.find(checkpoint)
        place = host.device(device)
        return tuple(host.wire(load(folder, dtype, device=place), device) for load in (base.load_unet, base.load_vae))


class GLMImageCogView3BaseSampler:
    TITLE = "CogView3-Base Sampler"
    DESCRIPTION = "Paints the latents of a picture with CogView3-Base, full or distilled, as its authors published it."
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
                "positive": ("CONDITIONING", {"tooltip": "From CogView3 Encode Prompt with family CogView3-Base."}),
                "negative": (
                    "CONDITIONING",
                    {"tooltip": "From the same node. Not used when cfg is 1 or the model is distilled."},
                ),
                "width": _side_input("Width"),
                "height": _side_input("Height"),
                "batch_size": batch_input(shared.MAX_BATCH),
                "seed": seed_input("the noise"),
                "steps": steps_input(50, most=999, tooltip="Denoising steps: 50, or 4 or 8 for a model distilled to as many."),
                "cfg": CFG,
            }
        }

    def sample(self, model, positive, negative, width, height, batch_size, seed, steps, cfg):
        unet = cogview3_unet(model)
        base.check_run(unet, "base", width=width, height=height, batch=batch_size, steps=steps, cfg=cfg)
        _check_conditionings(unet, positive, negative, self.TITLE)
        request = CogView3BaseRequest(
            positive=positive,
            negative=negative,
            seed=seed,
            batch=batch_size,
            steps=steps,
            cfg=cfg,
            width=width,
            height=height,
        )
        return ({"samples": host.sample(model, request)},)


class GLMImageCogView3Relay:
    TITLE = "CogView3 Relay"
    DESCRIPTION = "Paints a picture of CogView3-Base again at twice the sides: relay diffusion."
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
                "vae": ("VAE", {"tooltip": "From Load CogView3-Base, for either stage."}),
                "image": ("IMAGE", {"tooltip": "The decoded picture of the base. Its sides are multiples of 16 pixels."}),
                "positive": ("CONDITIONING", {"tooltip": "The conditioning of CogView3-Base Sampler."}),
                "negative": ("CONDITIONING", {"tooltip": "The conditioning of CogView3-Base Sampler."}),
                "seed": seed_input("the noise"),
                "steps": steps_input(
                    24, most=999, tooltip="Steps of a whole run from noise: 24, or 5 for the model distilled to 1 step."
                ),
                "relay_steps": steps_input(
                    12,
                    most=999,
                    tooltip="How many of these steps are done, the last ones: half of them, or 1 of 5 for the distilled model.",
                ),
                "cfg": CFG,
            }
        }

    def sample(self, model, vae, image, positive, negative, seed, steps, relay_steps, cfg):
        unet = cogview3_unet(model)
        height, width = (2 * side for side in image.shape[1:3])
        settings = {"steps": steps, "cfg": cfg, "relay_steps": relay_steps}
        base.check_run(unet, "relay", width=width, height=height, batch=len(image), **settings)
        _check_conditionings(unet, positive, negative, self.TITLE)
        cogview3_base_vae(vae, unet)
        with placed_vae(vae, "auto", vae_encode_bytes, width=width, height=height) as (coder, tiled):
            low = encode(coder, base.enlarged(image), tiled)
        request = CogView3RelayRequest(
            positive=positive,
            negative=negative,
            seed=seed,
            batch=len(image),
            low=low,
            **settings,
        )
        return ({"samples": host.sample(model, request)},)


def _check_conditionings(unet: CogView3Unet, positive: list, negative: list, sampler: str) -> None:
    sides = (("positive", positive), ("negative", negative))
    base.check_text(unet, *(one_conditioning(side, name, sampler)[0] for name, side in sides))


def _side_input(name: str) -> tuple:
    sizes = base.STAGES["base"]
    limits = f"Trained at {sizes.side}."
    return side_input(name, default=sizes.side, least=sizes.least, most=sizes.most, step=base.SIDE_STEP, limits=limits)
