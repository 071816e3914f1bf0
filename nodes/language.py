"""Prompts rewritten by language models into the long captions that GLM-Image was trained on, and pictures described."""

from ..glmimage_core.images import to_pictures
from ..glmimage_core.language import chat
from ..glmimage_core.language.answers import Answer, cleaned, is_refusal, remarks
from ..glmimage_core.language.rewriting import (
    LANGUAGES,
    STYLES,
    description_request,
    instruction,
    rewritten_prompt,
)
from ..glmimage_core.language.vlm import Clip, Question, answer, prepare
from .host import host
from .keys import key_for
from .sockets import CATEGORY, VLM, validation_message
from .widgets import SEED_MAX

PROMPT = (
    "STRING",
    {
        "multiline": True,
        "dynamicPrompts": True,
        "tooltip": "What the picture shows, in few words or many. Text in quotation marks is kept letter by letter.",
    },
)
STYLE = (
    list(STYLES),
    {
        "default": "general",
        "tooltip": "The kind of picture. text-heavy is for posters, menus and slides; the model may then add texts of its own.",
    },
)
IMAGES = (
    "IMAGE",
    {"tooltip": "Reference pictures of an edit, in order, for a model that sees: the first picture, the second and so on."},
)
VLM_INPUT = (VLM, {"tooltip": "From Load GLM-Image VLM."})


def _wording(language: str, seed: str = "Seed of the wording.") -> dict[str, tuple]:
    """The widgets that all nodes of this file have. language, seed: tooltips."""
    return {
        "language": (list(LANGUAGES), {"default": "auto", "tooltip": language}),
        "seed": ("INT", {"default": 0, "min": 0, "max": SEED_MAX, "control_after_generate": True, "tooltip": seed}),
        "temperature": (
            "FLOAT",
            {
                "default": 0.7,
                "min": 0.0,
                "max": 2.0,
                "step": 0.05,
                "tooltip": "Higher values vary the wording more. 0 always takes the most likely word.",
            },
        ),
        "max_tokens": (
            "INT",
            {
                "default": 1024,
                "min": 64,
                "max": 8192,
                "tooltip": "The most that the model may write, including its thoughts. An answer that is cut off there ends "
                "with its last whole sentence.",
            },
        ),
    }


PROMPT_LANGUAGE = "Language of the rewritten prompt. auto is the language of the prompt: Chinese or English."


def _unless_empty(prompt: str | None) -> str | bool:
    """True, or the error message for an empty prompt. A prompt that comes over a link is None and not known yet."""
    return True if prompt is None or prompt.strip() else "the prompt is empty; say what the picture shows"


def ask(wire, question: Question, *, temperature: float, seed: int, max_tokens: int, label: str) -> Answer:
    """Answer a question where the host places the model on a `vlm` wire. label: what the progress is called."""
    with host.placed(wire, question.working_bytes(host.component(wire), max_tokens), "vlm") as vlm:
        progress = host.progress(label, "tokens")
        return answer(vlm, question, temperature=temperature, seed=seed, max_tokens=max_tokens, progress=progress)


class _Enhancer:
    """What the nodes that rewrite a prompt share."""

    CATEGORY = CATEGORY
    FUNCTION = "enhance"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("prompt",)
    OUTPUT_TOOLTIPS = ("The rewritten prompt, for Encode Prompt and Generate Prior.",)

    def result(self, answer: Answer, prompt: str, *, style: str, max_tokens: int) -> tuple[str]:
        """The output of the node. Tells the user if the answer holds no prompt, or only the beginning of one."""
        said = remarks(answer, max_tokens)
        if not (caption := cleaned(answer)) or is_refusal(caption):
            said.append("the prompt is as it was")
        if said:
            host.warn("; ".join(said))
        return (rewritten_prompt(answer, prompt, style),)


class GLMImageEnhancePrompt(_Enhancer):
    TITLE = "GLM-Image Enhance Prompt"
    DESCRIPTION = (
        "Rewrites a prompt with a vision-language model into the long, precise caption that GLM-Image works best with. Texts in "
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
                **_wording(PROMPT_LANGUAGE),
            },
            "optional": {"images": IMAGES},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt):
        return _unless_empty(prompt)

    def enhance(self, vlm, prompt, style, language, seed, temperature, max_tokens, images=None):
        pictures = [] if images is None else to_pictures(images)
        rules = instruction(prompt, style, language, references=len(pictures))
        question = prepare(host.component(vlm), rules, prompt, pictures)
        answer = ask(vlm, question, temperature=temperature, seed=seed, max_tokens=max_tokens, label="Enhance Prompt")
        return self.result(answer, prompt, style=style, max_tokens=max_tokens)


