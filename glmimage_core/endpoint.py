"""HTTP client for OpenAI-compatible endpoints, with limits on the type, the size and the duration of a response.

The library requests sends and receives. This module adds what requests does not have: one deadline for all tries together, an
interrupt that closes the connection, and a distrust of what an endpoint sends. A response must have the content type that was
asked for, must not be compressed, must not redirect, and may be of a limited size only.
"""

import io
import ipaddress
import itertools
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from . import json_text
from .stated import stated_reason, visible, without_secret

Item = TypeVar("Item")
POLL = 0.1  # seconds between two calls of `waiting`: an interrupt is felt as immediate
CHUNK_BYTES = 64 * 1024  # read at once; bounds the memory that is used beyond the limit of a response
ERROR_BYTES = 16 * 1024  # read of an error response, of which ERROR_CHARACTERS are shown at most
ERROR_CHARACTERS = 300  # of an error message: about four lines on a node
ADDRESS_CHARACTERS = 120  # of an address in a message
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
    """The endpoint answered with a status other than 2xx. reason: what it says about it."""

    def __init__(self, message: str, response: requests.Response, *, reason: str = ""):
        super().__init__(message)
        self.status, self.headers, self.reason = response.status_code, response.headers, reason


class Interrupted(Exception):
    """Ends the background thread after an interrupt; nobody sees it."""


@dataclass(frozen=True)
class Endpoint:
    """base_url: including /v1, without the path of a method. timeout: seconds for a whole answer, all tries included.

    Raises ValueError for an address that `split_address` refuses, for a key that cannot stand in an HTTP header or would go
    unencrypted to another machine, and for a timeout of 0 or less.
    """

    base_url: str
    model: str
    _: KW_ONLY
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    retries: int = 2

    def __post_init__(self):
        address = split_address(self.base_url)
        if not is_key(self.key):
            raise ValueError(
                "the key contains a line break, a space or a character that is not ASCII; correct its environment variable"
            )
        if self.key and not may_have_key(address):
            raise ValueError(f"a key goes to {address.hostname} by https:// only; correct the address")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}; it must be above 0")


def split_address(base_url: str) -> SplitResult:
    """The parts of an address. Raises ValueError for one that no request can go to, or that contains a secret."""
    if any(character.isspace() or not character.isprintable() for character in base_url.strip(" ")):
        raise ValueError(f"{visible(base_url)[:ADDRESS_CHARACTERS]!r} contains a space or a line break; correct the address")
    try:
        address = urlsplit(base_url.strip(" "))
        port = address.port
    except ValueError as error:
        raise ValueError(f"the address is not one: {visible(str(error))[:ADDRESS_CHARACTERS]}") from error
    if address.username or address.password or address.query:
        raise ValueError("the address must not contain a name, a password or a query; put the key into an environment variable")
    if address.scheme not in ("http", "https") or not address.hostname or port == 0:
        shown = base_url[:ADDRESS_CHARACTERS]
        raise ValueError(f"{shown!r} is not a web address; it must begin with http:// or https://, and often ends with /v1")
    return address


def is_key(text: str) -> bool:
    """Whether a text can be sent as a key: ASCII without spaces and control characters."""
    return text.isascii() and text.isprintable() and " " not in text


