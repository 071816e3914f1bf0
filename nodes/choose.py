"""The best of several plans: by hand, by how sure the planner was, by the texts that a vision-language model reads."""

from ..glmimage_core.glm_image.plans.choose import best, chosen, found_share, numbers_in
from ..glmimage_core.glm_image.plans.entropy import token_information
from ..glmimage_core.glm_image.plans.look import contact_sheet
from ..glmimage_core.images import to_pictures
from ..glmimage_core.language.answers import cleaned
from ..glmimage_core.language.rewriting import reading_request
from ..glmimage_core.language.vlm import prepare
from ..glmimage_core.quoted import find_quoted_texts
from .host import host
from .language import VLM_INPUT, ask
from .planning import ask_planner
from .sockets import AR, CATEGORY, PRIOR, REFERENCES, validation_message

CHOSEN = "The chosen plans, the best first, for Expand Priors or Apply Prior."
NUMBERS = "Their numbers, counted from 0."
PLANS = (PRIOR, {"tooltip": "Sketches or plans, several in a batch."})
KEEP = ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "How many to keep."})


def _named(images: list[int]) -> str:
    return ", ".join(map(str, images))


class GLMImageContactSheet:
    TITLE = "GLM-Image Contact Sheet"
    DESCRIPTION = "All images of a batch on one sheet, each with the number by which Choose Priors and ImageFromBatch know it."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("image grid", "numbered grid", "xy grid", "combine images", "overview")
    FUNCTION = "lay_out"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The sheet, one image.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The pictures, such as painted sketches or those of Preview Prior."}),
                "columns": (
                    "INT",
                    {"default": 0, "min": 0, "max": 64, "tooltip": "Pictures a row. 0 makes the sheet about square."},
                ),
            }
        }

    def lay_out(self, images, columns):
        return (contact_sheet(images, columns),)


class GLMImageChoosePriors:
    TITLE = "GLM-Image Choose Priors"
    DESCRIPTION = "Keeps some of several sketches or plans, by their numbers."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("pick plan", "select sketch", "prior from batch", "choose by hand")
    FUNCTION = "choose"
    RETURN_TYPES = (PRIOR,)
    RETURN_NAMES = ("prior",)
    OUTPUT_TOOLTIPS = ("The chosen plans, in the order of their numbers here, for Expand Priors or Apply Prior.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prior": PLANS,
                "numbers": (
                    "STRING",
                    {"default": "0", "tooltip": "One number or several, counted from 0, such as 0, 3. Contact Sheet shows them."},
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, numbers):
        return validation_message(lambda: numbers is None or numbers_in(numbers))

    def choose(self, prior, numbers):
        return (chosen(prior, numbers_in(numbers)),)


class GLMImageChooseSurest:
    TITLE = "GLM-Image Choose Surest Priors"
    DESCRIPTION = (
        "Keeps those of several sketches or plans of which the planner is surest: whose tokens are the likeliest. It asks the AR "
        "model once about each."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("best of n", "rerank", "choose by confidence", "pick best plan")
    FUNCTION = "choose"
    RETURN_TYPES = (PRIOR, "STRING")
    RETURN_NAMES = ("prior", "numbers")
    OUTPUT_TOOLTIPS = (CHOSEN, NUMBERS)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "ar": (AR, {"tooltip": "The AR model that made the plans."}),
                "prior": PLANS,
                "keep": KEEP,
            },
            "optional": {"references": (REFERENCES, {"tooltip": "The references that the plans were generated with."})},
        }

    def choose(self, ar, prior, keep, references=()):
        given = {"prompt": prior.prompt, "references": references, "label": "Choose Surest Priors"}
        bits = ask_planner(ar, prior, token_information, **given).mean((1, 2))
        order = best((-bits).tolist(), prior.batch)
        host.say("bits a token: " + ", ".join(f"{bits[image]:.3f} for {image}" for image in order))
        images = order[:keep]
        return (chosen(prior, images), _named(images))


class GLMImageChooseByText:
    TITLE = "GLM-Image Choose Priors by Text"
    DESCRIPTION = (
        "Keeps those of several plans in whose pictures a vision-language model reads the quoted texts of the prompt best. "
        "Connect the pictures that were painted from the plans."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("best of n", "ocr check", "read text back", "rerank by text")
    FUNCTION = "choose"
    RETURN_TYPES = (PRIOR, "STRING")
    RETURN_NAMES = ("prior", "numbers")
    OUTPUT_TOOLTIPS = (CHOSEN, NUMBERS)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vlm": VLM_INPUT,
                "prior": PLANS,
                "images": ("IMAGE", {"tooltip": "A picture of each plan, in order, such as a painted sketch."}),
                "keep": KEEP,
            },
            "optional": {
                "texts": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "The texts that the pictures must show, one a line. Empty takes those in quotation marks in "
                        "the prompt of the plans.",
                    },
                ),
            },
        }

    def choose(self, vlm, prior, images, keep, texts=""):
        wanted = [line.strip() for line in texts.splitlines() if line.strip()] or find_quoted_texts(prior.prompt)
        if not wanted:
            raise ValueError(
                "the prompt quotes no text that could be read back; put it in quotation marks, or write it into texts"
            )
        pictures = to_pictures(images)
        if len(pictures) != prior.batch:
            raise ValueError(
                f"{len(pictures)} images and {prior.batch} plans do not go together; connect one picture of each plan"
            )
        shares = []
        for number, picture in enumerate(pictures):
            question = prepare(host.component(vlm), "", reading_request(), [picture])
            answer = ask(vlm, question, temperature=0, seed=0, max_tokens=512, label=f"Read picture {number}")
            shares.append(found_share(wanted, cleaned(answer)))
        kept = best(shares, min(keep, prior.batch))
        host.say(", ".join(f"{image}: {shares[image]:.0%} of the text" for image in kept))
        return (chosen(prior, kept), _named(kept))
