"""GLM-Image on another machine, behind an engine that serves it on one or more GPUs.

    SGLang      `sglang serve --model-path zai-org/GLM-Image`
    vLLM-Omni   `vllm serve zai-org/GLM-Image --omni`

Both have /v1/images/generations and /v1/images/edits; read in sglang 0.5.23 and vllm-omni 0.30.0. Neither can be asked about a
picture that it is painting, nor takes an id by which it would know a request again. So one that may have arrived is never sent a
second time.
"""

import asyncio
import base64
import binascii
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image

from ..endpoint import NOT_THERE, Endpoint, Refused, causes_of, client_of, watched
from ..images import to_png
from .geometry import check_size

if TYPE_CHECKING:
    from openai import AsyncOpenAI

ENGINES = ("sglang", "vllm-omni")
MAX_PICTURES = 10  # that an engine paints for one request
NOT_SENT = {*NOT_THERE, "PoolTimeout"}
BEFORE_ANY_WORK = (429, 503)  # what the engines answer so, they have not begun
MAYBE_AT_WORK = (408, 502, 504)  # what something between here and the engine says
VLLM_PIXELS = 2048 * 2048  # more prior tokens than it lets the AR stage write
FORMATS = ("PNG", "JPEG", "WEBP")
WAIT = 1.0  # seconds before the second try, twice as long before each further one


@dataclass(frozen=True)
class Order:
    """What to paint. Raises ValueError for what the engine would refuse or do otherwise."""

    engine: str
    prompt: str
    width: int  # pixels
    height: int
    count: int = 1
    seed: int = 0
    steps: int = 50
    cfg: float = 1.5
    references: tuple[Image.Image, ...] = ()

    def __post_init__(self):
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is not one of {', '.join(ENGINES)}")
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; describe the picture")
        check_size(self.width, self.height)
        if not 1 <= self.count <= MAX_PICTURES:
            raise ValueError(f"{self.count} pictures at once; an engine paints 1 to {MAX_PICTURES}")
        if self.steps < 1 or not self.cfg >= 0:
            raise ValueError(f"steps is {self.steps} and cfg {self.cfg}; at least 1 and 0 are needed")
        if self.engine == "vllm-omni":
            if len(self.references) > 1:
                raise ValueError(f"vLLM-Omni takes one reference, not {len(self.references)}; SGLang takes several")
            if self.width * self.height > VLLM_PIXELS:
                raise ValueError(f"vLLM-Omni plans up to 2048x2048 pixels, not {self.width}x{self.height}")
            if self.steps > 200 or self.cfg > 20:
                raise ValueError(f"vLLM-Omni takes up to 200 steps and a cfg up to 20, not {self.steps} and {self.cfg}")

    @property
    def requests(self) -> list[tuple[int, int]]:
        """(seed, pictures) of each request: vLLM-Omni paints one picture whatever it is asked for."""
        if self.engine == "sglang":
            return [(self.seed % 2**63, self.count)]
        return [((self.seed + number) % 2**63, 1) for number in range(self.count)]


def paint(endpoint: Endpoint, order: Order, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Image.Image]:
    """The pictures, each from seed + its number.

    progress(pictures, all) is called several times a second; what it raises ends the wait (what an engine has begun, it may end).
    Asks again, up to endpoint.retries times, only where nothing can have begun. Raises EndpointError, and ImportError that says
    what to install.
    """
    pixels = order.width * order.height
    # As PNG without compression and in base64, with room for what is said beside it.
    client = client_of(endpoint, "application/json", order.count * (pixels * 3 * 3 // 2 + 2**20), retries=0)
    painted: list[Image.Image] = []

    async def fetch() -> AsyncIterator[Image.Image]:
        for seed, count in order.requests:
            request = partial(_request, client, endpoint, order, seed, count)
            for picture in _pictures(await _asked(request, endpoint.retries), order, count):
                yield picture

    too_late = "gave no picture, and may still be painting,"
    for picture in watched(fetch, client, endpoint, lambda: progress(len(painted), order.count), too_late):
        painted.append(picture)
    progress(len(painted), order.count)
    return painted


async def _request(client: "AsyncOpenAI", endpoint: Endpoint, order: Order, seed: int, count: int):
    common = {
        "prompt": order.prompt,
        "size": f"{order.width}x{order.height}",
        "n": count,
        "response_format": "b64_json",
        "output_format": "png",
        "extra_body": {"seed": seed, "num_inference_steps": order.steps, "guidance_scale": order.cfg},
    }
    if endpoint.model.strip():
        common["model"] = endpoint.model
    if not order.references:
        return await client.images.generate(**common)
    files = [(f"{number}.png", to_png(picture.convert("RGB")), "image/png") for number, picture in enumerate(order.references, 1)]
    return await client.images.edit(image=files[0] if len(files) == 1 else files, **common)


async def _asked(request: Callable[[], Awaitable], retries: int):
    """What a request gives, asked again only where it did not arrive or was not begun."""
    import openai

    tried = 0
    while True:
        try:
            return await request()
        except openai.APIError as error:
            if not _is_not_begun(error) or tried == retries:
                raise
        await asyncio.sleep(WAIT * 2**tried)
        tried += 1


def _is_not_begun(error: Exception) -> bool:
    """Whether no engine can have begun on a request that failed so. Raises Refused where one may be at work."""
    import openai

    causes = causes_of(error)
    if isinstance(error, openai.APIStatusError):
        if error.status_code in MAYBE_AT_WORK:
            raise Refused(f"answered {error.status_code}: it may still be painting, and is not asked again by itself") from error
        # An engine says it in JSON. A gateway that lost the connection says 503 too, in words of its own.
        own = error.response.headers.get("content-type", "").startswith("application/json")
        if error.status_code == 503 and not own:
            raise Refused(
                "answered 503, not in the engine's own words: it may still be painting, and is not asked again"
            ) from error
        return error.status_code in BEFORE_ANY_WORK
    if NOT_SENT & {type(cause).__name__ for cause in causes}:
        return True
    if isinstance(error, openai.APIConnectionError) and not any(isinstance(cause, Refused) for cause in causes):
        raise Refused(f"may still be painting, and is not asked again by itself: {causes[-1]}") from error
    return False


def _pictures(answer, order: Order, count: int) -> list[Image.Image]:
    """The pictures of an answer, of the size asked for. Nothing is unpacked before its size is known."""
    given = [item.b64_json for item in answer.data or ()]
    if len(given) != count or not all(given):
        raise Refused(f"sent {sum(map(bool, given))} pictures, not {count}")
    pictures = []
    for text in given:
        try:
            picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=FORMATS)
            if picture.size != (order.width, order.height):
                raise Refused(f"sent a picture of {picture.size[0]}x{picture.size[1]}, not of {order.width}x{order.height}")
            pictures.append(picture.convert("RGB"))
        except (OSError, binascii.Error, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise Refused(f"sent what is no picture ({type(error).__name__})") from error
    return pictures
