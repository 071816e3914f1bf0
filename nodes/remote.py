"""GLM-Image on another machine."""

import torch

from ..glmimage_core.endpoint import Endpoint
from ..glmimage_core.glm_image import remote
from ..glmimage_core.images import from_picture, to_pictures
from .host import host
from .keys import key_for, picture_hosts
from .sockets import CATEGORY, validation_message
from .widgets import STEPS, seed_input, side_input


class GLMImageRemote:
    TITLE = "GLM-Image Remote"
    DESCRIPTION = (
        "Paints or edits with GLM-Image on another machine, behind SGLang or vLLM-Omni, or at z.ai. A request that may have "
        "arrived there is never sent twice."
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
                        "tooltip": "What the picture shows, or what an edit changes. Put text that the picture should contain in "
                        "quotation marks.",
                    },
                ),
                "engine": (
                    list(remote.ENGINES),
                    {
                        "default": "sglang",
                        "tooltip": "The engine that serves the model. Each takes other requests. z.ai is the makers' service: "
                        "it takes no references, seed, steps and cfg.",
                    },
                ),
                "base_url": (
                    "STRING",
                    {
                        "default": "http://127.0.0.1:30000/v1",
                        "tooltip": "Address of the engine, including /v1. The default is SGLang on this machine; z.ai is "
                        "https://api.z.ai/api/paas/v4.",
                    },
                ),
                "model": (
                    "STRING",
                    {"default": "", "tooltip": "Name of the model at the engine. Empty takes the model that the engine serves."},
                ),
                "key_variable": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Name of the environment variable that holds the key, never the key itself. Leave it "
                        "empty if the engine needs no key.",
                    },
                ),
                "width": side_input("Width"),
                "height": side_input("Height"),
                "batch_size": (
                    "INT",
                    {"default": 1, "min": 1, "max": remote.MAX_PICTURES, "tooltip": "Number of pictures."},
                ),
                "seed": seed_input("prior tokens and noise"),
                "steps": STEPS,
                "cfg": (
                    "FLOAT",
                    {
                        "default": 1.5,
                        "min": 0.0,
                        "max": 20.0,
                        "step": 0.1,
                        "tooltip": "Guidance: how closely to follow the prompt.",
                    },
                ),
                "timeout": (
                    "FLOAT",
                    {
                        "default": 1800.0,
                        "min": 1.0,
                        "max": 86400.0,
                        "tooltip": "Seconds to wait for all pictures, including the time in the engine's queue.",
                    },
                ),
                "retries": (
                    "INT",
                    {
                        "default": 3,
                        "min": 0,
                        "max": 10,
                        "tooltip": "How many more times to try if the engine cannot be reached or is too busy to begin.",
                    },
                ),
            },
            "optional": {
                "images": ("IMAGE", {"tooltip": "References of an edit, in order. vLLM-Omni takes one, z.ai none."}),
                "negative_prompt": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "What the picture should not show. Only vLLM-Omni takes it; leave it empty for other engines.",
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        prompt,
        *,
        engine=None,
        base_url=None,
        key_variable=None,
        width=None,
        height=None,
        batch_size=None,
        steps=None,
        cfg=None,
        negative_prompt=None,
    ):
        """Also checks that the engine takes such an order and that the key may be sent there.

        A linked value is None. A value that no engine refuses stands in for it, so that it is no reason to refuse the others.
        """
        linked_side = remote.ZAI_SIDES[0] if engine == "z.ai" else None

        def known(name, value):
            _, options = cls.INPUT_TYPES()["required"][name]
            return options.get("min", options.get("default")) if value is None else value

        def check() -> None:
            remote.Order(
                prompt="any" if prompt is None else prompt,
                engine=known("engine", engine),
                width=known("width", width if width is not None else linked_side),
                height=known("height", height if height is not None else linked_side),
                count=known("batch_size", batch_size),
                steps=known("steps", steps),
                cfg=known("cfg", cfg),
                negative=negative_prompt or "",
            )
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
        negative_prompt="",
    ):
        order = remote.Order(
            engine=engine,
            prompt=prompt,
            width=width,
            height=height,
            count=batch_size,
            seed=seed,
            steps=steps,
            cfg=cfg,
            references=() if images is None else tuple(to_pictures(images)),
            negative=negative_prompt,
        )
        endpoint = Endpoint(base_url, model, key=key_for(key_variable, base_url), timeout=timeout, retries=retries)
        pictures = remote.paint(endpoint, order, picture_hosts=picture_hosts(), progress=host.progress("Remote"))
        return (torch.cat([from_picture(picture) for picture in pictures]),)
