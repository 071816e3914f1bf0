"""Inpainting and outpainting: plan, latents and pixels outside a mask stay, with the picture itself as a reference."""

from ..glmimage_core.glm_image.geometry import PRIOR_PX
from ..glmimage_core.glm_image.inpaint import inpaint_prior, latent_mask, padded, reference_plan, to_be_read
from ..glmimage_core.glm_image.references import check_references
from ..glmimage_core.glm_image.regrow import check_regrow
from ..glmimage_core.images import from_picture, to_rgb
from ..glmimage_core.masks import composite
from .planning import SAMPLING, planner_job, prompted_planner, run_planner, tell_of_regrowing, warn_of_size
from .references import GLMImageEncodeReference
from .regrow import prompt_message, warn_of_mask
from .sockets import AR, CATEGORY, PRIOR, REFERENCES
from .widgets import batch_input, seed_input

UNDER_MASK = ("change it", "replace it")


class GLMImageInpaint:
    TITLE = "GLM-Image Inpaint"
    DESCRIPTION = (
        "Prepares an inpainting or outpainting: plans anew what is under the mask, with the picture itself as a reference, and "
        "keeps plan and latents of the rest. Continue with Apply Prior, a sampler, VAE Decode and Composite Masked."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("inpaint", "outpaint", "generative fill", "object removal", "mask", "repaint")
    FUNCTION = "inpaint"
    RETURN_TYPES = (PRIOR, REFERENCES, "LATENT", "MASK")
    RETURN_NAMES = ("prior", "references", "latent", "mask")
    OUTPUT_TOOLTIPS = (
        "The plan, for Apply Prior. It has the picture's size, rounded to multiples of 32 pixels.",
        "The picture and the further references, for Apply Prior.",
        "The picture's latents with the mask as their noise mask, for GLM-Image Sampler or KSampler.",
        "The mask of what may change, for Composite Masked.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "ar": (AR, {"tooltip": "From Load GLM-Image AR Model."}),
                "vae": ("VAE", {"tooltip": "The VAE of the checkpoint whose DiT will paint."}),
                "image": ("IMAGE", {"tooltip": "One picture of any size. For outpainting from Pad for Outpainting."}),
                "mask": (
                    "MASK",
                    {"tooltip": "White where the picture may change. A mask of another size is stretched over the picture."},
                ),
                "prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "tooltip": "What to change, as for an edit: make the circle purple, remove the tree. To replace or to "
                        "outpaint: what to add, and where.",
                    },
                ),
                "under_mask": (
                    list(UNDER_MASK),
                    {
                        "default": UNDER_MASK[0],
                        "tooltip": "change it: the models see what is under the mask; for another colour, for removing. replace "
                        "it: they see the colours around it instead; for something new in its place, and for outpainting.",
                    },
                ),
                "batch_size": batch_input(64, "How many different plans. They are decoded together."),
                "seed": seed_input("the new part of the composition"),
            },
            "optional": {
                "references": (REFERENCES, {"tooltip": "Further images for the prompt to speak of, from the second one on."}),
                **SAMPLING,
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt=None):
        return prompt_message(prompt)

    async def inpaint(
        self,
        ar,
        vae,
        image,
        mask,
        prompt,
        under_mask,
        batch_size,
        seed,
        references=(),
        temperature=0.9,
        top_p=0.75,
        top_k=50,
        lookahead="auto",
    ):
        model = prompted_planner(ar, prompt)
        check_references(references, codebook=model.codebook)
        warn_of_mask(mask)
        picture, mask = to_be_read(model, image, mask, erase=under_mask == UNDER_MASK[1])
        warn_of_size(model, *picture.size)
        ((reference,),) = GLMImageEncodeReference().encode(ar, vae, from_picture(picture))
        check_regrow(model, reference_plan(reference), mask, batch=batch_size)
        batch, seen = max(batch_size, len(mask)), (reference, *references)

        def plan(placed, **settings):
            return inpaint_prior(placed, reference, mask, prompt, others=references, seed=seed, batch=batch, **settings)

        prior = await run_planner(
            ar,
            plan,
            job=planner_job(*picture.size, batch, references=seen, prompt=prompt),
            sampling=(temperature, top_p, top_k),
            lookahead=lookahead,
            label="Inpaint",
        )
        tell_of_regrowing(prior)
        latents = reference.latents.expand(batch, -1, -1, -1)
        return (prior, seen, {"samples": latents, "noise_mask": latent_mask(mask, *picture.size)}, mask)


class GLMImagePadForOutpaint:
    TITLE = "GLM-Image Pad for Outpainting"
    DESCRIPTION = (
        "Puts room around a picture, in the colours next to it, and gives the mask of that room. The whole gets sides that are "
        "multiples of 32 pixels, so the picture is not resized. For Inpaint, with replace it."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("outpaint", "extend image", "uncrop", "zoom out", "pad image")
    FUNCTION = "pad"
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("image", "mask")
    OUTPUT_TOOLTIPS = ("The picture with room around it, for Inpaint and Composite Masked.", "1 in the room, 0 in the picture.")

    @classmethod
    def INPUT_TYPES(cls):
        sides = {name: _pixels_input(name) for name in ("left", "top", "right", "bottom")}
        return {"required": {"image": ("IMAGE", {"tooltip": "Pictures of any size. Alpha is ignored."}), **sides}}

    def pad(self, image, left=0, top=0, right=0, bottom=0):
        return padded(image, left=left, top=top, right=right, bottom=bottom)


def _pixels_input(side: str) -> tuple:
    return (
        "INT",
        {"default": 0, "min": 0, "max": 2048, "step": PRIOR_PX, "tooltip": f"Room on the {side} side in pixels."},
    )


class GLMImageCompositeMasked:
    TITLE = "GLM-Image Composite Masked"
    DESCRIPTION = (
        "Puts what was painted into the original picture: outside the mask every pixel is the original's, exactly. A VAE alone "
        "changes all pixels a little. What was painted at another size is scaled."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("inpaint composite", "paste masked", "blend", "keep unmasked pixels", "mask")
    FUNCTION = "put"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The pictures, of the original's size.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "original": ("IMAGE", {"tooltip": "The picture before: what Inpaint got, or a reference."}),
                "painted": ("IMAGE", {"tooltip": "From VAE Decode."}),
                "mask": ("MASK", {"tooltip": "From Inpaint or Changed Mask: 1 where painted is taken."}),
                "feather": (
                    "INT",
                    {
                        "default": 4,
                        "min": 0,
                        "max": 256,
                        "tooltip": "Pixels over which the original becomes what was painted. They lie inside the mask.",
                    },
                ),
            }
        }

    def put(self, original, painted, mask, feather=4):
        return (composite(to_rgb(original), to_rgb(painted), mask, feather),)
