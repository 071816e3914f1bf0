"""A chat model behind an OpenAI-compatible endpoint: llama.cpp, vLLM, Ollama, z.ai and others.

The package `openai` speaks the protocol and tries again where that makes sense. What an endpoint sends is not trusted: an answer
has a time and a size, comes as an event stream and uncompressed, and is not fetched from elsewhere.
"""

import base64
import io
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from PIL import Image

if TYPE_CHECKING:
    from openai import OpenAI

MAX_BYTES = 4 * 1024 * 1024  # of an answer as it comes over the wire
MAX_SIDE = 1024  # pixels of a picture that is sent
POLL = 0.1  # seconds between two looks at whether to stop
QUOTED_ERROR = 300  # characters of what an endpoint said


class EndpointError(RuntimeError):
    """What went wrong with an endpoint, in one line without the key."""


@dataclass(frozen=True)
class Endpoint:
    """base_url: up to and with /v1, as others say it. timeout: seconds for a whole answer, all tries included.

    Raises ValueError for an address that is none, or that carries a name or password.
    """

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    retries: int = 2

    def __post_init__(self):
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"{self.base_url!r} is no address; one begins with http:// or https:// and often ends with /v1")
        if address.username or address.password or address.query:
            raise ValueError("the address must carry no name, password or query: a key belongs in an environment variable")
        if not self.model.strip():
            raise ValueError("the name of the model is empty")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}; it must be above 0")


def complete(
    endpoint: Endpoint,
    instruction: str,
    request: str,
    pictures: Sequence[Image.Image] = (),
    temperature: float = 0.7,
    seed: int = 0,
    max_tokens: int = 1024,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """What the model answers. pictures go along in order, made smaller to MAX_SIDE pixels a side at most.

    progress(pieces so far, max_tokens) is called several times a second, also before anything has come; what it raises stops the
    request. Raises EndpointError, and ImportError that says what to install.
    """
    client = _client(endpoint)
    arrived: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()

    def fetch() -> None:
        try:
            for piece in _pieces(client, endpoint, instruction, request, pictures, temperature, seed, max_tokens):
                arrived.put(piece)
            arrived.put(None)
        except Exception as error:  # carried to the caller's thread
            arrived.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    end = time.monotonic() + endpoint.timeout
    pieces: list[str] = []
    try:
        while True:
            progress(min(len(pieces), max_tokens), max_tokens)
            if time.monotonic() > end:
                raise EndpointError(f"{endpoint.base_url} gave no whole answer within {endpoint.timeout:g} s")
            try:
                piece = arrived.get(timeout=POLL)
            except queue.Empty:
                continue
            if isinstance(piece, Exception):
                raise _explained(piece, endpoint) from None
            if piece is None:
                return "".join(pieces)
            pieces.append(piece)
    finally:
        client.close()


def _client(endpoint: Endpoint) -> "OpenAI":
    try:
        import openai
    except ImportError:
        raise ImportError("a chat endpoint needs the package openai: pip install openai") from None
    http_client = openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [_bound]})
    return openai.OpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.key or "none",  # which local servers do not look at
        timeout=endpoint.timeout,
        max_retries=endpoint.retries,
        default_headers={"Accept-Encoding": "identity"},
        http_client=http_client,
    )


class _Refused(Exception):
    """An answer that is not read on."""


def _bound(response) -> None:
    """Let no more than MAX_BYTES of a response be read, and nothing that unpacks to more."""
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise _Refused(f"answered with the encoding {encoding[:40]!r}, though it was asked not to")
    kind = response.headers.get("content-type", "nothing").split(";")[0].strip().lower()
    if response.is_success and kind != "text/event-stream":
        raise _Refused(f"answered with {kind[:80]}, not with an event stream; is this the address of a chat endpoint?")
    http = sys.modules[type(response).__module__.split(".")[0]]  # httpx or its successor, as openai has it

    class Bounded(http.SyncByteStream):
        def __init__(self, stream):
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            left = MAX_BYTES
            for chunk in self.stream:
                left -= len(chunk)
                if left < 0:
                    raise _Refused(f"sent more than {MAX_BYTES} bytes")
                yield chunk

        def close(self) -> None:
            self.stream.close()

    response.stream = Bounded(response.stream)


def _pieces(client: "OpenAI", endpoint, instruction, request, pictures, temperature, seed, max_tokens) -> Iterator[str]:
    shown = [{"type": "image_url", "image_url": {"url": _data_url(picture)}} for picture in pictures]
    content = [*shown, {"type": "text", "text": request}] if shown else request
    stream = client.chat.completions.create(
        model=endpoint.model,
        messages=[{"role": "system", "content": instruction}, {"role": "user", "content": content}],
        temperature=temperature,
        seed=seed % 2**63,  # which is as large as the protocol has them
        max_tokens=max_tokens,
        stream=True,
    )
    ended = False
    for event in stream:
        for choice in event.choices[:1]:
            ended = ended or choice.finish_reason is not None
            if choice.delta.content:
                yield choice.delta.content
    if not ended:
        raise _Refused("broke off in the middle of its answer")


def _data_url(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _explained(error: Exception, endpoint: Endpoint) -> EndpointError:
    """One line about what went wrong, in which the key does not stand even where the endpoint repeats it."""
    import openai

    causes = [error]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    refused = next((cause for cause in causes if isinstance(cause, _Refused)), None)
    if refused is not None:
        said = str(refused)
    elif isinstance(error, openai.APITimeoutError):
        said = f"did not answer within {endpoint.timeout:g} s"
    elif isinstance(error, openai.APIStatusError):
        where = error.response.headers.get("location")
        said = f"sends elsewhere, to {where}" if where else f"answered {error.status_code}: {error.message}"
    else:
        said = f"{type(error).__name__}: {causes[-1]}"
    line = " ".join(f"{endpoint.base_url} {said}".split())
    if endpoint.key:
        line = line.replace(endpoint.key, "***")
    return EndpointError(line[:QUOTED_ERROR])