def may_have_key(address: SplitResult) -> bool:
    """Whether nobody on the way can read a key that is sent to an address."""
    return address.scheme == "https" or is_loopback(address.hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Client:
    """Sends requests to an endpoint in a background thread, which can be interrupted at any time.

    accept: the content types that a response may have, of which the first is asked for. max_bytes: size of a response's body on
    the wire.
    """

    def __init__(self, endpoint: Endpoint, *, accept: tuple[str, ...], max_bytes: int):
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
        url = self.endpoint.base_url.strip(" ").rstrip("/") + path
        headers = {"Accept": self._accept[0], "Content-Type": content_type}
        for tries in itertools.count():
            try:
                response = self._send("POST", url, headers, io.BytesIO(body))
                self._check(response, self._accept)
                return response
            except Failure as failure:
                wait = seconds_to_retry(failure, tries)
                if tries == self.endpoint.retries or wait is None or wait > self._deadline - time.monotonic():
                    raise
            if self._adapter.interrupted.wait(wait):
                raise Interrupted

    def get(self, url: str, accept: tuple[str, ...]) -> requests.Response:
        """Get what is at an address, once and without the key. accept: content types. Raises Failure."""
        response = self._send("GET", url, {"Accept": accept[0]}, None)
        self._check(response, accept)
        return response

    def _send(self, method: str, url: str, headers: dict[str, str], file: io.BytesIO | None) -> requests.Response:
        # A new session for each try keeps no cookies, and no connection that the endpoint may have closed meanwhile.
        with requests.Session() as session:
            session.mount("http://", self._adapter)
            session.mount("https://", self._adapter)
            if is_loopback(urlsplit(url).hostname or ""):
                session.trust_env = False  # a proxy would be another machine, and would see the key
            try:
                return session.request(
                    method,
                    url,
                    data=file,
                    # No header beyond these but Host, Content-Length and User-Agent.
                    headers={**headers, "Accept-Encoding": "identity", "Connection": "close"},
                    auth=self._authorize if method == "POST" else _anonymous,
                    stream=True,
                    allow_redirects=False,
                    # Reading has no timeout of its own: `run` closes the connection when the time for all tries is over.
                    timeout=(self.endpoint.timeout, None),
                )
            except (OSError, HTTPError) as error:  # all of requests' errors, and those of urllib3 that it lets through
                cause = _first_cause(error)
                if file is not None and file.tell():  # something was sent
                    raise NoAnswer(f"broke the connection before it answered ({cause})") from error
                raise NotSent(
                    f"could not be reached ({cause}): start the server, or correct the address, which often ends with /v1"
                ) from error

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the key into the request. That there is an `auth` at all keeps requests from sending a password of ~/.netrc.

        A session reads more of the environment: its proxies, without which some networks have no way out, and the file of a
        company's certificates. The name and password of a proxy go to the proxy.
        """
        if self.endpoint.key:
            request.headers["Authorization"] = f"Bearer {self.endpoint.key}"
        return request

    def _check(self, response: requests.Response, accept: tuple[str, ...]) -> None:
        """Raise Failure, and close the response, if it is not accepted because of its status or its headers."""
        try:
            self._check_headers(response, accept)
        except Failure:
            response.close()
            raise

    def _check_headers(self, response: requests.Response, accept: tuple[str, ...]) -> None:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise Refused(f"answered with the encoding {encoding[:40]!r}, which was not asked for")
        if response.is_redirect:
            raise BadStatus(f"redirects to {response.headers['Location']}, which is not followed", response)
        if not 200 <= response.status_code < 300:
            reason = without_secret(
                _error_body(response), self.endpoint.key
            )  # before it is cut, which may leave a part of the key
            raise BadStatus(f"answered {response.status_code}: {reason}", response, reason=reason)
        if (given := media_type(response.headers)) not in accept:
            raise Refused(f"answered with {given[:80]}, not with {accept[0]}; is the address right?")

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
        line = visible(f"{self.endpoint.base_url.strip(' ')} {failure}"[:ERROR_BYTES])
        return without_secret(line, self.endpoint.key)[:ERROR_CHARACTERS]  # which an endpoint may repeat


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


def _anonymous(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """That there is an `auth` at all keeps requests from sending a password of ~/.netrc."""
    return request


def _error_body(response: requests.Response) -> str:
    """The message in an error response, or else the beginning of its body."""
    try:
        body = response.raw.read(ERROR_BYTES)
    except (OSError, HTTPError) as error:
        return f"({_first_cause(error)})"
    with suppress(Refused):
        if reason := stated_reason(parse_json(body)):
            return reason
    return body.decode("utf-8", "replace")


def _first_cause(error: BaseException) -> BaseException:
    """What an exception of requests goes back to: the operating system's words are clearer than those around them."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error
