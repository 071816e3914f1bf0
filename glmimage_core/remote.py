"""GLM-Image on another machine, behind an engine that serves it on one or more GPUs.

    SGLang      `sglang serve --model-path zai-org/GLM-Image`
    vLLM-Omni   `vllm serve zai-org/GLM-Image --omni`

Both have /v1/images/generations and /v1/images/edits; read in sglang 0.5.23 and vllm-omni 0.30.0. Neither can be asked about a
picture that it is painting, nor takes an id by which it would know a request again. So one that may have arrived is never sent a
second time.
"""

import base64
import binascii
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from .chat import png
from .endpoint import Endpoint, Refused, causes_of, client_of, watched
from .geometry import check_size

if TYPE_CHECKING:
    from openai import OpenAI

ENGINES = ("sglang", "vllm-omni")
MAX_PICTURES = 10  # that an engine paints for one request
NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}  # of httpx and of its successor
BEFORE_ANY_WORK = (429, 503)  # what the engines answer so, they have not begun
MAYBE_AT_WORK = (408, 502, 504)  # what something between here and the engine says
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
        if self.engine == "vllm-omni":
            if len(self.references) > 1:
                raise ValueError(f"vLLM-Omni takes one reference, not {len(self.references)}; SGLang takes several")
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

    def fetch() -> Iterator[Image.Image]:
        for seed, count in order.requests:
            answer = _asked(lambda seed=seed, count=count: _request(client, endpoint, order, seed, count), endpoint.retries)
            yield from _pictures(answer, order, count)

    for picture in watched(fetch, client, endpoint, lambda: progress(len(painted), order.count)):
        painted.append(picture)
    progress(len(painted), order.count)
    return painted


def _request(client: "OpenAI", endpoint: Endpoint, order: Order, seed: int, count: int):
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
        return client.images.generate(**common)
    files = [(f"{number}.png", png(picture.convert("RGB")), "image/png") for number, picture in enumerate(order.references, 1)]
    return client.images.edit(image=files[0] if len(files) == 1 else files, **common)


def _asked(request: Callable, retries: int):
    """What a request gives, asked again only where it did not arrive or was not begun."""
    import openai

    tried = 0
    while True:
        try:
            return request()
        except openai.APIError as error:
            if not _is_not_begun(error) or tried == retries:
                raise
        time.sleep(WAIT * 2**tried)
        tried += 1


def _is_not_begun(error: Exception) -> bool:
    """Whether no engine can have begun on a request that failed so. Raises Refused where one may be at work."""
    import openai

    causes = causes_of(error)
    if isinstance(error, openai.APIStatusError):
        if error.status_code in MAYBE_AT_WORK:
            raise Refused(f"answered {error.status_code}: it may still be painting, and is not asked again by itself") from error
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
