"""Prompts rewritten by language models into the long captions that GLM-Image was trained on, and pictures described."""

from ..glmimage_core.images import to_pictures
from ..glmimage_core.language import chat
from ..glmimage_core.language.rewriting import KINDS, LANGUAGES, checked, description_request, instruction, without_markup
from ..glmimage_core.language.vlm import Clip, answer, prepare
from .host import host
from .keys import key_for
from .sockets import CATEGORY, SEED_MAX, VLM, validation_message

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
WORDING = {"language": LANGUAGE, "seed": SEED, "temperature": TEMPERATURE, "max_tokens": MAX_TOKENS}
IMAGES = (
    "IMAGE",
    {"tooltip": "Reference pictures of an edit, in order, for a model that sees: the first picture, the second and so on."},
)
VLM_INPUT = (VLM, {"tooltip": "From Load GLM-Image VLM."})


def _unless_empty(prompt: str | None) -> str | bool:
    """What to tell the user of a prompt that says nothing. One that comes over a link is None and not known yet."""
    return True if prompt is None or prompt.strip() else "the prompt is empty; say what the picture shows"


def _answer(wire, question, temperature, seed, max_tokens, label) -> str:
    with host.placed(wire, question.working_bytes(host.component(wire), max_tokens), "vlm") as vlm:
        settings = {"temperature": temperature, "seed": seed, "max_tokens": max_tokens}
        return answer(vlm, question, **settings, progress=host.progress(label, "tokens"))


class _Enhancer:
    """What the nodes that rewrite a prompt share."""

    CATEGORY = CATEGORY
    FUNCTION = "enhance"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("prompt",)
    OUTPUT_TOOLTIPS = ("The rewritten prompt, for Encode Prompt and Generate Prior.",)


class GLMImageEnhancePrompt(_Enhancer):
    TITLE = "GLM-Image Enhance Prompt"
    DESCRIPTION = (
        "Has a vision-language model rewrite a prompt as the long, precise caption that GLM-Image works best with. Texts in "
        "quotation marks are kept letter by letter."
    )
    SEARCH_ALIASES = ("glm prompt enhancer", "prompt rewriting", "glmga", "llm")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vlm": VLM_INPUT,
                "prompt": PROMPT,
                "style": STYLE,
                **WORDING,
            },
            "optional": {"images": IMAGES},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt):
        return _unless_empty(prompt)

    def enhance(self, vlm, prompt, style, language, seed, temperature, max_tokens, images=None):
        pictures = [] if images is None else to_pictures(images)
        question = prepare(host.component(vlm), instruction(prompt, style, language, len(pictures)), prompt, pictures)
        said = _answer(vlm, question, temperature, seed, max_tokens, "Enhance Prompt")
        if not without_markup(said):
            host.warn(f"the model said nothing within {max_tokens} tokens, or only thought: the prompt is as it was")
        return (checked(said, prompt, style),)


class GLMImageDescribe:
    TITLE = "GLM-Image Describe"
    DESCRIPTION = "Has a vision-language model describe pictures, or the frames of a clip, as a caption, or answer a question."
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm caption", "image to prompt", "describe image", "interrogate", "glmga")
    FUNCTION = "describe"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("description",)
    OUTPUT_TOOLTIPS = ("What the model says, as one paragraph without markup.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vlm": VLM_INPUT,
                "images": ("IMAGE", {"tooltip": "One picture, several, or the frames of a clip."}),
                "frame_rate": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 240.0,
                        "step": 0.01,
                        "tooltip": "Frames a second where the images are a clip, of which the model sees as many as it was made "
                        "for. 0: they are separate pictures.",
                    },
                ),
                "instruction": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "What to say or to answer. Empty asks for a caption from which the picture could be painted.",
                    },
                ),
                **WORDING,
            },
        }

    def describe(self, vlm, images, frame_rate, instruction, language, seed, temperature, max_tokens):
        pictures, clip = to_pictures(images), None
        if frame_rate:
            pictures, clip = [], Clip(pictures, frame_rate)
        request = description_request(instruction, language, len(images), frame_rate > 0)
        question = prepare(host.component(vlm), "", request, pictures, clip=clip)
        description = without_markup(_answer(vlm, question, temperature, seed, max_tokens, "Describe"))
        if not description:
            raise ValueError(f"the model said nothing within {max_tokens} tokens, or only thought; raise max_tokens")
        return (description,)


class GLMImageEnhancePromptAPI(_Enhancer):
    TITLE = "GLM-Image Enhance Prompt (API)"
    DESCRIPTION = (
        "Has a chat model behind an OpenAI-compatible address rewrite a prompt as the long, precise caption that GLM-Image works "
        "best with: a local Ollama, llama.cpp or vLLM, or a service. Texts in quotation marks are kept letter by letter."
    )
    SEARCH_ALIASES = ("glm prompt enhancer", "prompt rewriting", "openai", "ollama", "llm")

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
                **WORDING,
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
        if (problem := _unless_empty(prompt)) is not True:
            return problem

        def check() -> None:
            chat.chat_endpoint(base_url or "http://127.0.0.1", "any" if model is None else model, timeout=timeout or 1)
            if base_url and key_variable:
                key_for(key_variable, base_url)

        return validation_message(check)

    def enhance(
        self, prompt, base_url, model, key_variable, style, language, seed, temperature, max_tokens, timeout, retries, images=None
    ):
        endpoint = chat.chat_endpoint(base_url, model, key_for(key_variable, base_url), timeout, retries)
        pictures = [] if images is None else to_pictures(images)
        told = instruction(prompt, style, language, len(pictures))
        progress = host.progress("Enhance Prompt", "pieces")
        answer = chat.complete(endpoint, told, prompt, pictures, temperature, seed, max_tokens, progress)
        return (checked(answer, prompt, style),)
