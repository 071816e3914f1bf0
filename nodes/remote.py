"""GLM-Image on another machine."""

import torch

from ..glmimage_core.endpoint import Endpoint
from ..glmimage_core.glm_image import remote
from ..glmimage_core.glm_image.geometry import MIN_SIDE, check_size
from ..glmimage_core.images import from_picture, to_pictures
from .host import host
from .keys import key_for
from .sockets import CATEGORY, validation_message
from .widgets import STEPS, seed_input, side_input


class GLMImageRemote:
    TITLE = "GLM-Image Remote"
    DESCRIPTION = (
        "Has GLM-Image paint or edit on another machine, behind SGLang or vLLM-Omni. What may have arrived there is never sent "
        "twice."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("glm server", "sglang", "vllm omni", "glm api")
    FUNCTION = "paint"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The images [batch, height, width, 3], 0 to 1.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "dynamicPrompts": True,
                        "tooltip": "What the picture shows, or what an edit changes. Put text to be drawn in quotation marks.",
                    },
                ),
                "engine": (
                    list(remote.ENGINES),
                    {"default": "sglang", "tooltip": "What serves the model there; the two take their requests differently."},
                ),
                "base_url": (
                    "STRING",
                    {
                        "default": "http://127.0.0.1:30000/v1",
                        "tooltip": "Address of the engine with its /v1. The default is SGLang's on this machine.",
                    },
                ),
                "model": ("STRING", {"default": "", "tooltip": "Name of the model there. Empty is whatever is served."}),
                "key_variable": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Name of the environment variable that holds the key, never the key itself. Empty where no "
                        "key is needed.",
                    },
                ),
                "width": side_input("Width"),
                "height": side_input("Height"),
                "batch_size": (
                    "INT",
                    {"default": 1, "min": 1, "max": remote.MAX_PICTURES, "tooltip": "How many pictures to paint."},
                ),
                "seed": seed_input("plan and noise"),
                "steps": STEPS,
                "cfg": (
                    "FLOAT",
                    {
                        "default": 1.5,
                        "min": 0.0,
                        "max": 20.0,
                        "step": 0.1,
                        "tooltip": "Guidance: how far to steer to the prompt.",
                    },
                ),
                "timeout": (
                    "FLOAT",
                    {
                        "default": 1800.0,
                        "min": 1.0,
                        "max": 86400.0,
                        "tooltip": "Seconds to wait for all pictures, the engine's queue included.",
                    },
                ),
                "retries": (
                    "INT",
                    {
                        "default": 3,
                        "min": 0,
                        "max": 10,
                        "tooltip": "How often to try again where the engine is not there or too busy to begin.",
                    },
                ),
            },
            "optional": {
                "images": ("IMAGE", {"tooltip": "References of an edit, in order. vLLM-Omni takes one."}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt, engine, base_url, key_variable, width, height, batch_size=1, steps=50, cfg=1.5):
        """Also whether the engine takes such a request and the key may be sent there. What comes over a link is None."""

        def check() -> None:
            given = {"engine": engine, "width": width, "height": height, "count": batch_size, "steps": steps, "cfg": cfg}
            usual = {"engine": remote.ENGINES[0], "width": MIN_SIDE, "height": MIN_SIDE, "count": 1, "steps": 1, "cfg": 1.0}
            known = {name: usual[name] if value is None else value for name, value in given.items()}
            remote.Order(prompt="any" if prompt is None else prompt, **known)
            if base_url is not None:
                Endpoint(base_url, "")
                key_for(key_variable or "", base_url)

        return validation_message(check)

    def paint(
        self,
        prompt,
        engine,
        base_url,
        model,
        key_variable,
        width,
        height,
        batch_size,
        seed,
        steps,
        cfg,
        timeout,
        retries,
        images=None,
    ):
        check_size(width, height)
        references = () if images is None else tuple(to_pictures(images))
        order = remote.Order(engine, prompt, width, height, batch_size, seed, steps, cfg, references)
        endpoint = Endpoint(base_url, model, key_for(key_variable, base_url), timeout, retries)
        pictures = remote.paint(endpoint, order, host.progress("Remote"))
        return (torch.cat([from_picture(picture) for picture in pictures]),)
