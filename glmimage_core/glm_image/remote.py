"""GLM-Image on another machine, behind an engine that serves it on one or more GPUs, or at its makers' service.

    SGLang      `sglang serve --model-path zai-org/GLM-Image`
    vLLM-Omni   `vllm serve zai-org/GLM-Image --omni`
    z.ai        https://api.z.ai/api/paas/v4

The first two have /v1/images/generations and /v1/images/edits; written after the source of sglang 0.5.23 and vllm-omni 0.30.0.
z.ai has generations alone, after its API reference; it answers with the address of a picture, which is fetched without a key, and
from hosts only that the caller allows. No engine can say how far a picture is, and none recognises a request that it has seen
before. So a request that may have arrived is never sent again.
"""

import base64
import binascii
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from urllib3.filepost import encode_multipart_formdata

from ..endpoint import (
    SEEDS,
    BadStatus,
    Client,
    Endpoint,
    Failure,
    NoAnswer,
    NotSent,
    Refused,
    is_loopback,
    media_type,
    parse_json,
)
from ..images import to_png
from ..progress import Progress, no_progress
from ..stated import stated_reason
from .geometry import check_size

ENGINES = ("sglang", "vllm-omni", "z.ai")
MAX_PICTURES = 10  # of one request, in both engines
# Limits of vLLM-Omni's own checks. More pixels need more prior tokens than its AR stage may write.
VLLM_PIXELS = 2048 * 2048
VLLM_STEPS = 200
VLLM_CFG = 20.0
ZAI_MODEL = "glm-image"
ZAI_SIDES = (1024, 2048)  # pixels
ZAI_PIXELS = 2**22
# An engine that is too busy says so before it begins.
TOO_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
# What a gateway says when it has lost sight of an engine, which may be at work.
GATEWAY_GAVE_UP = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)
FIRST_WAIT = 1.0  # seconds before the second try, doubled before each further one
FORMATS = ("PNG", "JPEG", "WEBP")
PICTURE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/jpg", "application/octet-stream", "binary/octet-stream")
ADDRESS_CHARACTERS = 2000  # of a picture's address: signed ones are long
PIXEL_BYTES = 4.5  # of a picture on the wire: as PNG without compression 3, in base64 4, and some room
ANSWER_BYTES = 2**20  # of what an engine says beside each picture


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to paint. Raises ValueError for what the engine would refuse or would do otherwise.

    width, height: pixels, multiples of 32. count: pictures, of which picture i has seed + i; z.ai takes no seed, steps and cfg.
    references: of an edit, in order. negative: what the picture should not show.
    """

    engine: str
    prompt: str
    width: int
    height: int
    count: int = 1
    seed: int = 0
    steps: int = 50
    cfg: float = 1.5
    references: tuple[Image.Image, ...] = ()
    negative: str = ""

    def __post_init__(self):
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is not one of {', '.join(ENGINES)}")
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; describe the picture")
        check_size(self.width, self.height)
        if not 1 <= self.count <= MAX_PICTURES:
            raise ValueError(f"{self.count} pictures at once; an engine paints 1 to {MAX_PICTURES}")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if not self.cfg >= 0:
            raise ValueError(f"cfg is {self.cfg}; it must be at least 0")
        if self.negative.strip() and self.engine != "vllm-omni":
            raise ValueError(f"{self.engine} takes no negative prompt; leave it empty, or use vllm-omni")
        if self.engine == "z.ai":
            if self.references:
                raise ValueError("z.ai paints, but edits no pictures; SGLang and vLLM-Omni do")
            least, most = ZAI_SIDES
            sides = (self.width, self.height)
            if min(sides) < least or max(sides) > most or self.width * self.height > ZAI_PIXELS:
                raise ValueError(
                    f"z.ai paints {least} to {most} pixels a side, not {self.width}x{self.height}; use 1280x1280 or 1568x1056"
                )
        if self.engine == "vllm-omni":
            if len(self.references) > 1:
                raise ValueError(f"vLLM-Omni takes one reference, not {len(self.references)}; SGLang takes several")
            if self.width * self.height > VLLM_PIXELS:
                raise ValueError(f"vLLM-Omni plans up to 2048x2048 pixels, not {self.width}x{self.height}")
            if self.steps > VLLM_STEPS or self.cfg > VLLM_CFG:
                raise ValueError(
                    f"vLLM-Omni takes up to {VLLM_STEPS} steps and a cfg up to {VLLM_CFG:g}, not {self.steps} and {self.cfg}"
                )

    @property
    def requests(self) -> list[tuple[int, int]]:
        """(seed, pictures) of each request. vLLM-Omni and z.ai paint one picture a request."""
        if self.engine == "sglang":
            return [(self.seed % SEEDS, self.count)]
        return [((self.seed + number) % SEEDS, 1) for number in range(self.count)]


def paint(
    endpoint: Endpoint, order: Order, *, picture_hosts: Sequence[str] = (), progress: Progress = no_progress
) -> list[Image.Image]:
    """The pictures of an order.

    picture_hosts: host names from which a picture may be fetched whose address an engine answers; ".host" is all below one.
    progress(pictures so far, all) is called several times a second. What it raises closes the connection, but an engine may
    finish what it has begun. A request is sent again, up to endpoint.retries times, only if no engine can have begun on it.
    Raises EndpointError.
    """
    picture_bytes = int(order.width * order.height * PIXEL_BYTES) + ANSWER_BYTES
    client = Client(endpoint, accept=("application/json",), max_bytes=order.count * picture_bytes)
    painted: list[Image.Image] = []

    def fetch() -> Iterator[Image.Image]:
        for seed, count in order.requests:
            for file in _files(_ask(client, order, seed=seed, count=count), count):
                yield _opened(file if isinstance(file, bytes) else _fetched(client, file, picture_hosts), order)

    for picture in client.run(
        fetch,
        waiting=lambda: progress(len(painted), order.count),
        too_late="gave no picture, and may still be painting,",
    ):
        painted.append(picture)
    progress(len(painted), order.count)
    return painted


def _ask(client: Client, order: Order, *, seed: int, count: int) -> Any:
    """The engine's JSON answer to one request. Raises Failure, whose message says if the engine may be at work."""
    path, body, content_type = _request(client.endpoint.model, order, seed=seed, count=count)
    try:
        response = client.post(path, body, content_type, seconds_to_retry=_seconds_to_retry)
        return parse_json(b"".join(client.read(response)))
    except Failure as failure:
        if _may_be_at_work(failure):
            raise Refused(f"may still be painting, so the request is not sent again: it {failure}") from failure
        raise


