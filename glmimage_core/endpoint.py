"""HTTP client for OpenAI-compatible endpoints, with limits on the type, the size and the duration of a response.

The library requests sends and receives. This module adds what requests does not have: one deadline for all tries together, an
interrupt that closes the connection, and a distrust of what an endpoint sends. A response must have the content type that was
asked for, must not be compressed, must not redirect, and may be of a limited size only.
"""

import io
import itertools
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from . import json_text

Item = TypeVar("Item")
POLL = 0.1  # seconds between two calls of `waiting`: an interrupt is felt as immediate
CHUNK_BYTES = 64 * 1024  # read at once; bounds the memory that is used beyond the limit of a response
ERROR_BYTES = 4096  # read of an error response, of which ERROR_CHARACTERS are shown at most
ERROR_CHARACTERS = 300  # of an error message: about four lines on a node
SEEDS = 2**63  # number of seeds in the protocol: 0 and the positive integers of 64 bits with a sign
_END = object()


class EndpointError(RuntimeError):
    """What went wrong with an endpoint, in one line that never contains the key."""


class Failure(Exception):
    """What an endpoint did wrong: a sentence without its subject, which is the endpoint's address."""


class NotSent(Failure):
    """No connection could be made, so the endpoint has received nothing of the request's body."""


class NoAnswer(Failure):
    """The connection broke after the endpoint had received a part of the request's body, or all of it."""


class Refused(Failure):
    """The endpoint sent something that is not accepted."""


class BadStatus(Failure):
    """The endpoint answered with a status other than 2xx."""

    def __init__(self, message: str, response: requests.Response):
        super().__init__(message)
        self.status, self.headers = response.status_code, response.headers


class Interrupted(Exception):
    """Ends the background thread after an interrupt; nobody sees it."""


@dataclass(frozen=True)
class Endpoint:
    """base_url: including /v1, without the path of a method. timeout: seconds for a whole answer, all tries included.

    Raises ValueError for an address that is not http or https or contains a name, a password or a query, for a key that cannot
    stand in an HTTP header, and for a timeout of 0 or less.
    """

    base_url: str
    model: str
    _: KW_ONLY
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    retries: int = 2

    def __post_init__(self):
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(
                f"{self.base_url!r} is not a web address; it must begin with http:// or https://, and often ends with /v1"
            )
        if address.username or address.password or address.query:
            raise ValueError(
                "the address must not contain a name, a password or a query; put the key into an environment variable"
            )
        if not (self.key.isascii() and self.key.isprintable()):
            raise ValueError("the key contains a line break or a character that is not ASCII; correct its environment variable")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}; it must be above 0")


