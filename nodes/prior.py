"""Prior tokens: the AR stage, and how its plan reaches the sampler."""

from ..glmimage_core.glm_image.ar_model import ArModel
from ..glmimage_core.glm_image.draw import Sampling
from ..glmimage_core.glm_image.geometry import MIN_SIDE, check_size
from ..glmimage_core.glm_image.layout import check_length, check_prompt
from ..glmimage_core.glm_image.lookahead import AUTO, SIZES
from ..glmimage_core.glm_image.memory import most_rows, prior_bytes
from ..glmimage_core.glm_image.prior import Prior, generate_prior
from ..glmimage_core.glm_image.references import check_references, sizes_of
from ..glmimage_core.placement.prediction import Job
from .host import host
from .host.requests import DROP_KEY, PRIOR_KEY, REFERENCES_KEY
from .sockets import AR, CATEGORY, PRIOR, REFERENCES, glm_ar, validation_message
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
                        "dynamicPrompts": True,
                        "tooltip": "What the picture shows, or what an edit changes. Must not be empty. Long, precise "
                        "descriptions work best; put text to be drawn in quotation marks.",
                    },
                ),
                "width": side_input("Width"),
                "height": side_input("Height"),
                "batch_size": batch_input(64, "How many different compositions to plan. They are decoded together."),
                "seed": seed_input("the composition"),
                "temperature": (
                    "FLOAT",
                    {
                        "default": 0.9,
                        "min": 0.0,
                        "max": 2.0,
                        "step": 0.05,
                        "tooltip": "Higher is more varied. 0 always takes the likeliest token, which gives poor pictures.",
                    },
                ),
                "top_p": (
                    "FLOAT",
                    {
                        "default": 0.75,
                        "min": 0.01,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "Draw from the likeliest tokens that together have this probability. 1 is off.",
                    },
                ),
                "top_k": (
                    "INT",
                    {
                        "default": 50,
                        "min": 0,
                        "max": 16384,
                        "tooltip": "Draw from this many likeliest tokens. 0 is off. transformers' default is 50.",
                    },
                ),
            },
            "optional": {
                "references": (REFERENCES, {"tooltip": "Images to edit or combine. Connect them to Apply Prior too."}),
                "lookahead": (
                    ["auto", *map(str, SIZES)],
                    {
                        "default": "auto",
                        "advanced": True,
                        "tooltip": "How many tokens to compute at once: the next one, and guesses of those after it. Right "
                        "guesses save time, wrong ones change nothing. auto takes the fastest number. In bfloat16 another number "
                        "may round differently and so give another plan; 1 is the reference's way.",
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width, *, height=None, prompt=None):
        # A value over a link is None here; it is checked when the node runs.
        if prompt is not None and not prompt.strip():
            return "the prompt is empty; describe the picture"
        return validation_message(lambda: _check_values(prompt, width, height))

    async def generate(
        self, ar, prompt, width, height, batch_size, seed, temperature=0.9, top_p=0.75, top_k=50, references=(), lookahead="auto"
    ):
        check_size(width, height)
        model = glm_ar(ar)
        check_prompt(model, prompt)
        check_references(references, codebook=model.codebook)
        for warning in (*model.trained_on.size_warnings(width, height), *model.trained_on.prompt_warnings(prompt)):
            host.warn(warning)
        sampling = Sampling(temperature, top_p, top_k)
        job = Job(width, height, batch_size, sizes_of(references), prompt_tokens=len(prompt.encode()))
        config, itemsize = model.model.config, model.dtype.itemsize

        def plan(placed: ArModel) -> Prior:
            return generate_prior(
                placed,
                prompt,
                width,
                height,
                seed=seed,
                batch=batch_size,
                sampling=sampling,
                references=references,
                lookahead=AUTO if lookahead == "auto" else int(lookahead),
                most_rows=most_rows(config, itemsize, job, host.free_bytes(ar)),
                progress=host.progress("Generate Prior", "tokens"),
            )

        prior = await host.run_in_background(ar, prior_bytes(config, itemsize, job), "language", plan)
        host.say(f"{prior.tokens_a_picture} tokens in {prior.passes} passes, {prior.tokens_a_pass:.1f} a pass")
        return (prior,)


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
            },
        }

    def apply(self, positive, negative, prior, references=()):
        check_references(references, codebook=prior.codebook)
        if tuple(reference.id for reference in references) != prior.references:
            host.warn(
                "these are not the references that the prior was generated with, so the edit may not follow them; connect the "
                "same references to Generate Prior and to Apply Prior"
            )
        on_positive = {PRIOR_KEY: prior, REFERENCES_KEY: references, DROP_KEY: False}
        on_negative = {PRIOR_KEY: prior, REFERENCES_KEY: (), DROP_KEY: True}
        positive = [[embeddings, options | on_positive] for embeddings, options in positive]
        negative = [[embeddings, options | on_negative] for embeddings, options in negative]
        return (positive, negative)
