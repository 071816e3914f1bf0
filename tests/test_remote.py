"""GLM-Image behind an engine, against a real HTTP server on the loopback: kind, slow, broken, huge and malicious ones."""

import base64
import gzip
import io
import json
import logging
import socket
import socketserver
import struct
import threading
import time
import tracemalloc

import pytest
import torch
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.runner import Runner
from glm_image_pack.cli.graph.stock import Folders
from glm_image_pack.glmimage_core.endpoint import Endpoint, EndpointError
from glm_image_pack.glmimage_core.glm_image import remote
from glm_image_pack.glmimage_core.glm_image.remote import Order
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from PIL import Image

from endpoint_server import KEY, painted, picture, send
from shipped import shipped

SIDE = 256
BOMB = gzip.compress(b" " * 50_000_000)


@pytest.fixture(autouse=True)
def at_work(chat_server, monkeypatch):
    """The server paints, and a second try comes at once."""
    chat_server.behave = painted
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)


def order(engine="sglang", **settings) -> Order:
    return Order(**{"engine": engine, "prompt": "a bakery", "width": SIDE, "height": SIDE} | settings)


def paint(chat_server, asked: Order | None = None, progress=lambda done, total: None, **settings) -> list[Image.Image]:
    endpoint = Endpoint(chat_server.url, "", **{"key": KEY, "timeout": 20, "retries": 0} | settings)
    return remote.paint(endpoint, asked or order(), progress=progress)


def levels(pictures) -> list[int]:
    return [picture.getpixel((0, 0))[0] for picture in pictures]


def test_a_request_is_as_the_engines_publish_it(chat_server):
    assert levels(paint(chat_server, order(seed=7, steps=20, cfg=2.5))) == [7]
    (asked,) = chat_server.asked
    assert asked["path"] == "/v1/images/generations" and asked["headers"]["Authorization"] == f"Bearer {KEY}"
    assert asked["body"] == {
        "prompt": "a bakery",
        "size": "256x256",
        "n": 1,
        "response_format": "b64_json",
        "output_format": "png",
        "seed": 7,
        "num_inference_steps": 20,
        "guidance_scale": 2.5,
    }


@pytest.mark.parametrize("engine", ["sglang", "vllm-omni"])
def test_picture_i_has_the_seed_of_its_number(chat_server, engine):
    seen = []
    pictures = paint(chat_server, order(engine, count=3, seed=5), lambda done, total: seen.append((done, total)))
    assert levels(pictures) == [5, 6, 7] and seen[0] == (0, 3) and seen[-1] == (3, 3)
    assert len(chat_server.asked) == (1 if engine == "sglang" else 3)


@pytest.mark.parametrize("count", [1, 2])
def test_references_go_along_in_order(chat_server, count):
    references = tuple(Image.new("RGB", (64, 96), colour) for colour in ("red", "blue")[:count])
    paint(chat_server, order(references=references, seed=3))
    (asked,) = chat_server.asked
    assert asked["path"] == "/v1/images/edits"
    files = asked["body"]["image" if count == 1 else "image[]"]
    colours = [Image.open(io.BytesIO(file)).getpixel((0, 0)) for file in files]
    assert colours == [(255, 0, 0), (0, 0, 255)][:count]
    assert {name: asked["body"][name] for name in ("prompt", "size", "seed", "n")} == {
        "prompt": "a bakery",
        "size": "256x256",
        "seed": "3",
        "n": "1",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "triton"}, "engine 'triton'"),
        ({"engine": "vllm-omni", "references": (Image.new("RGB", (8, 8)),) * 2}, "takes one reference, not 2"),
        ({"engine": "vllm-omni", "steps": 300}, "up to 200 steps"),
        ({"engine": "vllm-omni", "width": 2080, "height": 2048}, "up to 2048x2048 pixels"),
        ({"count": 11}, "11 pictures at once"),
        ({"steps": 0}, "steps is 0"),
        ({"cfg": -1.0}, "cfg is -1.0"),
    ],
)
def test_what_an_engine_would_refuse_is_refused_here(settings, message):
    with pytest.raises(ValueError, match=message):
        order(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 512, "height": 1024}, "1024 to 2048 pixels a side, not 512x1024"),
        ({"width": 2080, "height": 1024}, "1024 to 2048 pixels a side"),
        ({"width": 1024, "height": 1024, "references": (Image.new("RGB", (8, 8)),)}, "edits no pictures"),
        ({"width": 1024, "height": 1024, "negative": "blurry"}, "takes no negative prompt"),
    ],
)
def test_what_the_makers_service_would_refuse_is_refused_here(settings, message):
    with pytest.raises(ValueError, match=message):
        order("z.ai", **settings)


