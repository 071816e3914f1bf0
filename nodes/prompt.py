"""Prompt to conditioning: of a prompt, the DiT reads only the text to be drawn."""

import re

from ..glmimage_core.glm_image.glyphs import check_glyph_texts, encode_glyph_texts
from ..glmimage_core.glm_image.layout import check_length
from ..glmimage_core.glm_image.memory import glyph_bytes
from ..glmimage_core.quoted import find_quoted_texts, is_json, marks_without_text
from .host import host
from .sockets import CATEGORY, GLYPH_ENCODER

_CHOICE = re.compile(r"(?<!\\)\{[^{}]*\|[^{}]*\}")  # {red|blue}


class GLMImagePrompt:
    TITLE = "GLM-Image Prompt"
    DESCRIPTION = (
        "The prompt, typed once for Generate Prior and Encode Prompt. A choice such as {red|blue} is drawn here, so that both "
        "read the same words."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm text", "wildcard", "dynamic prompt", "string multiline")
    FUNCTION = "say"
    CONSTANT = True  # hands on what is typed: the command line checks it where it is read, before a graph runs
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("prompt",)
    OUTPUT_TOOLTIPS = ("The prompt, for Generate Prior and Encode Prompt, or for what rewrites it.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "dynamicPrompts": True,
                        "tooltip": "What the picture shows, or what an edit changes. Long, precise descriptions work best; put "
                        "text to be drawn in quotation marks. {red|blue} draws one of several words, anew for each run.",
                    },
                )
            }
        }

    def say(self, prompt):
        return (prompt,)


class GLMImageEncodePrompt:
    TITLE = "GLM-Image Encode Prompt"
    DESCRIPTION = (
        "Finds the text to be drawn, which is the text in quotation marks, and encodes it for the DiT. The rest of the prompt "
        "reaches the picture through Generate Prior, so give both nodes the same prompt."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm text encode", "glyph text", "draw text", "glm clip text encode")
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("positive", "negative", "glyph_text")
    OUTPUT_TOOLTIPS = (
        "Embeddings of the text to be drawn, for Apply Prior.",
        "Embeddings of the text not to be drawn, for Apply Prior.",
        "The text to be drawn, one text a line. Empty if there is none.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "glyph_encoder": (GLYPH_ENCODER, {"tooltip": "From Load GLM-Image Glyph Encoder."}),
                "prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "tooltip": "The prompt of the picture. Text in quotation marks is drawn letter by letter. An "
                        "apostrophe is no quotation mark.",
                    },
                ),
                "negative_prompt": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "Text in quotation marks that the picture should not show. Words outside quotation "
                        "marks do nothing, because no part of GLM-Image reads them.",
                    },
                ),
                "glyph_text": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "The text to be drawn, one text a line. It replaces the quoted text of the prompt. Empty "
                        "uses the prompt's.",
                    },
                ),
            }
        }

    def encode(self, glyph_encoder, prompt, negative_prompt="", glyph_text=""):
        for text in (prompt, negative_prompt, glyph_text):
            check_length(text)
        tell_of_choices(prompt)
        given = [line.strip() for line in glyph_text.splitlines() if line.strip()]
        texts = given or find_quoted_texts(prompt)
        avoided = find_quoted_texts(negative_prompt)
        if not given:
            _tell_of_marks(prompt, texts)
        if negative_prompt.strip() and not avoided:
            host.warn(f"the negative prompt has no text in quotation marks, so it changes nothing: {negative_prompt!r}")
        for side in (texts, avoided):
            check_glyph_texts(side)
        model = host.component(glyph_encoder)
        needed = max(glyph_bytes(model.model.config, model.dtype.itemsize, side) for side in (texts, avoided))
        with host.placed(glyph_encoder, needed) as encoder:
            positive = encode_glyph_texts(encoder, texts)
            negative = encode_glyph_texts(encoder, avoided)
        return ([[positive, {}]], [[negative, {}]], "\n".join(texts))


def tell_of_choices(prompt: str) -> None:
    """Say that {red|blue} is drawn elsewhere: drawn in two nodes, it would not be the same word in both."""
    if choice := _CHOICE.search(prompt):
        host.warn(f"{choice[0]} stays as it is here; type the prompt into GLM-Image Prompt, which draws one for both halves")


def _tell_of_marks(prompt: str, texts: list[str]) -> None:
    """Say where the marks of a prompt were read otherwise than its writer may have meant."""
    if is_json(prompt):
        said = f"{', '.join(map(repr, texts))} from it is" if texts else "nothing of it is"
        host.warn(f'the prompt is JSON, and {said} drawn: values of names such as "text"; say what to draw in a sentence instead')
    elif places := marks_without_text(prompt):
        shown = ", ".join(places[:3]) + (" and elsewhere" if len(places) > 3 else "")
        what = (
            "the prompt has quotation marks, but no text between two of them"
            if not texts
            else "a quotation mark has no other one"
        )
        host.warn(f"{what}, near: {shown}; put each text to be drawn between two marks, or into glyph_text")
