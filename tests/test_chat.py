"""A chat model behind an endpoint, against a real HTTP server on the loopback: kind, slow, broken, huge and malicious ones."""

import gzip
import json
import logging
import socket
import threading
import time
import tracemalloc
from itertools import pairwise

import pytest
from glm_image_pack.glmimage_core.endpoint import ERROR_CHARACTERS, Client, EndpointError
from glm_image_pack.glmimage_core.language import chat
from glm_image_pack.glmimage_core.language.chat import chat_endpoint, complete
from PIL import Image

from endpoint_server import KEY, words

BOMB = gzip.compress(b"data: " + b"\0" * 50_000_000)


def ask(chat_server, progress=lambda done, total: None, pictures=(), **settings) -> str:
    endpoint = chat_endpoint(chat_server.url, "glm", **{"key": KEY, "timeout": 20, "retries": 0} | settings)
    return complete(endpoint, "Rewrite.", "a bakery", pictures=pictures, seed=7, progress=progress).text


def test_an_answer_comes_piece_by_piece(chat_server):
    seen = []
    assert ask(chat_server, lambda done, total: seen.append(done)) == "A bakery at dawn."
    assert seen == sorted(seen) and seen[-1] == 3
    (asked,) = chat_server.asked
    assert asked["path"] == "/v1/chat/completions" and asked["headers"]["Authorization"] == f"Bearer {KEY}"
    assert asked["body"]["model"] == "glm" and asked["body"]["seed"] == 7 and asked["body"]["stream"] is True
    assert [message["content"] for message in asked["body"]["messages"]] == ["Rewrite.", "a bakery"]


def test_pictures_go_along_in_order_and_small(chat_server):
    ask(chat_server, pictures=[Image.new("RGB", (3000, 1500), "red"), Image.new("RGB", (10, 20), "blue")])
    (asked,) = chat_server.asked
    *pictures, text = asked["body"]["messages"][1]["content"]
    assert text == {"type": "text", "text": "a bakery"} and len(pictures) == 2
    assert all(picture["image_url"]["url"].startswith("data:image/png;base64,") for picture in pictures)
    assert len(pictures[0]["image_url"]["url"]) < 20000


def test_a_failing_server_is_asked_again(chat_server):
    def behave(handler):
        if len(chat_server.asked) < 3:
            handler.begin(503, "application/json", Retry_After="0")
            handler.wfile.write(b'{"error": {"message": "loading"}}')
        else:
            words(handler)

    chat_server.behave = behave
    assert ask(chat_server, retries=2) == "A bakery at dawn."
    assert len(chat_server.asked) == 3


@pytest.mark.parametrize("chunked", [True, False])
def test_each_piece_is_there_as_soon_as_it_was_sent(chat_server, chunked):
    arrived = [threading.Event(), threading.Event()]
    in_time = []

    def behave(handler):
        (handler.begin_chunked if chunked else handler.begin)()
        for event, word in zip(arrived, ("A ", "bakery"), strict=True):
            handler.say(word)
            in_time.append(event.wait(5))
        handler.say("", "stop")
        handler.write(b"data: [DONE]\n\n")
        time.sleep(5)  # a server that does not close the connection

    def progress(done, total):
        for event in arrived[:done]:
            event.set()

    chat_server.behave = behave
    began = time.monotonic()
    assert ask(chat_server, progress) == "A bakery" and in_time == [True, True]
    assert time.monotonic() - began < 4


def events(*lines: bytes):
    def behave(handler):
        handler.begin()
        handler.wfile.write(b"\n".join(lines))

    return behave


CHOICE = b'data: {"choices": [{"delta": {"content": "A bakery"}, "finish_reason": "stop"}]}'


