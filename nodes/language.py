"""Prompts rewritten by language models into the long captions that GLM-Image was trained on."""

from ..glmimage_core import chat
from ..glmimage_core.pixels import to_pictures
from ..glmimage_core.rewriting import KINDS, LANGUAGES, checked, instruction
from .host import host
from .keys import key_for
from .sockets import CATEGORY, SEED_MAX

PROMPT = (
    "STRING",
    {
        "multiline": True,
        "dynamicPrompts": True,
        "tooltip": "What the picture shows, in few words or many. Text in quotation marks comes out letter by letter.",
    },
)
STYLE = (
    list(KINDS),
    {
        "default": "general",
        "tooltip": "The kind of picture: text-heavy is for posters, menus and slides, and lets the model think of texts.",
    },
)
LANGUAGE = (
    list(LANGUAGES),
    {"default": "auto", "tooltip": "Of the rewritten prompt. auto is the prompt's own: Chinese or English."},
)
SEED = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": SEED_MAX,
        "control_after_generate": True,
        "tooltip": "Seed of the wording. Services may not keep to it.",
    },
)
TEMPERATURE = (
    "FLOAT",
    {"default": 0.7, "min": 0.0, "max": 2.0, "step": 0.05, "tooltip": "Higher is more varied; 0 takes the likeliest words."},
)
MAX_TOKENS = (
    "INT",
    {"default": 1024, "min": 64, "max": 8192, "tooltip": "How much the model may write, its thoughts included if it has any."},
)
IMAGES = (
    "IMAGE",
    {"tooltip": "Reference pictures of an edit, in order, for a model that sees: the first picture, the second and so on."},
)


class GLMImageEnhancePromptAPI:
    TITLE = "GLM-Image Enhance Prompt (API)"
    DESCRIPTION = (
        "Has a chat model behind an OpenAI-compatible address rewrite a prompt as the long, precise caption that GLM-Image works "
        "best with: a local Ollama, llama.cpp or vLLM, or a service. Texts in quotation marks are kept letter by letter."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm prompt enhancer", "prompt rewriting", "openai", "ollama", "llm")
    FUNCTION = "enhance"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("prompt",)
    OUTPUT_TOOLTIPS = ("The rewritten prompt, for Encode Prompt and Generate Prior.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prompt": PROMPT,
                "base_url": (
                    "STRING",
                    {
                        "default": "http://127.0.0.1:11434/v1",
                        "tooltip": "Address of the endpoint, with its /v1 where it has one. The default is Ollama here.",
                    },
                ),
                "model": ("STRING", {"default": "", "tooltip": "Name of the model there."}),
                "key_variable": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Name of the environment variable that holds the key, such as OPENAI_API_KEY; never the key "
                        "itself. Empty where no key is needed.",
                    },
                ),
                "style": STYLE,
                "language": LANGUAGE,
                "seed": SEED,
                "temperature": TEMPERATURE,
                "max_tokens": MAX_TOKENS,
                "timeout": (
                    "FLOAT",
                    {"default": 120.0, "min": 1.0, "max": 3600.0, "tooltip": "Seconds for the whole answer, all tries included."},
                ),
                "retries": (
                    "INT",
                    {"default": 2, "min": 0, "max": 10, "tooltip": "How often to ask again when the endpoint is busy or fails."},
                ),
            },
            "optional": {"images": IMAGES},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt, base_url, model, key_variable, timeout=120.0):
        """Also whether the key is there and may be sent to that address. What comes over a link is None, and checked later."""
        if prompt is not None and not prompt.strip():
            return "the prompt is empty; say what the picture shows"
        try:
            chat.Endpoint(base_url or "http://127.0.0.1", "any" if model is None else model, timeout=timeout or 1)
            if base_url and key_variable:
                key_for(key_variable, base_url)
        except ValueError as error:
            return str(error)
        return True

    def enhance(
        self, prompt, base_url, model, key_variable, style, language, seed, temperature, max_tokens, timeout, retries, images=None
    ):
        endpoint = chat.Endpoint(base_url, model, key_for(key_variable, base_url), timeout, retries)
        pictures = [] if images is None else to_pictures(images)
        told = instruction(prompt, style, language, len(pictures))
        progress = host.progress("Enhance Prompt", "pieces")
        answer = chat.complete(endpoint, told, prompt, pictures, temperature, seed, max_tokens, progress)
        return (checked(answer, prompt, style),)
