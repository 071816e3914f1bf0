"""A chat model behind an OpenAI-compatible endpoint: llama.cpp, vLLM, Ollama, z.ai and others."""

import base64
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

from PIL import Image
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from ..endpoint import SEEDS, BadStatus, Client, Endpoint, Failure, Refused, error_message, parse_json
from ..images import to_png
from ..progress import Progress, no_progress
from .rewriting import Answer

MAX_BYTES = 4 * 1024 * 1024  # of an answer: a token takes about 300 bytes on the wire, so 8192 tokens fit, and as much again
MAX_SIDE = 1024  # pixels; a picture that is sent then takes 4 MiB at most, at 3 bytes a pixel in base64
# When to try again, and how long to wait, as in OpenAI's own client. It tries again after every status of 500 and above, too.
TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
FIRST_WAIT = 0.5  # seconds before the second try, doubled before each further one
LONGEST_WAIT = 8.0


def chat_endpoint(base_url: str, model: str, *, key: str = "", timeout: float = 120.0, retries: int = 2) -> Endpoint:
    """Where a chat model is. Raises ValueError for a wrong address, key or timeout, and for an empty model."""
    if not model.strip():
        raise ValueError("the name of the model is empty")
    return Endpoint(base_url, model, key=key, timeout=timeout, retries=retries)


def complete(
    endpoint: Endpoint,
    instruction: str,
    request: str,
    *,
    pictures: Sequence[Image.Image] = (),
    temperature: float = 0.7,
    seed: int = 0,
    max_tokens: int = 1024,
    progress: Progress = no_progress,
) -> Answer:
    """Ask a chat model. The pictures are sent in order, each scaled down to MAX_SIDE pixels a side at most.

    progress(pieces so far, max_tokens) is called several times a second, also before anything has arrived; what it raises
    interrupts the request. Raises EndpointError.
    """
    shown = [{"type": "image_url", "image_url": {"url": _data_url(picture)}} for picture in pictures]
    content = [*shown, {"type": "text", "text": request}] if shown else request
    payload = {
        "model": endpoint.model,
        "messages": [{"role": "system", "content": instruction}, {"role": "user", "content": content}],
        "temperature": temperature,
        "seed": seed % SEEDS,
        "max_tokens": max_tokens,
        "stream": True,
    }
    body = json.dumps(payload).encode()
    client = Client(endpoint, accept="text/event-stream", max_bytes=MAX_BYTES)

    def fetch() -> Iterator[tuple[str, str | None]]:
        finished = False
        response = client.post("/chat/completions", body, "application/json", seconds_to_retry=_seconds_to_retry)
        for event in _events(client.read(response)):
            text, finish_reason = _delta(event)
            finished = finished or finish_reason is not None
            yield text, finish_reason
        if not finished:
            raise Refused("broke off in the middle of its answer")

    pieces: list[str] = []
    cut_off = False
    for text, finish_reason in client.run(fetch, waiting=lambda: progress(min(len(pieces), max_tokens), max_tokens)):
        if text:
            pieces.append(text)
        cut_off = cut_off or finish_reason == "length"
    return Answer("".join(pieces), cut_off)


def _seconds_to_retry(failure: Failure, tries: int) -> float | None:
    """Seconds to wait before asking again, or None to give up.

    A chat costs little and changes nothing, so the model is asked again whenever that may help. This includes a connection that
    broke, and the page that a gateway shows while the model starts.
    """
    backoff = min(FIRST_WAIT * 2**tries, LONGEST_WAIT)
    if not isinstance(failure, BadStatus):
        return backoff
    wish = failure.headers.get("x-should-retry")  # of services that know OpenAI's clients
    if wish == "false" or (wish != "true" and failure.status not in TRY_AGAIN and failure.status < 500):
        return None
    try:
        return Retry().parse_retry_after(failure.headers["Retry-After"])
    except (KeyError, InvalidHeader, ValueError, OverflowError):  # none, or neither a number nor a date
        return backoff


def _events(chunks: Iterable[bytes]) -> Iterator[Any]:
    """The JSON values of server-sent events, up to the event [DONE].

    An event consists of the lines that begin with "data:" before an empty line. Other lines are skipped. See
    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """
    data: list[bytes] = []
    for line in _lines(itertools.chain(chunks, [b"\n\n"])):
        if line.startswith(b"data:"):
            data.append(line.removeprefix(b"data:").strip())
        elif not line and data:
            event = b"\n".join(data)
            data.clear()
            if event == b"[DONE]":
                return
            yield parse_json(event)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their line ends. Unlike iter_lines of requests, it does not copy an unfinished line for every chunk."""
    unfinished = bytearray()
    for chunk in chunks:
        unfinished += chunk
        if b"\n" in chunk:
            *lines, unfinished = unfinished.split(b"\n")
            yield from (bytes(line.removesuffix(b"\r")) for line in lines)


def _delta(event: Any) -> tuple[str, str | None]:
    """The text that an event adds to the answer, and the reason why the answer ends, None if it goes on. Raises Refused."""
    if message := error_message(event):
        raise Refused(f"reported an error: {message}")
    try:
        choices = event.get("choices")
        if not choices:  # such as a count of tokens
            return "", None
        choice = choices[0]
        text, finish_reason = (choice.get("delta") or {}).get("content") or "", choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError) as error:
        raise Refused("sent an event that is not of the chat protocol") from error
    if not isinstance(text, str):
        raise Refused("sent an event that is not of the chat protocol")
    return text, finish_reason


def _data_url(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    return f"data:image/png;base64,{base64.b64encode(to_png(small)).decode()}"
