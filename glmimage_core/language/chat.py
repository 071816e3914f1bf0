"""A chat model behind an OpenAI-compatible endpoint: llama.cpp, vLLM, Ollama, z.ai and others."""

import base64
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import requests
from PIL import Image
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from ..endpoint import SEEDS, BadStatus, Client, Endpoint, Failure, Refused, media_type, parse_json
from ..images import to_png
from ..progress import Progress, no_progress
from ..stated import stated_reason
from .answers import Answer

MAX_BYTES = 4 * 1024 * 1024  # of an answer: a token takes about 300 bytes on the wire, so 8192 tokens fit, and as much again
MAX_SIDE = 1024  # pixels; a picture that is sent then takes 4 MiB at most, at 3 bytes a pixel in base64
# When to try again, and how long to wait, as in OpenAI's own client. It tries again after every status of 500 and above, too.
TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
# Fields that some services refuse, and what the same is called there; a field without another name is left out.
MAY_BE_REFUSED = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "", "temperature": "", "seed": "", "stream": ""}
FIELD_REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
CUT_OFF = {"length", "max_tokens", "model_length"}  # reasons why an answer ends, in services' various words
WITHHELD = {"content_filter", "sensitive", "safety", "refusal", "prohibited_content", "blocklist", "recitation"}
NOT_THE_PROTOCOL = "sent an event that is not of the chat protocol"
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

    A field that the service refuses is left out, or sent under its other name, and the model is asked again, once for each such
    field. progress(pieces so far, max_tokens) is called several times a second, also before anything has arrived; what it raises
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
    client = Client(endpoint, accept=("text/event-stream", "application/json"), max_bytes=MAX_BYTES)
    refused: list[str] = []

    def fetch() -> Iterator[_Piece]:
        finished = False
        response = _post(client, payload, refused)
        whole = media_type(response.headers) == "application/json"  # some services answer so although a stream was asked for
        chunks = client.read(response)
        for event in [parse_json(b"".join(chunks))] if whole else _events(chunks):
            piece = _piece(event, "message" if whole else "delta")
            finished = finished or piece.finish_reason is not None or whole
            yield piece
        if not finished:
            raise Refused("broke off in the middle of its answer")

    pieces: list[_Piece] = []
    reasons: set[str] = set()
    for piece in client.run(fetch, waiting=lambda: progress(min(len(pieces), max_tokens), max_tokens)):
        if piece[:3] != NOTHING[:3]:
            pieces.append(piece)
        reasons.add((piece.finish_reason or "").lower())
    return Answer(
        "".join(piece.text for piece in pieces),
        bool(reasons & CUT_OFF),
        thought=any(piece.thought for piece in pieces),
        withheld=bool(reasons & WITHHELD),
        refusal="".join(piece.refusal for piece in pieces),
        left_out=tuple(refused),
    )


def _post(client: Client, payload: dict[str, Any], refused: list[str]) -> requests.Response:
    """Send the fields of a request, without those that the service refuses, which are added to `refused`. Raises Failure."""
    payload = dict(payload)
    while True:
        body = json.dumps(payload).encode()
        try:
            return client.post("/chat/completions", body, "application/json", seconds_to_retry=_seconds_to_retry)
        except BadStatus as failure:
            name = _refused_field(failure, payload)
            if name is None:
                raise
            refused.append(name)
            value, other = payload.pop(name), MAY_BE_REFUSED[name]
            if other:
                payload[other] = value


def _refused_field(failure: BadStatus, payload: dict[str, Any]) -> str | None:
    """The field of a request that a service names where it refuses the request, the first one named."""
    if failure.status not in FIELD_REFUSED:
        return None
    named = re.findall(r"\w+", failure.reason)
    return next((name for name in named if name in MAY_BE_REFUSED and name in payload), None)


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


class _Piece(NamedTuple):
    """What an event adds to an answer. thought: the model's thoughts; finish_reason: why the answer ends, None if it goes on."""

    text: str = ""
    thought: str = ""
    refusal: str = ""
    finish_reason: str | None = None


NOTHING = _Piece()


def _piece(event: Any, name: str) -> _Piece:
    """What an event says, or a whole answer, whose name for it is another one. Raises Refused."""
    if not isinstance(event, dict):
        raise Refused(NOT_THE_PROTOCOL)
    choices = event.get("choices")
    if event.get("error") or not (choices or event.keys() & {"choices", "usage"}):
        if reason := stated_reason(event):
            raise Refused(f"reported an error: {reason}")
        if event.get("error"):
            raise Refused("reported an error without a reason")
    if not choices and name == "delta":  # such as a count of tokens
        return NOTHING
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise Refused(NOT_THE_PROTOCOL)
    said, finish_reason = choices[0].get(name), choices[0].get("finish_reason")
    if said is None and name == "delta":
        said = {}
    if not isinstance(said, dict) or not isinstance(finish_reason, str | None):
        raise Refused(NOT_THE_PROTOCOL)
    text, thought = _parts(said.get("content"))
    thoughts = [thought, *(said.get(field) for field in ("reasoning_content", "reasoning"))]
    refusal = said.get("refusal")
    return _Piece(
        text,
        "".join(part for part in thoughts if isinstance(part, str)),
        refusal if isinstance(refusal, str) else "",
        finish_reason,
    )


def _parts(content: Any) -> tuple[str, str]:
    """The text and the thoughts of a content: a text, nothing, or a list of parts of several types. Raises Refused."""
    if isinstance(content, str | None):
        return content or "", ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Refused(NOT_THE_PROTOCOL)
    texts, thoughts = [], []
    for part in content:
        text = part.get("text")
        if isinstance(text, str):
            texts.append(text)
        elif part.get("type") in ("thinking", "reasoning"):
            thoughts.append("...")
        elif "text" in part:
            raise Refused(NOT_THE_PROTOCOL)
    return "".join(texts), "".join(thoughts)


def _data_url(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    return f"data:image/png;base64,{base64.b64encode(to_png(small)).decode()}"
