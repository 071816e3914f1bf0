"""Prompt to conditioning: what the DiT reads of a prompt is only the text to be drawn."""

from ..glmimage_core.glm_image.glyphs import encode_glyph_texts
from ..glmimage_core.quoted import find_quoted_texts
from .host import host
from .sockets import CATEGORY, GLYPH_ENCODER


class GLMImageEncodePrompt:
    TITLE = "GLM-Image Encode Prompt"
    DESCRIPTION = (
        "Finds the text to be drawn (what stands in quotation marks) and encodes it for the DiT. Everything else in the "
        "prompt reaches the picture through Generate Prior, so give both the same prompt."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm text encode", "glyph text", "draw text", "glm clip text encode")
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("positive", "negative", "glyph_text")
    OUTPUT_TOOLTIPS = (
        "Embeddings of the text to be drawn. Goes through Apply Prior to the sampler.",
        "Embeddings of the text not to be drawn. Goes through Apply Prior to the sampler.",
        "What was taken as text to be drawn, one text a line. Empty when the picture has none.",
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
                        "dynamicPrompts": True,
                        "tooltip": "The prompt of the picture. Text in quotation marks is drawn letter by letter; "
                        "apostrophes are left alone.",
                    },
                ),
                "negative_prompt": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "Text in quotation marks here is steered away from as drawn text. Words outside "
                        "quotation marks do nothing: no part of GLM-Image reads them.",
                    },
                ),
                "glyph_text": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "The text to be drawn, one text a line, instead of the quoted text of the prompt. "
                        "Empty takes it from the prompt.",
                    },
                ),
            }
        }

    def encode(self, glyph_encoder, prompt, negative_prompt="", glyph_text=""):
        given = [line.strip() for line in glyph_text.splitlines() if line.strip()]
        texts = given or find_quoted_texts(prompt)
        avoided = find_quoted_texts(negative_prompt)
        if negative_prompt.strip() and not avoided:
            host.warn(f"the negative prompt has no text in quotation marks, so it changes nothing: {negative_prompt!r}")
        with host.placed(glyph_encoder) as encoder:
            positive = encode_glyph_texts(encoder, texts)
            negative = encode_glyph_texts(encoder, avoided)
        return ([[positive, {}]], [[negative, {}]], "\n".join(texts))