@pytest.mark.parametrize("references", [(), (Image.new("RGB", (64, 96)),)])
def test_a_negative_prompt_goes_along_where_the_engine_takes_one(chat_server, references):
    paint(chat_server, order("vllm-omni", negative="blurry", references=references))
    paint(chat_server, order("vllm-omni", references=references))
    bodies = [asked["body"] for asked in chat_server.asked]
    assert bodies[0]["negative_prompt"] == "blurry" and "negative_prompt" not in bodies[1]
    with pytest.raises(ValueError, match="sglang takes no negative prompt"):
        order(negative="blurry")


ZAI_SIDE = 1024


def with_address(host="127.0.0.1", port=None, file=None, kind="image/png", **headers):
    """As z.ai answers: the address of a picture, which is at this server, too."""

    def behave(handler):
        if handler.command == "GET":
            handler.begin(302 if headers else 200, kind, **headers)
            handler.wfile.write(picture(ZAI_SIDE, ZAI_SIDE, 5, "JPEG") if file is None else file)
        else:
            url = f"http://{host}:{port or handler.server.server_port}/picture.png?signature=abc"
            json_of({"created": 1, "data": [{"url": url}], "content_filter": [{"role": "assistant", "level": 3}]})(handler)

    return behave


def at_zai(chat_server, hosts=("127.0.0.1",), count=1):
    asked = order("z.ai", width=ZAI_SIDE, height=ZAI_SIDE, count=count)
    return remote.paint(Endpoint(chat_server.url, "", key=KEY, retries=0, timeout=20), asked, picture_hosts=hosts)


def test_the_makers_service_paints_and_its_picture_is_fetched_without_the_key(chat_server):
    chat_server.behave = with_address()
    assert [image.size for image in at_zai(chat_server, count=2)] == [(ZAI_SIDE, ZAI_SIDE)] * 2
    post, get = chat_server.asked[:2]
    assert post["body"] == {"model": "glm-image", "prompt": "a bakery", "size": "1024x1024", "quality": "hd"}
    assert post["headers"]["Authorization"] == f"Bearer {KEY}" and get["headers"]["Authorization"] is None
    assert get["path"] == "/picture.png?signature=abc" and len(chat_server.asked) == 4


@pytest.mark.parametrize(
    ("behave", "hosts", "message"),
    [
        (with_address(), (), "nothing may be fetched from 127.0.0.1; allow that host in .*GLM_IMAGE_PICTURE_HOSTS"),
        (with_address(), (".0.0.1x", "27.0.0.1", "localhost"), "nothing may be fetched from 127.0.0.1"),
        (with_address("files.example"), (".example",), "not of https"),
        (with_address("me@127.0.0.1"), ("127.0.0.1",), "an address in place of a picture that is none"),
        (with_address(port=99999), ("127.0.0.1",), "an address in place of a picture that is none"),
        (with_address(port=9), ("127.0.0.1",), "127.0.0.1 could not be reached"),
        (with_address(Location="http://127.0.0.1:9/"), ("127.0.0.1",), "redirects to .*not followed"),
        (with_address(kind="text/html"), ("127.0.0.1",), "answered with text/html"),
        (with_address(file=b" " * 20_000_000), ("127.0.0.1",), "sent more than"),
        (with_address(file=b"GIF89a"), ("127.0.0.1",), "what is not a picture"),
    ],
)
def test_a_picture_is_fetched_from_allowed_hosts_alone_and_not_trusted(chat_server, behave, hosts, message):
    chat_server.behave = behave
    with pytest.raises(EndpointError, match=message) as caught:
        at_zai(chat_server, hosts)
    assert str(caught.value).isprintable() and KEY not in str(caught.value)


