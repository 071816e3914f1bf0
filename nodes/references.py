"""Reference images: encoded once by the AR model and once by the VAE, and used by both stages."""

from ..glmimage_core.glm_image.ar_model import fit, vision_tokens
from ..glmimage_core.glm_image.memory import vision_bytes
from ..glmimage_core.glm_image.references import Reference, check_references, latents_of
from ..glmimage_core.images import to_pictures
from ..glmimage_core.vae import vae_encode_bytes
from .host import host
from .sockets import AR, CATEGORY, REFERENCES, glm_ar, glm_vae
from .vae import placed_vae


class GLMImageEncodeReference:
    TITLE = "GLM-Image Encode Reference"
    DESCRIPTION = (
        "Encodes reference images for an edit. Each may have any size and aspect, and is resized to the nearest size that both "
        "models can read. For several references connect several images, chain these nodes, or connect a batch; their order "
        "matters."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm image edit", "glm image to image", "glm reference image")
    FUNCTION = "encode"
    RETURN_TYPES = (REFERENCES,)
    RETURN_NAMES = ("references",)
    OUTPUT_TOOLTIPS = ("All references so far in order, for Generate Prior and Apply Prior.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "ar": (AR, {"tooltip": "The AR model that will read these references in Generate Prior."}),
                "vae": ("VAE", {"tooltip": "The VAE of the checkpoint whose DiT will paint the edit."}),
                "image": ("IMAGE", {"tooltip": "One reference, or a batch of several. Alpha is ignored."}),
            },
            "optional": {
                "references": (REFERENCES, {"tooltip": "References that come before this one."}),
                **{f"image_{number}": ("IMAGE", {"tooltip": f"Reference {number}, if there is one."}) for number in (2, 3, 4)},
            },
        }

    def encode(self, ar, vae, image, references=(), image_2=None, image_3=None, image_4=None):
        reader, space = glm_ar(ar), glm_vae(vae).space
        check_references(references, codebook=reader.codebook, space=space)
        images = [one for one in (image, image_2, image_3, image_4) if one is not None]
        pictures = [fit(reader, picture) for one in images for picture in to_pictures(one)]
        progress = host.progress("Encode Reference")
        steps = 2 * len(pictures)

        width, height = max(pictures, key=lambda picture: picture.width * picture.height).size
        with host.placed(ar, vision_bytes(reader.model.config, reader.dtype.itemsize, width, height), "vision") as reader:
            tokens = []
            for picture in pictures:
                tokens.append(vision_tokens(reader, picture))
                progress(len(tokens), steps)
        with placed_vae(vae, "auto", vae_encode_bytes, width=width, height=height) as (placed, tiled):
            latents = []
            for picture in pictures:
                latents.append(latents_of(placed, picture, tiled))
                progress(len(tokens) + len(latents), steps)
        encoded = (
            Reference(
                width=picture.width,
                height=picture.height,
                vision_tokens=token,
                latents=latent,
                codebook=reader.codebook,
                space=space,
            )
            for picture, token, latent in zip(pictures, tokens, latents, strict=True)
        )
        return ((*references, *encoded),)