@pytest.mark.parametrize(
    "behave",
    [
        events(CHOICE, b"", b"data: [DONE]", b"", CHOICE, b""),
        events(CHOICE),
        events(CHOICE.replace(b": {", b":{", 1) + b"\r", b"\r"),
        events(b": a comment", b"", b"event: message", b"id: 1", CHOICE, b"retry: 3", b""),
        events(b'data: {"choices":', b"data: " + CHOICE.split(b":", 2)[2], b""),
        events(b'data: {"choices": [], "usage": {"total_tokens": 3}}', b"", CHOICE, b"", b'data: {"choices": null}'),
        events(
            b'data: {"choices": [{"delta": {"content": "A bakery"}}]}', b"", b'data: {"choices": [{"finish_reason": "stop"}]}'
        ),
        events(b'data: {"choices": [{"delta": {"role": "assistant", "content": null}}]}', b"", CHOICE, b""),
    ],
    ids=["done", "no end", "CRLF", "other fields", "two lines", "usage", "end without text", "role"],
)
def test_events_are_read_as_their_standard_has_them(chat_server, behave):
    chat_server.behave = behave
    assert ask(chat_server) == "A bakery"


def busy(status, **headers):
    def behave(handler):
        handler.begin(status, "application/json", **headers)
        handler.wfile.write(b'{"error": {"message": "busy"}}')

    return behave


@pytest.mark.parametrize(
    ("behave", "tries"),
    [
        *((busy(status, Retry_After="0"), 3) for status in (408, 409, 429, 500, 503)),
        (busy(400, x_should_retry="true", Retry_After="0"), 3),
        (busy(503, x_should_retry="false", Retry_After="0"), 1),
        *((busy(status, Retry_After="0"), 1) for status in (400, 401, 404)),
        (busy(429, Retry_After="30"), 1),  # when the time is over
        (busy(429, Retry_After="9" * 400), 1),
    ],
    ids=lambda value: value if isinstance(value, int) else "",
)
def test_it_is_asked_again_where_that_may_help(chat_server, behave, tries):
    chat_server.behave = behave
    began = time.monotonic()
    with pytest.raises(EndpointError, match="answered 4..: busy|answered 50.: busy"):
        ask(chat_server, retries=2)
    assert len(chat_server.asked) == tries and time.monotonic() - began < 5