class Client:
    """Sends requests to an endpoint in a background thread, which can be interrupted at any time.

    accept: the content type that a response must have. max_bytes: size of a response's body on the wire.
    """

    def __init__(self, endpoint: Endpoint, *, accept: str, max_bytes: int):
        self.endpoint = endpoint
        self._accept = accept
        self._max_bytes = max_bytes
        self._deadline = time.monotonic() + endpoint.timeout
        self._adapter = _InterruptibleAdapter()

    def run(
        self,
        fetch: Callable[[], Iterator[Item]],
        *,
        waiting: Callable[[], None],
        too_late: str = "gave no whole answer",
    ) -> Iterator[Item]:
        """Yield what `fetch` yields in the background thread; `fetch` calls `post` and `read`.

        waiting() is called every POLL seconds; what it raises closes the connection. Raises EndpointError for a Failure, and when
        the endpoint's time is over: `too_late` then says what the endpoint failed to do.
        """
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def work() -> None:
            try:
                for item in fetch():
                    arrived.put(item)
                arrived.put(_END)
            except Exception as error:  # raised again in the caller's thread
                arrived.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                waiting()
                if time.monotonic() > self._deadline:
                    raise EndpointError(f"{self.endpoint.base_url} {too_late} within {self.endpoint.timeout:g} s")
                try:
                    item = arrived.get(timeout=POLL)
                except queue.Empty:
                    continue
                if item is _END:
                    return
                if isinstance(item, Failure):
                    raise EndpointError(self._one_line(item)) from None
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self._adapter.interrupt()

    def post(
        self, path: str, body: bytes, content_type: str, *, seconds_to_retry: Callable[[Failure, int], float | None]
    ) -> requests.Response:
        """Send a request, up to 1 + endpoint.retries times, and return the response when its headers have arrived.

        seconds_to_retry(failure, number of tries before) says how long to wait before the next try, or None to give up. Raises
        Failure after the last try, and if the next one would come after the endpoint's time is over.
        """
        for tries in itertools.count():
            try:
                return self._post_once(path, body, content_type)
            except Failure as failure:
                wait = seconds_to_retry(failure, tries)
                if tries == self.endpoint.retries or wait is None or wait > self._deadline - time.monotonic():
                    raise
            if self._adapter.interrupted.wait(wait):
                raise Interrupted

    def _post_once(self, path: str, body: bytes, content_type: str) -> requests.Response:
        file = io.BytesIO(body)  # whose position tells whether anything was sent
        # No header beyond these but Host, Content-Length and User-Agent.
        headers = {
            "Accept": self._accept,
            "Accept-Encoding": "identity",
            "Connection": "close",
            "Content-Type": content_type,
        }
        # A new session for each try keeps no cookies, and no connection that the endpoint may have closed meanwhile.
        with requests.Session() as session:
            session.mount("http://", self._adapter)
            session.mount("https://", self._adapter)
            try:
                response = session.post(
                    self.endpoint.base_url.rstrip("/") + path,
                    data=file,
                    headers=headers,
                    auth=self._authorize,
                    stream=True,
                    allow_redirects=False,
                    # Reading has no timeout of its own: `run` closes the connection when the time for all tries is over.
                    timeout=(self.endpoint.timeout, None),
                )
            except (OSError, HTTPError) as error:  # all of requests' errors, and those of urllib3 that it lets through
                cause = _first_cause(error)
                if file.tell():
                    raise NoAnswer(f"broke the connection before it answered ({cause})") from error
                raise NotSent(
                    f"could not be reached ({cause}): start the server, or correct the address, which often ends with /v1"
                ) from error
        try:
            self._check(response)
        except Failure:
            response.close()
            raise
        return response

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the key into the request. That there is an `auth` at all keeps requests from sending a password of ~/.netrc.

        A session reads more of the environment: its proxies, without which some networks have no way out, and the file of a
        company's certificates. The name and password of a proxy go to the proxy.
        """
        if self.endpoint.key:
            request.headers["Authorization"] = f"Bearer {self.endpoint.key}"
        return request

    def _check(self, response: requests.Response) -> None:
        """Raise Failure for a response that is not accepted because of its status or its headers."""
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise Refused(f"answered with the encoding {encoding[:40]!r}, which was not asked for")
        if response.is_redirect:
            raise BadStatus(f"redirects to {response.headers['Location']}, which is not followed", response)
        if not 200 <= response.status_code < 300:
            raise BadStatus(f"answered {response.status_code}: {_error_body(response)}", response)
        if (given := media_type(response.headers)) != self._accept:
            raise Refused(f"answered with {given[:80]}, not with {self._accept}; is the address right?")

    def read(self, response: requests.Response) -> Iterator[bytes]:
        """Yield the body of a response as it arrives. Raises Refused if it exceeds max_bytes, and NoAnswer if it breaks off."""
        left = self._max_bytes
        try:
            # Not by response.iter_content, which may wait until a chunk is full, and decompresses.
            while chunk := response.raw.read1(CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise Refused(f"sent more than {self._max_bytes} bytes")
                yield chunk
        except (OSError, HTTPError) as error:
            raise NoAnswer(f"broke the connection in the middle of its answer ({_first_cause(error)})") from error
        finally:
            response.close()

    def _one_line(self, failure: Failure) -> str:
        line = f"{self.endpoint.base_url} {failure}"
        if self.endpoint.key:
            line = line.replace(self.endpoint.key, "***")  # an endpoint may repeat it
        return " ".join(line.split())[:ERROR_CHARACTERS]


class _InterruptibleAdapter(HTTPAdapter):
    """One connection at a time, which `interrupt`, called from another thread, closes for good.

    A thread that waits for an endpoint wakes up only if its socket is shut down. requests keeps that socket to itself, so this
    adapter takes a second handle on it as soon as it is connected: before TLS, and before anything is sent.
    """

    def __init__(self):
        super().__init__()
        self.interrupted = threading.Event()
        self._lock = threading.Lock()
        self._connected: socket.socket | None = None

    def get_connection_with_tls_context(self, *args, **kwargs):
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        hold = self._hold

        class HeldConnection(pool.ConnectionCls):
            # The method by which urllib3's own SOCKS connections put in another socket. `connect` would come after TLS.
            def _new_conn(self) -> socket.socket:
                connected = super()._new_conn()
                hold(connected)
                return connected

        pool.ConnectionCls = HeldConnection
        return pool

    def _hold(self, connected: socket.socket) -> None:
        with self._lock:
            if self.interrupted.is_set():
                connected.close()
                raise Interrupted
            self._hang_up()
            self._connected = connected.dup()

    def interrupt(self) -> None:
        with self._lock:
            self.interrupted.set()
            self._hang_up()

    def _hang_up(self) -> None:
        if self._connected is not None:
            with suppress(OSError):  # the endpoint may have closed the connection
                self._connected.shutdown(socket.SHUT_RDWR)
            self._connected.close()
            self._connected = None


def parse_json(text: bytes | bytearray) -> Any:
    """The value of JSON text. Raises Refused for other text."""
    try:
        return json_text.parse_json(text)
    except ValueError as error:
        raise Refused(f"sent what is not JSON ({error})") from error


def media_type(headers: Mapping[str, str]) -> str:
    """The content type in a response's headers without its parameters, in lower case."""
    return headers.get("Content-Type", "nothing").split(";")[0].strip().lower()


def error_message(answer: Any) -> str | None:
    """The message of an error in the form that the protocol gives it, or None."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error) if error else None


def _error_body(response: requests.Response) -> str:
    """The message in an error response, or else the beginning of its body."""
    try:
        body = response.raw.read(ERROR_BYTES)
    except (OSError, HTTPError) as error:
        return f"({_first_cause(error)})"
    with suppress(Refused):
        if message := error_message(parse_json(body)):
            return message
    return body.decode("utf-8", "replace")


def _first_cause(error: BaseException) -> BaseException:
    """What an exception of requests goes back to: the operating system's words are clearer than those around them."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error
