"""A part of a plan drawn anew, and what an edit changed in one."""

from functools import partial

from ..glmimage_core.glm_image.edited import changed_cells, mask_of_cells
from ..glmimage_core.glm_image.inpaint import latent_mask
from ..glmimage_core.glm_image.layout import check_length
from ..glmimage_core.glm_image.references import check_references
from ..glmimage_core.glm_image.regrow import check_regrow, regrow_prior
from ..glmimage_core.masks import as_batch
from .host import host
from .planning import SAMPLING, planner_job, prompted_planner, run_planner, tell_of_regrowing
from .sockets import AR, CATEGORY, PRIOR, REFERENCES, validation_message
from .widgets import seed_input


class GLMImageRegrowPrior:
    TITLE = "GLM-Image Regrow Prior"
    DESCRIPTION = (
        "Draws the tokens of a plan anew that a mask touches; all others stay what they are. Chain several, each with a mask and "
        "a prompt of its own, for regional prompts."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("regional prompt", "area prompt", "inpaint plan", "mask", "regrow tokens")
    FUNCTION = "regrow"
    RETURN_TYPES = (PRIOR,)
    RETURN_NAMES = ("prior",)
    OUTPUT_TOOLTIPS = ("The plan with new tokens under the mask, for Apply Prior.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "ar": (AR, {"tooltip": "From Load GLM-Image AR Model, the one that the prior was generated with."}),
                "prior": (PRIOR, {"tooltip": "The plan to keep outside the mask."}),
                "mask": (
                    "MASK",
                    {
                        "tooltip": "What to plan anew. It is stretched over the picture. A token, 32 x 32 pixels, is drawn anew "
                        "where any of its pixels is masked."
                    },
                ),
                "prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "tooltip": "What the picture shows with the new part in it; with references, what an edit changes.",
                    },
                ),
                "seed": seed_input("the new tokens"),
            },
            "optional": {
                "references": (
                    REFERENCES,
                    {
                        "tooltip": "Images that the planner reads. It sees what is above and left of a hole by itself, and what "
                        "is below and right of it only in a reference. Connect them to Apply Prior too."
                    },
                ),
                **SAMPLING,
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt=None):
        return prompt_message(prompt)

    async def regrow(self, ar, prior, mask, prompt, seed, references=(), temperature=0.9, top_p=0.75, top_k=50, lookahead="auto"):
        model = prompted_planner(ar, prompt)
        check_references(references, codebook=model.codebook)
        check_regrow(model, prior, mask)
        warn_of_mask(mask)
        batch = max(prior.batch, len(as_batch(mask)))

        def plan(placed, **settings):
            return regrow_prior(placed, prior, mask, prompt, seed=seed, references=references, **settings)

        regrown = await run_planner(
            ar,
            plan,
            job=planner_job(prior.width, prior.height, batch, references=references, prompt=prompt),
            sampling=(temperature, top_p, top_k),
            lookahead=lookahead,
            label="Regrow Prior",
        )
        tell_of_regrowing(regrown)
        return (regrown,)


def prompt_message(prompt: str | None) -> bool | str:
    """The answer of VALIDATE_INPUTS for a prompt; None is a value over a link, which is checked when the node runs."""
    if prompt is not None and not prompt.strip():
        return "the prompt is empty; describe the picture or the change"
    return validation_message(partial(check_length, prompt or ""))


def warn_of_mask(mask) -> None:
    """Say that a mask covers nothing: the picture stays what it is."""
    if not (as_batch(mask) >= 0.5).any():
        host.warn("the mask covers nothing, so nothing changes; paint white where the picture is to change")


class GLMImageChangedMask:
    TITLE = "GLM-Image Changed Mask"
    DESCRIPTION = (
        "Where an edit changes a reference, known before the picture is painted: the tokens of the plan that are not the "
        "reference's at the same place. Composite with it to get all other pixels back exactly."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("edit mask", "difference mask", "what changed", "keep the rest", "mask")
    FUNCTION = "compare"
    RETURN_TYPES = ("MASK", "LATENT")
    RETURN_NAMES = ("mask", "latent")
    OUTPUT_TOOLTIPS = (
        "1 where the plan differs from the reference, of the picture's size, for Composite Masked.",
        "The reference's latents with the mask as their noise mask: a sampler leaves the rest as it is.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prior": (PRIOR, {"tooltip": "The plan of an edit, of the reference's size."}),
                "references": (REFERENCES, {"tooltip": "The references that the plan was generated with."}),
                "reference": (
                    "INT",
                    {"default": 1, "min": 1, "max": 64, "tooltip": "Which of the references to compare with, counted from 1."},
                ),
                "grow": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 16,
                        "tooltip": "Tokens, of 32 pixels each, by which the mask is wider than what changed.",
                    },
                ),
            }
        }

    def compare(self, prior, references, reference=1, grow=0):
        if not 1 <= reference <= len(references):
            raise ValueError(f"reference is {reference}, and {len(references)} are connected; count from 1")
        chosen = references[reference - 1]
        mask = mask_of_cells(changed_cells(prior, chosen, grow))
        host.say(f"{100 * mask.mean():.0f} % of the picture changes")
        return (mask, {"samples": chosen.latents, "noise_mask": latent_mask(mask, prior.width, prior.height)})