@pytest.mark.parametrize(
    "when", ["Retry-After is no number", "Retry-After is too long", "a connection is closed", "a page is shown"]
)
def test_without_a_time_it_is_asked_again_a_little_later_each_time(chat_server, monkeypatch, when):
    asked_at = []

    def behave(handler):
        asked_at.append(time.monotonic())
        if when == "Retry-After is no number":
            busy(503, Retry_After="soon")(handler)
        elif when == "Retry-After is too long":
            busy(503, Retry_After="9" * 5000)(handler)
        elif when == "a page is shown":
            handler.begin(kind="text/html")
        if len(asked_at) == 4:
            words(handler)

    monkeypatch.setattr(chat, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(chat, "LONGEST_WAIT", 0.25)
    chat_server.behave = behave
    if when == "a connection is closed":
        assert ask(chat_server, retries=3) == "A bakery at dawn."
    else:
        with pytest.raises(EndpointError):
            ask(chat_server, retries=3)
    waits = [later - earlier for earlier, later in pairwise(asked_at)]
    assert len(waits) == 3 and all(wait >= least for wait, least in zip(waits, (0.1, 0.2, 0.25), strict=True))


def test_no_cookie_comes_back(chat_server):
    def behave(handler):
        if len(chat_server.asked) == 1:
            busy(503, Retry_After="0", Set_Cookie="who=me")(handler)
        else:
            words(handler)

    chat_server.behave = behave
    assert ask(chat_server, retries=1) == "A bakery at dawn."
    assert all("Cookie" not in asked["headers"] for asked in chat_server.asked)


def huge(handler):
    handler.begin()
    handler.wfile.write(b"data: ")
    for _ in range(10_000):
        handler.wfile.write(b"x" * 1_000_000)


def bomb(handler):
    handler.begin(Content_Encoding="gzip")
    handler.wfile.write(BOMB)


def huge_chunk(handler):
    handler.begin_chunked()
    handler.wfile.write(b"FFFFFFFF\r\ndata: ")
    for _ in range(10_000):
        handler.wfile.write(b"x" * 1_000_000)


def half(handler):
    handler.begin()
    handler.say("A ")
    handler.wfile.write(b'data: {"choices": [{"del')


def echo(handler):
    handler.begin(401, "application/json")
    handler.wfile.write(json.dumps({"error": {"message": f"no such key: {KEY}"}}).encode())


def errors_for_ever(handler):
    handler.begin(400, "application/json")
    for _ in range(10_000):
        handler.wfile.write(b"x" * 1_000_000)


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (huge, "sent more than 4194304 bytes"),
        (huge_chunk, "sent more than 4194304 bytes"),
        (errors_for_ever, "answered 400: xxx"),
        (bomb, "answered with the encoding 'gzip'"),
        (lambda handler: handler.begin(kind="text/html"), "answered with text/html, not with text/event-stream"),
        (lambda handler: handler.begin(302, Location="file:///etc/passwd"), "redirects to file:///etc/passwd"),
        (
            lambda handler: handler.begin(307, Location="http://127.0.0.1:1/v1/chat/completions"),
            "redirects to http://127.0.0.1:1/",
        ),
        (echo, r"answered 401: no such key: \*\*\*"),
        (lambda handler: handler.wfile.write(b"no HTTP at all\r\n\r\n"), "127.0.0.1"),
        (lambda handler: None, "127.0.0.1"),
        (half, "127.0.0.1"),
        (lambda handler: handler.begin(), "broke off"),
        (lambda handler: handler.begin(Content_Encoding="identity, br"), "answered with the encoding 'identity, br'"),
        (events(b'data: {"error": {"message": "out of memory"}}', b""), "reported an error: out of memory"),
        (events(b'data: {"choices": [{"delta": {"content": ["A"]}}]}', b""), "not of the chat protocol"),
        (events(b'data: {"choices": [7]}', b""), "not of the chat protocol"),
        (events(b"data: [7]", b""), "not of the chat protocol"),
        (events(b"data: " + b"[" * 100_000, b""), "not JSON"),
        (events(b"data: \xff", b""), "not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_answer_is_one_clear_line_in_little_memory(chat_server, behave, message, caplog):
    chat_server.behave = behave
    caplog.set_level(logging.DEBUG)
    tracemalloc.start()
    try:
        with pytest.raises(EndpointError, match=message) as caught:
            ask(chat_server)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6 and "\n" not in str(caught.value) and len(str(caught.value)) <= ERROR_CHARACTERS
    assert KEY not in str(caught.value) and KEY not in caplog.text


@pytest.mark.parametrize("what", ["answer", "headers"])
def test_a_server_that_never_ends_is_given_up(chat_server, what):
    def drip(handler):
        handler.begin()
        for _ in range(1000):
            handler.say("x")
            time.sleep(0.05)

    def drip_headers(handler):
        for _ in range(1000):
            handler.wfile.write(b"H")
            handler.wfile.flush()
            time.sleep(0.05)

    chat_server.behave = {"answer": drip, "headers": drip_headers}[what]
    began = time.monotonic()
    with pytest.raises(EndpointError, match="no whole answer within 1 s"):
        ask(chat_server, timeout=1)
    assert time.monotonic() - began < 10 and chat_server.stopped.wait(5)


def test_it_is_interrupted_while_nothing_comes(chat_server):
    waiting = threading.Event()

    def silent(handler):
        waiting.set()
        time.sleep(15)

    def progress(done, total):
        if waiting.is_set():
            raise KeyboardInterrupt

    chat_server.behave = silent
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ask(chat_server, progress)
    assert time.monotonic() - began < 10


def test_a_stop_between_two_tries_sends_nothing_more(chat_server):
    def progress(done, total):
        if chat_server.asked:
            raise KeyboardInterrupt

    chat_server.behave = busy(503, Retry_After="1")
    with pytest.raises(KeyboardInterrupt):
        ask(chat_server, progress, retries=5)
    time.sleep(1.5)
    assert len(chat_server.asked) == 1


@pytest.mark.parametrize("address", ["http", "https"])
def test_a_stop_closes_a_connection_that_says_nothing(address):
    """After a request, or in the middle of what comes before it with TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        accepted = []

        def progress(done, total):
            if not accepted:
                connection, _ = server.accept()
                connection.settimeout(5)
                accepted.append((connection, connection.recv(100_000)))
                raise KeyboardInterrupt

        endpoint = chat_endpoint(f"{address}://127.0.0.1:{server.getsockname()[1]}/v1", "glm", key=KEY)
        with pytest.raises(KeyboardInterrupt):
            complete(endpoint, "Rewrite.", "a bakery", progress=progress)
        ((connection, sent),) = accepted
        with connection:
            assert sent.startswith(b"POST" if address == "http" else b"\x16")
            while rest := connection.recv(100_000):
                assert KEY.encode() not in rest or address == "http"


def test_nothing_is_sent_on_a_connection_made_after_a_stop(chat_server):
    """A host name may take long to be found, and nothing ends that."""
    client = Client(chat_endpoint(chat_server.url, "glm"), accept=("text/event-stream",), max_bytes=1000)

    def fetch():
        stopped.wait(5)
        yield client.post("/chat/completions", b"{}", "application/json", seconds_to_retry=lambda *failed: 0.0)

    def waiting():
        raise KeyboardInterrupt

    stopped = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        next(client.run(fetch, waiting=waiting))
    stopped.set()
    time.sleep(0.5)
    assert not chat_server.asked


def test_a_password_of_netrc_is_not_sent(chat_server, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password private\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    ask(chat_server)
    ask(chat_server, key="")
    assert [asked["headers"]["Authorization"] for asked in chat_server.asked] == [f"Bearer {KEY}", None]


def test_no_header_is_sent_but_those_needed(chat_server):
    ask(chat_server)
    (asked,) = chat_server.asked
    needed = {"Host", "Accept", "Accept-Encoding", "Connection", "Content-Type", "Content-Length", "Authorization", "User-Agent"}
    assert set(asked["headers"]) == needed and asked["headers"]["Accept-Encoding"] == "identity"


def test_a_proxy_of_the_environment_is_used_and_alone_gets_its_password(chat_server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, chat_server.url.removesuffix("/v1").replace("//", "//me:private@"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    ask(chat_server)
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY")
    ask(chat_server)  # this machine is reached without a proxy, whatever the environment says
    complete(chat_endpoint("http://glm.invalid/v1", "glm"), "Rewrite.", "a bakery")
    direct, also_direct, through = chat_server.asked
    assert also_direct["path"] == direct["path"]
    assert direct["path"] == "/v1/chat/completions" and "Proxy-Authorization" not in direct["headers"]
    assert through["path"] == "http://glm.invalid/v1/chat/completions" and "Proxy-Authorization" in through["headers"]


def test_nobody_there_is_said():
    with pytest.raises(EndpointError, match="http://127.0.0.1:9/v1 could not be reached .*refused.*: start the server"):
        complete(chat_endpoint("http://127.0.0.1:9/v1", "glm", retries=0, timeout=5), "Rewrite.", "a bakery")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "file:///etc/passwd"}, "is not a web address"),
        ({"base_url": "localhost:11434/v1"}, "is not a web address"),
        ({"base_url": "http://me:secret@host/v1"}, "must not contain a name"),
        ({"base_url": "http://host/v1?key=secret"}, "must not contain a name"),
        ({"model": " "}, "model is empty"),
        ({"timeout": 0}, "timeout is 0"),
        ({"key": "secret\nX-Header: more"}, "the key contains a line break"),
    ],
)
def test_a_wrong_setting_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        chat_endpoint(**{"base_url": "http://host/v1", "model": "glm"} | settings)
    assert "secret" not in str(caught.value)


def test_the_key_is_not_shown():
    assert KEY not in repr(chat_endpoint("https://host/v1", "glm", key=KEY))