class GLMImageDescribe:
    TITLE = "GLM-Image Describe"
    DESCRIPTION = (
        "Describes pictures, or the frames of a clip, with a vision-language model: as a caption, or as the answer to a question."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm caption", "image to prompt", "describe image", "interrogate", "glmga")
    FUNCTION = "describe"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("description",)
    OUTPUT_TOOLTIPS = ("The model's answer as one paragraph without markup.",)

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
                        "tooltip": "0 if the images are separate pictures. For a clip, its frames per second: the model's "
                        "processor then chooses which frames the model sees.",
                    },
                ),
                "instruction": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "What to describe, or a question. Empty asks for a caption from which the picture could be "
                        "painted again.",
                    },
                ),
                **_wording("Language of the answer. auto is the language of the instruction, or English if it is empty."),
            },
        }

    def describe(self, vlm, images, frame_rate, instruction, language, seed, temperature, max_tokens):
        pictures, clip = to_pictures(images), None
        if frame_rate:
            pictures, clip = [], Clip(pictures, frame_rate)
        request = description_request(instruction, language, pictures=len(images), clip=clip is not None)
        question = prepare(host.component(vlm), "", request, pictures, clip=clip)
        answer = ask(vlm, question, temperature=temperature, seed=seed, max_tokens=max_tokens, label="Describe")
        description = cleaned(answer)
        said = "; ".join(remarks(answer, max_tokens))
        if not description:
            raise ValueError(said)
        if said:
            host.warn(said)
        return (description,)


class GLMImageEnhancePromptAPI(_Enhancer):
    TITLE = "GLM-Image Enhance Prompt (API)"
    DESCRIPTION = (
        "Rewrites a prompt with a chat model behind an OpenAI-compatible address into the long, precise caption that GLM-Image "
        "works best with. The model is a local Ollama, llama.cpp or vLLM, or a service. Texts in quotation marks are kept letter "
        "by letter."
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
                        "tooltip": "Address of the endpoint, including /v1 if it has one. The default is Ollama on this machine.",
                    },
                ),
                "model": ("STRING", {"default": "", "tooltip": "Name of the model at the endpoint."}),
                "key_variable": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Name of the environment variable that holds the key, such as OPENAI_API_KEY; never the key "
                        "itself. Leave it empty if the endpoint needs no key.",
                    },
                ),
                "style": STYLE,
                **_wording(PROMPT_LANGUAGE, seed="Seed of the wording. Some services ignore it."),
                "timeout": (
                    "FLOAT",
                    {
                        "default": 120.0,
                        "min": 1.0,
                        "max": 3600.0,
                        "tooltip": "Seconds for the whole answer, all tries included.",
                    },
                ),
                "retries": (
                    "INT",
                    {
                        "default": 2,
                        "min": 0,
                        "max": 10,
                        "tooltip": "How many more times to ask if the endpoint cannot be reached, is busy or fails.",
                    },
                ),
            },
            "optional": {"images": IMAGES},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt, *, base_url=None, model=None, key_variable=None, timeout=None):
        """Also checks that the key is set and may be sent to that address. A linked value is None and is checked in `enhance`."""
        if (problem := _unless_empty(prompt)) is not True:
            return problem

        def check() -> None:
            chat.chat_endpoint(
                base_url or "http://127.0.0.1",
                "any" if model is None else model,
                timeout=1.0 if timeout is None else timeout,
            )
            if base_url and key_variable:
                key_for(key_variable, base_url)

        return validation_message(check)

    def enhance(
        self, prompt, base_url, model, key_variable, style, language, seed, temperature, max_tokens, timeout, retries, images=None
    ):
        endpoint = chat.chat_endpoint(base_url, model, key=key_for(key_variable, base_url), timeout=timeout, retries=retries)
        pictures = [] if images is None else to_pictures(images)
        answer = chat.complete(
            endpoint,
            instruction(prompt, style, language, references=len(pictures)),
            prompt,
            pictures=pictures,
            temperature=temperature,
            seed=seed,
            max_tokens=max_tokens,
            progress=host.progress("Enhance Prompt", "pieces"),
        )
        return self.result(answer, prompt, style=style, max_tokens=max_tokens)