def test_a_host_below_an_allowed_one_is_reached(chat_server):
    chat_server.behave = json_of({"data": [{"url": "https://a.files.invalid/x.png"}]})
    with pytest.raises(EndpointError, match="a.files.invalid could not be reached"):
        at_zai(chat_server, (".files.invalid",))
    with pytest.raises(EndpointError, match="nothing may be fetched from a.files.invalid"):
        at_zai(chat_server, ("files.invalid",))


def test_the_node_reads_the_hosts_that_are_allowed(chat_server, monkeypatch):
    chat_server.behave = with_address()
    values = ("a bakery", "z.ai", chat_server.url, "", "", ZAI_SIDE, ZAI_SIDE, 1, 10, 20, 1.5, 20.0, 0)
    with pytest.raises(EndpointError, match="GLM_IMAGE_PICTURE_HOSTS"):
        NODES["GLMImageRemote"]().paint(*values)
    monkeypatch.setenv("GLM_IMAGE_PICTURE_HOSTS", "other.example, 127.0.0.1")
    assert NODES["GLMImageRemote"]().paint(*values)[0].shape == (1, ZAI_SIDE, ZAI_SIDE, 3)


@pytest.mark.parametrize(
    "form",
    [
        lambda text: text,
        lambda text: "data:image/png;base64," + text,
        lambda text: "DATA:image/png;charset=x;base64," + text,
        lambda text: text.rstrip("="),
        lambda text: "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76)) + "\n",
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: text.replace("+", "-").replace("/", "_").rstrip("="),
    ],
)
@pytest.mark.parametrize("field", ["b64_json", "url"])
def test_base64_is_read_in_every_form(chat_server, form, field):
    noise = Image.effect_noise((SIDE, SIDE), 100).convert("RGB")
    file = io.BytesIO()
    noise.save(file, "PNG")
    for extra in range(3):  # of each length of padding; what stands behind the end of a PNG is not read
        text = base64.b64encode(file.getvalue() + b"\0" * extra).decode()
        assert "+" in text and "/" in text
        chat_server.behave = json_of({"data": [{field: form(text)}]})
        assert paint(chat_server)[0].tobytes() == noise.tobytes()


def failing(status, **headers):
    def behave(handler):
        handler.begin(status, "application/json", **headers)
        handler.wfile.write(b'{"error": {"message": "no"}}')

    return behave


@pytest.mark.parametrize("status", [429, 503])
def test_an_engine_that_has_not_begun_is_asked_again(chat_server, status):
    chat_server.behave = lambda handler: (failing(status) if len(chat_server.asked) < 3 else painted)(handler)
    assert len(paint(chat_server, retries=2)) == 1 and len(chat_server.asked) == 3


def gateway(handler):
    handler.begin(503, "text/plain")
    handler.wfile.write(b"upstream connect error or disconnect/reset before headers")


def vanish(handler):
    """Takes the request, and is gone."""
    handler.connection.close()


def cut(handler):
    handler.begin(kind="application/json", Content_Length="1000")
    handler.wfile.write(b'{"data": [')
    handler.connection.close()


