"""Prior tokens: the AR stage, and how its plan reaches the sampler."""

from functools import partial

from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.geometry import MIN_SIDE, check_size
from ..glmimage_core.glm_image.layout import check_length
from ..glmimage_core.glm_image.prior import Prior, generate_prior
from ..glmimage_core.glm_image.references import check_references
from .enlarge import plan_of_latents
from .host import host
from .host.requests import DROP_KEY, PRIOR_KEY, REFERENCES_KEY, REPLAN_KEY
from .planning import TEMPERATURE, TOP_K, TOP_P, VARIATION_INPUT, checked_planner, lookahead_input, planner_job, run_planner
from .sockets import AR, CATEGORY, PRIOR, REFERENCES, glm_ar, glm_vae, validation_message
from .widgets import batch_input, seed_input, side_input


class GLMImageGeneratePrior:
    TITLE = "GLM-Image Generate Prior"
    DESCRIPTION = (
        "The AR stage: generates the prior tokens that plan the composition, one token for each 32 x 32 pixels. Without "
        "references it first generates a small preview of them. The plan depends on this node's own seed; a new seed in the "
        "sampler keeps the plan."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm text to image", "glm ar stage", "glm tokens")
    FUNCTION = "generate"
    RETURN_TYPES = (PRIOR,)
    RETURN_NAMES = ("prior",)
    OUTPUT_TOOLTIPS = ("Prior tokens [batch, height / 32, width / 32] and their settings, for Apply Prior.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "ar": (AR, {"tooltip": "From Load GLM-Image AR Model."}),
                "prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "tooltip": "What the picture shows, or what an edit changes. Must not be empty. Long, precise "
                        "descriptions work best; put text to be drawn in quotation marks.",
                    },
                ),
                "width": side_input("Width"),
                "height": side_input("Height"),
                "batch_size": batch_input(64, "How many different compositions to plan. They are decoded together."),
                "seed": seed_input("the composition"),
                "temperature": TEMPERATURE,
                "top_p": TOP_P,
                "top_k": TOP_K,
            },
            "optional": {
                "references": (REFERENCES, {"tooltip": "Images to edit or combine. Connect them to Apply Prior too."}),
                "lookahead": lookahead_input(
                    ": the next one, and guesses of those after it. Right guesses save time, wrong ones change nothing."
                ),
                "variation": VARIATION_INPUT,
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width, *, height=None, prompt=None):
        return planner_message(prompt, width, height)

    async def generate(
        self,
        ar,
        prompt,
        width,
        height,
        batch_size,
        seed,
        temperature=0.9,
        top_p=0.75,
        top_k=50,
        references=(),
        lookahead="auto",
        variation=None,
    ):
        model = checked_planner(ar, prompt, width, height)
        check_references(references, codebook=model.codebook)

        def plan(placed: ArModel, **settings) -> Prior:
            given = {"seed": seed, "batch": batch_size, "references": references, "variation": variation}
            return generate_prior(placed, prompt, width, height, **given, **settings)

        prior = await run_planner(
            ar,
            plan,
            job=planner_job(width, height, batch_size, references=references, prompt=prompt),
            sampling=(temperature, top_p, top_k),
            lookahead=lookahead,
            label="Generate Prior",
        )
        host.say(f"{prior.tokens_a_picture} tokens in {prior.passes} passes, {prior.tokens_a_pass:.1f} a pass")
        return (prior,)


def planner_message(prompt: str | None, width: int | None, height: int | None) -> bool | str:
    """The answer of VALIDATE_INPUTS for a prompt and a size; None is a value over a link, checked when the node runs."""
    if prompt is not None and not prompt.strip():
        return "the prompt is empty; describe the picture"
    return validation_message(lambda: _check_values(prompt, width, height))


def _check_values(prompt: str | None, width: int | None, height: int | None) -> None:
    check_length(prompt or "")
    check_size(MIN_SIDE if width is None else width, MIN_SIDE if height is None else height)


class GLMImageApplyPrior:
    TITLE = "GLM-Image Apply Prior"
    DESCRIPTION = (
        "Puts the prior tokens, and for an edit the references, into the conditioning. The negative side gets neither: guidance "
        "steers away from a picture without them."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm conditioning", "glm apply tokens")
    FUNCTION = "apply"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = (
        "The positive conditioning with prior and references, for GLM-Image Sampler.",
        "The negative conditioning with the prior's size only, for GLM-Image Sampler.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "positive": ("CONDITIONING", {"tooltip": "From Encode Prompt."}),
                "negative": ("CONDITIONING", {"tooltip": "From Encode Prompt."}),
                "prior": (PRIOR, {"tooltip": "From Generate Prior. Its size is the picture's size."}),
            },
            "optional": {
                "references": (REFERENCES, {"tooltip": "The references that Generate Prior had, in the same order."}),
                "ar": (
                    AR,
                    {
                        "tooltip": "For a second pass over enlarged latents: with ar and vae, a sampler reads their own plan, "
                        "since the prior is of another size. Else leave both empty."
                    },
                ),
                "vae": ("VAE", {"tooltip": "As ar: both or none."}),
            },
        }

    def apply(self, positive, negative, prior, references=(), ar=None, vae=None):
        if (ar is None) != (vae is None):
            raise ValueError("enlarged latents are read with ar and vae together; connect both or none")
        check_references(references, codebook=prior.codebook)
        if tuple(reference.id for reference in references) != prior.references:
            host.warn(
                "these are not the references that the prior was generated with, so the edit may not follow them; connect the "
                "same references to Generate Prior and to Apply Prior"
            )
        if any(PRIOR_KEY in options for _, options in positive):
            host.warn("this replaces the prior of another Apply Prior: a picture has one plan; connect positive to Encode Prompt")
        on_positive = {PRIOR_KEY: prior, REFERENCES_KEY: references, DROP_KEY: False}
        on_negative = {PRIOR_KEY: prior, REFERENCES_KEY: (), DROP_KEY: True}
        if ar is not None:
            glm_ar(ar), glm_vae(vae)
            replan = {REPLAN_KEY: partial(plan_of_latents, ar, vae)}
            on_positive, on_negative = on_positive | replan, on_negative | replan
        positive = [[embeddings, options | on_positive] for embeddings, options in positive]
        negative = [[embeddings, options | on_negative] for embeddings, options in negative]
        return (positive, negative)
