"""Looking at plans: the grid in colours, what the planner was unsure of, and a draft of the picture."""

import torch

from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.layout import check_length
from ..glmimage_core.glm_image.plans.draft import draft_of
from ..glmimage_core.glm_image.plans.entropy import token_entropies
from ..glmimage_core.glm_image.plans.look import as_squares, heat, laid_over, token_colours
from ..glmimage_core.glm_image.prior import Prior, check_codebook
from ..glmimage_core.images import to_rgb
from .host import host
from .host.requests import PRIOR_KEY, applied_prior
from .planning import ask_planner
from .sampling import GLMImageSampler
from .sockets import AR, CATEGORY, PRIOR, REFERENCES, glm_ar, glm_vae, one_conditioning, validation_message
from .vae import GLMImageVAEDecode
from .widgets import cfg_input, fraction_input, seed_input, steps_input


class GLMImagePreviewPrior:
    TITLE = "GLM-Image Preview Prior"
    DESCRIPTION = (
        "Shows a plan as a picture: a square for each token, the same colour for the same token in every plan. With an image "
        "connected, the squares lie over it."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("token grid", "show tokens", "view plan", "preview plan", "prior overlay", "visualize tokens")
    FUNCTION = "show"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The grid of each plan, at the size of the picture that it plans or of the connected image.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prior": (PRIOR, {"tooltip": "The plan to look at."}),
                "grid": (
                    ["plan", "preview"],
                    {
                        "default": "plan",
                        "tooltip": "plan: the tokens that are painted. preview: the small grid that Generate Prior writes first, "
                        "where there is one.",
                    },
                ),
                "opacity": fraction_input(0.5, "Of the squares over the connected image: 0 is the image, 1 the squares alone."),
            },
            "optional": {
                "ar": (
                    AR,
                    {
                        "tooltip": "The AR model of the plan. Similar tokens then have similar colours. Without it a colour says "
                        "only which tokens are equal."
                    },
                ),
                "image": (
                    "IMAGE",
                    {"tooltip": "The picture to lay the grid over, such as the one that was painted from the plan."},
                ),
            },
        }

    def show(self, prior, grid, opacity, ar=None, image=None):
        tokens = prior.tokens if grid == "plan" else prior.preview
        if tokens is None:
            raise ValueError("this plan has no preview: edits and plans of pictures have none; choose grid plan")
        colours = token_colours(tokens, None if ar is None else _palette(glm_ar(ar), prior))
        if image is not None:
            return (laid_over(to_rgb(image), colours, opacity),)
        return (as_squares(colours, prior.width, prior.height),)


def _palette(ar: ArModel, prior: Prior) -> torch.Tensor:
    check_codebook(prior, ar.codebook)
    return ar.palette


class GLMImagePriorEntropy:
    TITLE = "GLM-Image Prior Entropy"
    DESCRIPTION = (
        "Shows where the planner was unsure: for each place, how many bits its choice of the token there took. It asks the AR "
        "model once about the whole plan, so it works for loaded, edited and read plans too."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("uncertainty map", "token entropy", "confidence map", "planner confidence", "heatmap")
    FUNCTION = "ask"
    RETURN_TYPES = ("IMAGE", "MASK", "FLOAT")
    RETURN_NAMES = ("image", "mask", "bits")
    OUTPUT_TOOLTIPS = (
        "The map as colours, from black (sure) over red and yellow to white.",
        "The map as a mask, 0 (sure) to 1, at the picture's size: to see or to change only the unsure parts.",
        "The mean number of bits a place, over all plans. Less is a surer planner.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "ar": (AR, {"tooltip": "The AR model that made the plan."}),
                "prior": (PRIOR, {"tooltip": "The plan to ask about."}),
                "most_bits": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 16.0,
                        "step": 0.1,
                        "tooltip": "How many bits are white and 1 in the mask. 0 takes the most unsure place of these plans; set "
                        "a number to compare maps.",
                    },
                ),
            },
            "optional": {
                "prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "What the planner is asked with. Empty takes the plan's own prompt; the plan of a picture may "
                        "have none.",
                    },
                ),
                "references": (REFERENCES, {"tooltip": "The references that the plan was generated with."}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt=None):
        return validation_message(lambda: check_length(prompt or ""))

    def ask(self, ar, prior, most_bits, prompt="", references=()):
        prompt = prompt if prompt.strip() else prior.prompt
        bits = ask_planner(ar, prior, token_entropies, prompt=prompt, references=references, label="Prior Entropy")
        host.say(f"{bits.mean():.2f} bits a place, at most {bits.max():.2f}")
        shares = (bits / (most_bits or bits.max().clamp(min=1e-6))).clamp(0, 1)
        mask = as_squares(shares[..., None], prior.width, prior.height)[..., 0]
        return (as_squares(heat(shares), prior.width, prior.height), mask, bits.mean().item())


class GLMImageDraft:
    TITLE = "GLM-Image Draft"
    DESCRIPTION = (
        "Paints a plan quickly, to see whether it is worth a picture: its small preview where it has one, in a few steps, and "
        "decodes it."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("quick preview", "fast preview", "draft", "thumbnail", "low steps")
    FUNCTION = "paint"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The drafts [batch, height, width, 3], 0 to 1. A plan of 1024 x 1024 pixels gives 512 x 512.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "From Load GLM-Image DiT."}),
                "vae": ("VAE", {"tooltip": "From Load GLM-Image VAE."}),
                "positive": ("CONDITIONING", {"tooltip": "From Apply Prior. The plan to draft is in it."}),
                "negative": ("CONDITIONING", {"tooltip": "From Apply Prior."}),
                "seed": seed_input("the details"),
                "steps": steps_input(6, tooltip="Denoising steps. 4 to 8 show what is where."),
                "cfg": cfg_input(1.5),
            }
        }

    def paint(self, model, vae, positive, negative, seed, steps, cfg):
        glm_vae(vae)
        _, options = one_conditioning(positive, "positive", "GLM-Image Draft")
        draft = draft_of(applied_prior(options, "positive"))
        positive, negative = (
            [[embeddings, options | {PRIOR_KEY: draft}] for embeddings, options in side] for side in (positive, negative)
        )
        (latent,) = GLMImageSampler().sample(model, positive, negative, seed=seed, steps=steps, cfg=cfg)
        return GLMImageVAEDecode().decode(vae, latent)
