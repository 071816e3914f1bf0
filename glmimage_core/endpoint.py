"""An OpenAI-compatible endpoint: how it is spoken to, and what of its answers is let in.

The package `openai` speaks the protocol. What an endpoint sends is not trusted: an answer has a time and a size, is of the kind
that was asked for, comes uncompressed, and is not fetched from elsewhere.
"""

import asyncio
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Piece = TypeVar("Piece")
POLL = 0.1  # seconds between two looks at whether to stop
QUOTED_ERROR = 300  # characters of what an endpoint said
NOT_THERE = {"ConnectError", "ConnectTimeout"}  # of httpx and of its successor
SENT_HEADERS = {"host", "accept", "connection", "content-type", "content-length", "transfer-encoding", "user-agent"}
"""All that is sent beside the key. The package openai has more in mind, such as what OPENAI_CUSTOM_HEADERS holds."""


class EndpointError(RuntimeError):
    """What went wrong with an endpoint, in one line without the key."""


class Refused(Exception):
    """An answer that is not read on; says why."""


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
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}; it must be above 0")


def client_of(endpoint: Endpoint, kind: str, max_bytes: int, retries: int) -> "AsyncOpenAI":
    """A client that reads answers of one content type and of so many bytes at most, and asks again so often by itself.

    Raises ImportError that says what to install.
    """
    try:
        import openai
    except ImportError:
        raise ImportError("an endpoint needs the package openai: pip install openai") from None

    async def send_no_more_than_needed(request) -> None:
        for name in set(request.headers) - SENT_HEADERS:
            del request.headers[name]
        request.headers["Accept-Encoding"] = "identity"
        if endpoint.key:
            request.headers["Authorization"] = f"Bearer {endpoint.key}"

    async def bound(response) -> None:
        _bound(response, kind, max_bytes)

    hooks = {"request": [send_no_more_than_needed], "response": [bound]}
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key="none",  # the hook has it
        timeout=endpoint.timeout,
        max_retries=retries,
        http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks=hooks),
    )


def _bound(response, kind: str, max_bytes: int) -> None:
    """Let no more than max_bytes of a response be read, and nothing that unpacks to more."""
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise Refused(f"answered with the encoding {encoding[:40]!r}, though it was asked not to")
    given = response.headers.get("content-type", "nothing").split(";")[0].strip().lower()
    if response.is_success and given != kind:
        raise Refused(f"answered with {given[:80]}, not with {kind}; is this the right address?")
    http = sys.modules[type(response).__module__.split(".")[0]]  # httpx or its successor, as openai has it

    class Bounded(http.AsyncByteStream):
        def __init__(self, stream):
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = max_bytes
            async for chunk in self.stream:
                left -= len(chunk)
                if left < 0:
                    raise Refused(f"sent more than {max_bytes} bytes")
                yield chunk

        async def aclose(self) -> None:
            await self.stream.aclose()

    response.stream = Bounded(response.stream)


def watched(
    fetch: Callable[[], AsyncIterator[Piece]],
    client: "AsyncOpenAI",
    endpoint: Endpoint,
    waiting: Callable[[], None],
    too_late: str = "gave no whole answer",
) -> Iterator[Piece]:
    """What `fetch` yields with the client, in a thread of its own.

    waiting() is called several times a second; what it raises ends it and closes the connection. Raises EndpointError, also when
    the endpoint's time is over, with `too_late` as what happened.
    """
    arrived: queue.SimpleQueue[tuple[Piece | None, Exception | None, bool]] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        try:
            async with client:
                async for piece in fetch():
                    arrived.put((piece, None, False))
            arrived.put((None, None, True))
        except Exception as error:  # carried to the caller's thread
            arrived.put((None, error, True))

    task = loop.create_task(run())

    def work() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    threading.Thread(target=work, daemon=True).start()
    end = time.monotonic() + endpoint.timeout
    try:
        while True:
            waiting()
            if time.monotonic() > end:
                raise EndpointError(f"{endpoint.base_url} {too_late} within {endpoint.timeout:g} s")
            try:
                piece, error, ended = arrived.get(timeout=POLL)
            except queue.Empty:
                continue
            if error is not None:
                raise explained(error, endpoint) from None
            if ended:
                return
            yield piece
    finally:
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(task.cancel)


def causes_of(error: Exception) -> list[BaseException]:
    """An error and what it came of, the first cause last."""
    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    return causes


def explained(error: Exception, endpoint: Endpoint) -> EndpointError:
    """One line about what went wrong, in which the key does not stand even where the endpoint repeats it."""
    import openai

    causes = causes_of(error)
    refused = next((cause for cause in causes if isinstance(cause, Refused)), None)
    if refused is not None:
        said = str(refused)
    elif isinstance(error, openai.APITimeoutError):
        said = f"did not answer within {endpoint.timeout:g} s"
    elif isinstance(error, openai.APIStatusError):
        where = error.response.headers.get("location")
        said = f"sends elsewhere, to {where}" if where else f"answered {error.status_code}: {error.message}"
    elif NOT_THERE & {type(cause).__name__ for cause in causes}:
        said = f"is not there ({causes[-1]}): start the server, or correct the address, which often ends with /v1"
    else:
        said = f"{type(error).__name__}: {causes[-1]}"
    line = " ".join(f"{endpoint.base_url} {said}".split())
    if endpoint.key:
        line = line.replace(endpoint.key, "***")
    return EndpointError(line[:QUOTED_ERROR])