def _request(model: str, order: Order, *, seed: int, count: int) -> tuple[str, bytes, str]:
    """Path, body and content type of a request: JSON, or a form if there are references."""
    if order.engine == "z.ai":
        fields = {
            "model": model.strip() or ZAI_MODEL,
            "prompt": order.prompt,
            "size": f"{order.width}x{order.height}",
            "quality": "hd",
        }
        return "/images/generations", json.dumps(fields).encode(), "application/json"
    fields = {
        "prompt": order.prompt,
        "size": f"{order.width}x{order.height}",
        "n": count,
        "response_format": "b64_json",
        "output_format": "png",
        "seed": seed,
        "num_inference_steps": order.steps,
        "guidance_scale": order.cfg,
    }
    if model.strip():
        fields["model"] = model
    if order.negative.strip():
        fields["negative_prompt"] = order.negative
    if not order.references:
        return "/images/generations", json.dumps(fields).encode(), "application/json"
    name = "image" if len(order.references) == 1 else "image[]"
    files = [
        (name, (f"{number}.png", to_png(picture.convert("RGB")), "image/png"))
        for number, picture in enumerate(order.references, 1)
    ]
    texts = [(field, str(value)) for field, value in fields.items()]
    return "/images/edits", *encode_multipart_formdata([*texts, *files])


def _may_be_at_work(failure: Failure) -> bool:
    """Whether an engine may be painting although the request has failed."""
    if not isinstance(failure, BadStatus):
        return isinstance(failure, NoAnswer)
    if failure.status == HTTPStatus.SERVICE_UNAVAILABLE:
        # An engine says it in JSON. A gateway that has lost the connection says 503 too, but in words of its own.
        return media_type(failure.headers) != "application/json"
    return failure.status in GATEWAY_GAVE_UP


def _seconds_to_retry(failure: Failure, tries: int) -> float | None:
    """Seconds to wait before sending a request again, or None if it must not be sent again or if that would not help."""
    too_busy = isinstance(failure, BadStatus) and failure.status in TOO_BUSY and not _may_be_at_work(failure)
    return FIRST_WAIT * 2**tries if too_busy or isinstance(failure, NotSent) else None


def _files(answer: Any, count: int) -> list[bytes | str]:
    """The pictures of an answer as files, or as the addresses where they are. Raises Refused."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        if reason := stated_reason(answer):
            raise Refused(f"reported an error: {reason}")
        raise Refused("sent an answer that is not of the images protocol")
    if not all(isinstance(item, dict) for item in data):
        raise Refused("sent an answer that is not of the images protocol")
    found = [item.get("b64_json") or item.get("url") for item in data]
    found = [text for text in found if text]
    if len(found) != count:
        reason = stated_reason(answer)
        raise Refused(f"sent {len(found)} pictures, not {count}" + (f": {reason}" if reason else ""))
    return [_file(text) for text in found]


def _file(text: Any) -> bytes | str:
    """The bytes that a text in base64 stands for, of any alphabet and with or without padding, or an address. Raises Refused."""
    if not isinstance(text, str):
        raise Refused(f"sent what is not a picture ({type(text).__name__})")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,20}://", text):
        return text
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    text = re.sub(r"\s+", "", text).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"sent what is not a picture ({type(error).__name__})") from error


def _fetched(client: Client, address: str, hosts: Sequence[str]) -> bytes:
    """The picture at an address that an engine answered. Raises Failure."""
    try:
        parts = urlsplit(address)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        host, port = "", 0
    if not host or port == 0 or len(address) > ADDRESS_CHARACTERS or parts.username is not None:
        raise Refused(f"sent an address in place of a picture that is none: {address[:80]}")
    if not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))):
        raise Refused(f"sent the address of a picture that is not of https://: {address[:80]}")
    if not any(host == allowed or (allowed.startswith(".") and host.endswith(allowed)) for allowed in hosts):
        raise Refused(
            f"sent the address of its picture, and nothing may be fetched from {host[:80]}; allow that host in the environment "
            f"variable GLM_IMAGE_PICTURE_HOSTS; the picture: {address}"
        )
    try:
        return b"".join(client.read(client.get(address, PICTURE_TYPES)))
    except Failure as failure:
        raise Refused(f"sent the address of its picture, but {host[:80]} {failure}") from failure


def _opened(file: bytes, order: Order) -> Image.Image:
    """A picture of the size asked for. Nothing is unpacked before its size is known. Raises Refused."""
    try:
        picture = Image.open(io.BytesIO(file), formats=FORMATS)
        if picture.size != (order.width, order.height):
            raise Refused(f"sent a picture of {picture.size[0]}x{picture.size[1]}, not of {order.width}x{order.height}")
        return picture.convert("RGB")
    except (OSError, TypeError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refused(f"sent what is not a picture ({type(error).__name__})") from error