def sleep(handler):
    time.sleep(3)  # longer than it is waited for


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (failing(408), "may still be painting.*answered 408"),
        (failing(502), "may still be painting.*answered 502"),
        (failing(504), "may still be painting.*answered 504"),
        (failing(500), "answered 500: no"),
        (failing(400), "answered 400: no"),
        (gateway, "may still be painting.*answered 503: upstream"),
        (vanish, "may still be painting.*broke the connection before it answered"),
        (cut, "may still be painting.*broke the connection in the middle"),
        (sleep, "gave no picture, and may still be painting, within 1 s"),
    ],
)
def test_what_may_have_been_begun_is_never_asked_twice(chat_server, behave, message):
    chat_server.behave = behave
    with pytest.raises(EndpointError, match=message):
        paint(chat_server, retries=5, timeout=1 if behave is sleep else 20)
    time.sleep(0.2)
    assert len(chat_server.asked) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_engine_that_cannot_be_reached_is_named_after_all_tries(chat_server, monkeypatch, scheme):
    """Because nobody is there, or because the two cannot agree on TLS."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.1)
    url = "http://127.0.0.1:9/v1" if scheme == "http" else chat_server.url.replace("http://", "https://")
    began = time.monotonic()
    with pytest.raises(EndpointError, match=f"{url} could not be reached"):
        remote.paint(Endpoint(url, "", key=KEY, retries=3, timeout=20), order())
    assert time.monotonic() - began >= 0.1 + 0.2 + 0.4 and not chat_server.asked


def test_a_wait_longer_than_the_time_that_is_left_is_not_begun(chat_server, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 30.0)
    chat_server.behave = failing(429)
    with pytest.raises(EndpointError, match="answered 429: no"):
        paint(chat_server, retries=3)


def test_what_arrived_in_part_is_not_sent_again():
    """The connection breaks within the request, of which some is still on this side."""
    connections = []

    class Reset(socketserver.BaseRequestHandler):
        def handle(self):
            connections.append(self.request.recv(1000))
            self.request.recv(1)
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset

    noise = Image.effect_noise((2048, 2048), 100)
    with socketserver.TCPServer(("127.0.0.1", 0), Reset) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", "", retries=5, timeout=20)
        with pytest.raises(EndpointError, match="may still be painting, so the request is not sent again"):
            remote.paint(endpoint, order(references=(noise,)))
        time.sleep(0.2)
        server.shutdown()
    assert len(connections) == 1 and connections[0].startswith(b"POST /v1/images/edits")


def huge(handler):
    handler.begin(kind="application/json")
    for _ in range(10_000):
        handler.wfile.write(b" " * 1_000_000)


def bomb(handler):
    handler.begin(kind="application/json", Content_Encoding="gzip")
    handler.wfile.write(BOMB)


def elsewhere(handler):
    handler.begin(302, "text/plain", Location="file:///etc/passwd")


def address(handler):
    handler.begin(kind="application/json")
    handler.wfile.write(json.dumps({"created": 1, "data": [{"url": "file:///etc/passwd"}]}).encode())


def json_of(value):
    def behave(handler):
        handler.begin(kind="application/json")
        handler.wfile.write(json.dumps(value).encode())

    return behave


def nonsense(handler):
    handler.begin(kind="application/json")
    handler.wfile.write(b"[" * 100_000)


def page(handler):
    handler.begin(kind="text/html")
    handler.wfile.write(b"<html>")


def echo(handler):
    handler.begin(401, "application/json")
    handler.wfile.write(json.dumps({"error": {"message": f"no such key: {KEY}"}}).encode())


def bomb_of_a_picture(handler):
    send(handler, [picture(12_000, 12_000, 0)])


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (huge, "sent more than"),
        (bomb, "answered with the encoding 'gzip'"),
        (elsewhere, "redirects to file:///etc/passwd"),
        (address, "sent the address of a picture that is not of https|sent an address in place of a picture"),
        (json_of({"data": [{}]}), "sent 0 pictures, not 1"),
        (json_of({"error": {"message": "model not loaded"}}), "reported an error: model not loaded"),
        (json_of({"detail": "no steps"}), "reported an error: no steps"),
        (json_of({"data": [], "message": "all filtered"}), "sent 0 pictures, not 1: all filtered"),
        (json_of({"data": [7]}), "not of the images protocol"),
        (json_of([]), "not of the images protocol"),
        (json_of({"data": [{"b64_json": 7}]}), "sent what is not a picture"),
        (nonsense, "sent what is not JSON"),
        (page, "answered with text/html"),
        (echo, r"no such key: \*\*\*"),
        (bomb_of_a_picture, "sent a picture of 12000x12000, not of 256x256"),
        (lambda handler: send(handler, [picture(64, 64, 0)]), "sent a picture of 64x64"),
        (lambda handler: send(handler, [picture(SIDE, SIDE, 0)] * 2), "sent 2 pictures, not 1"),
        (lambda handler: send(handler, [b"GIF89a" + b"\0" * 100]), "sent what is not a picture"),
        (lambda handler: send(handler, [picture(SIDE, SIDE, 0)[:60]]), "sent what is not a picture"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # raised before anything is unpacked
def test_an_answer_that_cannot_be_trusted_ends_in_one_line_and_bounded_memory(chat_server, caplog, behave, message):
    chat_server.behave = behave
    caplog.set_level(logging.DEBUG)
    tracemalloc.start()
    try:
        with pytest.raises(EndpointError, match=message) as caught:
            paint(chat_server)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if behave is not bomb_of_a_picture:  # made by the server, in this process
        assert peak < 40e6
    assert "\n" not in str(caught.value) and KEY not in str(caught.value) and KEY not in caplog.text


def test_a_stop_closes_the_connection(chat_server):
    closed = threading.Event()

    def behave(handler):
        handler.connection.settimeout(10)
        if handler.connection.recv(1) == b"":
            closed.set()

    chat_server.behave = behave

    class Stopped(Exception):
        pass

    def stop(done, total):
        if chat_server.asked:
            raise Stopped

    with pytest.raises(Stopped):
        paint(chat_server, progress=stop)
    assert closed.wait(2)


def test_nothing_of_the_environment_is_sent(chat_server, monkeypatch):
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "private")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: private\nAuthorization: private")
    paint(chat_server)
    paint(chat_server, key="")
    assert all("private" not in str(asked["headers"]) for asked in chat_server.asked)
    assert [asked["headers"]["Authorization"] for asked in chat_server.asked] == [f"Bearer {KEY}", None]


def test_the_node_paints_a_batch(chat_server):
    (images,) = NODES["GLMImageRemote"]().paint(
        *("a bakery", "sglang", chat_server.url, "", "", 288, 256, 2, 10, 20, 1.5, 20.0, 0), images=torch.ones(1, 64, 64, 3)
    )
    assert images.shape == (2, 256, 288, 3)
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [10, 11]
    assert chat_server.asked[0]["path"] == "/v1/images/edits"


@pytest.mark.parametrize("kind", ["api", "ui"])
def test_the_workflow_paints(chat_server, tmp_path, kind):
    workflow, folders = shipped("remote", kind), Folders(tmp_path, tmp_path, [])
    for node in workflow.prompt.values():
        if node["class_type"] == "GLMImageRemote":
            node["inputs"] |= {"base_url": chat_server.url, "seed": 9}
    Runner(ALL_NODES, folders).run(workflow)
    assert levels([Image.open(path) for path in folders.written]) == [9]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"base_url": "ftp://host"}, "is not a web address"),
        ({"width": 1000}, "992 or 1024"),
        ({"key_variable": "OPENAI_API_KEY"}, "may not be sent to host"),
        ({"engine": "vllm-omni", "steps": 500}, "up to 200 steps"),
        ({}, True),
        ({"prompt": None, "base_url": None, "width": None}, True),
    ],
)
def test_bad_values_are_named_before_a_graph_runs(monkeypatch, values, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    usual = {"prompt": "a", "engine": "sglang", "base_url": "http://host/v1", "key_variable": "", "width": 256, "height": 256}
    problem = NODES["GLMImageRemote"].VALIDATE_INPUTS(**usual | values)
    assert problem is True if message is True else message in problem
