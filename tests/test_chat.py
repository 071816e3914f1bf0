"""A chat model behind an endpoint, against a real HTTP server on the loopback: kind, slow, broken, huge and malicious ones."""

import gzip
import json
import logging
import threading
import time
import tracemalloc

import pytest
from glm_image_pack.glmimage_core.endpoint import QUOTED_ERROR, EndpointError
from glm_image_pack.glmimage_core.language.chat import chat_endpoint, complete
from PIL import Image

from endpoint_server import KEY, words

pytest.importorskip("openai", reason="needs the package openai")
BOMB = gzip.compress(b"data: " + b"\0" * 50_000_000)


def ask(chat_server, progress=lambda done, total: None, pictures=(), **settings) -> str:
    endpoint = chat_endpoint(chat_server.url, "glm", **{"key": KEY, "timeout": 20, "retries": 0} | settings)
    return complete(endpoint, "Rewrite.", "a bakery", pictures, seed=7, progress=progress)


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
            handler.begin(503, "application/json", Retry_After="0.01")
            handler.wfile.write(b'{"error": {"message": "loading"}}')
        else:
            words(handler)

    chat_server.behave = behave
    assert ask(chat_server, retries=2) == "A bakery at dawn."
    assert len(chat_server.asked) == 3


def huge(handler):
    handler.begin()
    handler.wfile.write(b"data: ")
    for _ in range(10_000):
        handler.wfile.write(b"x" * 1_000_000)


def bomb(handler):
    handler.begin(Content_Encoding="gzip")
    handler.wfile.write(BOMB)


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
        (errors_for_ever, "sent more than 4194304 bytes"),
        (bomb, "answered with the encoding 'gzip'"),
        (lambda handler: handler.begin(kind="text/html"), "answered with text/html, not with text/event-stream"),
        (lambda handler: handler.begin(302, Location="file:///etc/passwd"), "sends elsewhere, to file:///etc/passwd"),
        (lambda handler: handler.begin(307, Location="http://127.0.0.1:1/v1/chat/completions"), "sends elsewhere"),
        (echo, r"answered 401: .*no such key: \*\*\*"),
        (lambda handler: handler.wfile.write(b"no HTTP at all\r\n\r\n"), "127.0.0.1"),
        (lambda handler: None, "127.0.0.1"),
        (half, "127.0.0.1"),
        (lambda handler: handler.begin(), "broke off"),
    ],
    ids=["huge", "huge error", "bomb", "a page", "to a file", "elsewhere", "echo", "no http", "nothing", "half", "no end"],
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
    assert peak < 40e6 and "\n" not in str(caught.value) and len(str(caught.value)) <= QUOTED_ERROR
    assert KEY not in str(caught.value) and KEY not in caplog.text


def test_a_server_that_never_ends_is_given_up(chat_server):
    def drip(handler):
        handler.begin()
        for _ in range(1000):
            handler.say("x")
            time.sleep(0.05)

    chat_server.behave = drip
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


def test_nobody_there_is_said():
    with pytest.raises(EndpointError, match="http://127.0.0.1:9/v1"):
        complete(chat_endpoint("http://127.0.0.1:9/v1", "glm", retries=0, timeout=5), "Rewrite.", "a bakery")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "file:///etc/passwd"}, "is no address"),
        ({"base_url": "localhost:11434/v1"}, "is no address"),
        ({"base_url": "http://me:secret@host/v1"}, "must carry no name"),
        ({"base_url": "http://host/v1?key=secret"}, "must carry no name"),
        ({"model": " "}, "model is empty"),
        ({"timeout": 0}, "timeout is 0"),
    ],
)
def test_a_wrong_setting_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        chat_endpoint(**{"base_url": "http://host/v1", "model": "glm"} | settings)
    assert "secret" not in str(caught.value)


def test_the_key_is_not_shown():
    assert KEY not in repr(chat_endpoint("http://host/v1", "glm", KEY))
