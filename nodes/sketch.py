"""Sketch, choose, expand: many previews, the best of them, and plans that begin with these."""

from ..glmimage_core.glm_image.draw import Variation
from ..glmimage_core.glm_image.layout import check_prompt
from ..glmimage_core.glm_image.prior import check_codebook
from ..glmimage_core.glm_image.sketch import expand_sketches, sketch_of, sketch_priors
from .host import host
from .planning import SAMPLING, VARIATION_INPUT, checked_planner, planner_job, run_planner
from .prior import planner_message
from .sockets import AR, CATEGORY, PRIOR, VARIATION, glm_ar
from .widgets import batch_input, fraction_input, seed_input, side_input


class GLMImageSketchPriors:
    TITLE = "GLM-Image Sketch Priors"
    DESCRIPTION = (
        "Writes only the small previews of many plans, which fix what is where: a fifth of the tokens at 1024 x 1024. Look at "
        "them, choose some, and expand these alone into plans."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("many variations", "batch of previews", "thumbnails", "explore seeds", "sketch", "draft plans")
    FUNCTION = "sketch"
    RETURN_TYPES = (PRIOR,)
    RETURN_NAMES = ("sketches",)
    OUTPUT_TOOLTIPS = ("Plans of small pictures: for Preview Prior, for Apply Prior to paint them, and for Expand Priors.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "ar": (AR, {"tooltip": "From Load GLM-Image AR Model."}),
                "prompt": ("STRING", {"multiline": True, "tooltip": "What the pictures show. Must not be empty."}),
                "width": side_input("Width"),
                "height": side_input("Height"),
                "count": ("INT", {"default": 4, "min": 1, "max": 64, "tooltip": "How many sketches. They are decoded together."}),
                "seed": seed_input("the composition"),
            },
            "optional": {"variation": VARIATION_INPUT, **SAMPLING},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width, *, height=None, prompt=None):
        return planner_message(prompt, width, height)

    async def sketch(
        self,
        ar,
        prompt,
        width,
        height,
        count,
        seed,
        variation=None,
        temperature=0.9,
        top_p=0.75,
        top_k=50,
        lookahead="auto",
    ):
        checked_planner(ar, prompt, width, height)

        def plan(placed, **settings):
            return sketch_priors(placed, prompt, width, height, seed=seed, batch=count, variation=variation, **settings)

        sketches = await run_planner(
            ar,
            plan,
            job=planner_job(width, height, count, references=(), prompt=prompt),
            sampling=(temperature, top_p, top_k),
            lookahead=lookahead,
            label="Sketch Priors",
        )
        host.say(f"{count} x {sketches.tokens[0].numel()} tokens in {sketches.passes} passes")
        return (sketches,)


class GLMImageExpandPriors:
    TITLE = "GLM-Image Expand Priors"
    DESCRIPTION = (
        "Writes the plans that begin with chosen sketches. Behind Generate Prior it plans the same composition again with other "
        "details."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("expand sketch", "same composition", "other details", "subtle variation", "hires plan")
    FUNCTION = "expand"
    RETURN_TYPES = (PRIOR, "INT", "INT")
    RETURN_NAMES = ("prior", "width", "height")
    OUTPUT_TOOLTIPS = (
        "The whole plans, for Apply Prior.",
        "Width of the planned pictures in pixels, for the latent of another sampler.",
        "Height of the planned pictures in pixels, for the latent of another sampler.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "ar": (AR, {"tooltip": "From Load GLM-Image AR Model, the one that made the sketches."}),
                "sketches": (PRIOR, {"tooltip": "From Sketch Priors, or a plan from Generate Prior, whose preview is taken."}),
                "copies": batch_input(64, "How many plans begin with each sketch. Their details differ."),
                "seed": seed_input("the details"),
            },
            "optional": {"variation": VARIATION_INPUT, **SAMPLING},
        }

    async def expand(self, ar, sketches, copies, seed, variation=None, temperature=0.9, top_p=0.75, top_k=50, lookahead="auto"):
        model = glm_ar(ar)
        sketches = sketch_of(sketches)
        check_codebook(sketches, model.codebook)
        check_prompt(model, sketches.prompt)
        width, height = sketches.expands_to

        def plan(placed, **settings):
            return expand_sketches(placed, sketches, seed=seed, copies=copies, variation=variation, **settings)

        prior = await run_planner(
            ar,
            plan,
            job=planner_job(width, height, copies * sketches.batch, references=(), prompt=sketches.prompt),
            sampling=(temperature, top_p, top_k),
            lookahead=lookahead,
            label="Expand Priors",
        )
        host.say(f"{prior.batch} x {width} x {height} in {prior.passes} passes")
        return (prior, width, height)


class GLMImageVariation:
    TITLE = "GLM-Image Variation"
    DESCRIPTION = (
        "Plans near that of a seed: a share of the tokens is drawn with the noise of another seed. All plans of a batch then "
        "begin with one seed, and each goes towards a variation seed of its own."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("variation seed", "variation strength", "subseed", "subtle variation", "near seed")
    FUNCTION = "vary"
    RETURN_TYPES = (VARIATION,)
    RETURN_NAMES = ("variation",)
    OUTPUT_TOOLTIPS = ("For Generate Prior, Sketch Priors and Expand Priors.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "variation_seed": seed_input("the variations"),
                "strength": fraction_input(
                    0.2, "0 is the plan of the seed, 1 that of the variation seed. The step from one to the next can be large."
                ),
            }
        }

    def vary(self, variation_seed, strength):
        return (Variation(variation_seed, strength),)
