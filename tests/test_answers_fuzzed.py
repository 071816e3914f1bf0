"""Answers that no server should give, many and seeded: each ends in a result or in one printable line, without the key.

GLM_IMAGE_FUZZ=10000 says how many of each kind to try."""

import base64
import json
import logging
import os
import random
import time
from copy import deepcopy

import pytest
from glm_image_pack.glmimage_core.endpoint import ERROR_CHARACTERS, Endpoint, EndpointError
from glm_image_pack.glmimage_core.glm_image import remote
from glm_image_pack.glmimage_core.language.answers import remarks
from glm_image_pack.glmimage_core.language.chat import chat_endpoint, complete
from glm_image_pack.glmimage_core.language.rewriting import rewritten_prompt

from endpoint_server import KEY, picture

CASES = int(os.environ.get("GLM_IMAGE_FUZZ", "150"))  # of each kind of answer
SIDE = 256
SECONDS = 4  # for one answer; each takes milliseconds
PROMPT = 'a bakery with a sign "OPEN"'
STRANGE = [
    *(
        None,
        True,
        0,
        -1,
        7,
        1e308,
        "",
        " ",
        "x",
        KEY,
        f"Bearer {KEY}",
        "\x1b[31m\x07",
        "\u202e",
        "\ud800",
        "\0",
        "data:,",
        "https://",
    ),
    *([], {}, [[]], [{}], [None], {"": ""}, {"message": {"content": "x"}}, [[[[["x"]]]]], "=" * 9, "A" * 5000, "https://[::1/x"),
    *("max_tokens", "temperature seed stream", "{" * 50, "analysis", "<think>", '{"prompt": ', "1. \n2. ", "file:///etc/passwd"),
]
TYPES = ["application/json", "text/event-stream", "text/html", "application/problem+json", "", "text/event-stream; charset=\xff"]
STATUSES = [*[200] * 20, 201, 204, 302, 400, 401, 422, 429, 500, 503, 599]


def chat_event(name: str) -> dict:
    said = {"role": "assistant", "content": "A bakery at dawn.", "reasoning_content": "Hm", "refusal": None}
    return {"id": "1", "choices": [{"index": 0, name: said, "finish_reason": "stop"}], "usage": {"total_tokens": 3}}


def images() -> dict:
    return {"created": 1, "data": [{"b64_json": base64.b64encode(picture(SIDE, SIDE, 7)).decode(), "url": None}]}


def error(chance: random.Random) -> dict:
    said = chance.choice(["no such model", f"no such key: {KEY}", f"Bearer%20{KEY[:12]}..."])
    return {"error": {"message": said, "code": 7, "param": "seed"}, "detail": [{"loc": ["body", "n"], "msg": "bad"}]}


def places(value) -> list[tuple]:
    """Every container of a value, with the name or number of each of its items."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [(value, name) for name, _ in items] + [place for _, item in items for place in places(item)]


def changed(value, chance: random.Random):
    """A value with some of its parts replaced, taken away or renamed."""
    value = deepcopy(value)
    for _ in range(chance.choice([0, 0, 1, 1, 2, 4])):
        if not (found := places(value)):
            return deepcopy(chance.choice(STRANGE))
        container, name = chance.choice(found)
        kind = chance.choice(["replace", "replace", "remove", "rename", "wrap"])
        if kind == "remove":
            del container[name]
        elif kind == "rename" and isinstance(container, dict):
            container[chance.choice(["message", "detail", "error", "text", KEY])] = container.pop(name)
        elif kind == "wrap":
            container[name] = chance.choice([[container[name]], {"text": container[name]}, {"message": container[name]}])
        else:
            container[name] = deepcopy(chance.choice(STRANGE))
    return chance.choice(STRANGE) if chance.random() < 0.03 else value


def broken(body: bytes, chance: random.Random) -> bytes:
    """Bytes, now and then cut, spoilt, or with something put in."""
    kind = chance.choice(["whole"] * 10 + ["cut", "spoilt", "put in", "twice"])
    place = chance.randrange(len(body) + 1)
    if kind == "cut":
        return body[:place]
    if kind == "spoilt":
        return body[:place] + bytes([chance.randrange(256)]) + body[place + 1 :]
    if kind == "put in":
        odd = [b"\0", b"\r\n\r\n", b"\xff\xfe", KEY.encode(), b"\x1b]0;x\x07", b"[" * 3000, b" " * 20_000, b'"']
        return body[:place] + chance.choice(odd) + body[place:]
    return body * 2 if kind == "twice" else body


def streamed(chance: random.Random) -> bytes:
    events = [json.dumps(changed(chat_event("delta"), chance)).encode() for _ in range(chance.choice([0, 1, 1, 1, 2, 3]))]
    ends = [b"\n\n", b"\n\n", b"\r\n\r\n", b"\n", b"\n: ping\n\n", b""]
    return b"".join(b"data: " + event + chance.choice(ends) for event in events) + chance.choice([b"data: [DONE]\n\n", b""])


BODIES = {
    "stream": (streamed, "text/event-stream"),
    "whole": (lambda chance: json.dumps(changed(chat_event("message"), chance)).encode(), "application/json"),
    "images": (lambda chance: json.dumps(changed(images(), chance)).encode(), "application/json"),
    "error": (lambda chance: json.dumps(changed(error(chance), chance)).encode(), "application/json"),
}


def answering(kind: str, chance: random.Random):
    make, usual = BODIES[kind]
    body = broken(make(chance), chance)
    status = chance.choice(STATUSES)
    content_type = usual if chance.random() < 0.9 else chance.choice(TYPES)

    def behave(handler):
        if chance.random() < 0.2:
            handler.begin_chunked(status=status, kind=content_type)
            handler.write(body or b" ")
            handler.write(b"")
        else:
            handler.begin(status, content_type)
            handler.wfile.write(body)

    return behave


@pytest.mark.parametrize("kind", BODIES)
def test_whatever_is_answered_ends_in_a_result_or_in_one_line_without_the_key(chat_server, caplog, kind):
    caplog.set_level(logging.DEBUG)
    results = failures = 0
    for number in range(CASES):
        chance = random.Random(f"{kind} {number}")
        chat_server.behave = answering(kind, chance)
        began = time.monotonic()
        try:
            if kind == "images" or (kind == "error" and number % 2):
                endpoint = Endpoint(chat_server.url, "", key=KEY, retries=0, timeout=SECONDS)
                order = remote.Order(engine="sglang", prompt=PROMPT, width=SIDE, height=SIDE)
                (image,) = remote.paint(endpoint, order, picture_hosts=("127.0.0.1",))
                assert image.size == (SIDE, SIDE)
            else:
                endpoint = chat_endpoint(chat_server.url, "glm", key=KEY, retries=0, timeout=SECONDS)
                answer = complete(endpoint, "Rewrite.", PROMPT)
                said = "; ".join(remarks(answer, 64))
                assert said.isprintable() and '"OPEN"' in rewritten_prompt(answer, PROMPT)
            results += 1
        except EndpointError as error:
            line = str(error)
            assert line.isprintable() and len(line) <= ERROR_CHARACTERS, (number, line)
            assert not any(KEY[start : start + 8] in line for start in range(len(KEY) - 7)), (number, line)
            failures += 1
        assert time.monotonic() - began < SECONDS - 1, number
    assert failures > CASES / 5 and (results > CASES / 10 or kind == "error")  # or the cases are too wild, or too tame
    assert KEY not in caplog.text
