"""An OpenAI-compatible endpoint on the loopback, for tests: a real HTTP server that answers as it is told to."""

import base64
import io
import json
import threading
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

KEY = "sk-secret-0123456789"


class Server(ThreadingHTTPServer):
    """Answers as `behave` does, and keeps what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict] = []
        self.behave = words
        self.stopped = threading.Event()

    def serve_forever(self, poll_interval=0.01):  # half a second by default, which each test would wait for at its end
        super().serve_forever(poll_interval)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    chunked = False

    def do_POST(self):
        body = _parsed(self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({"path": self.path, "headers": self.headers, "body": body})
        try:
            self.server.behave(self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.stopped.set()

    def do_GET(self):
        self.server.asked.append({"path": self.path, "headers": self.headers, "body": None})
        self.server.behave(self)

    def log_message(self, *args):
        pass

    def begin(self, status=200, kind="text/event-stream", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if self.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def begin_chunked(self, **settings):
        """As servers of HTTP/1.1 answer. What comes after goes through `write`, and `write(b"")` ends it."""
        self.protocol_version, self.chunked, self.close_connection = "HTTP/1.1", True, True
        self.begin(**settings)

    def write(self, data: bytes):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)
        self.wfile.flush()

    def say(self, text: str, finish: str | None = None):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        event = {"id": "1", "object": "chat.completion.chunk", "choices": [choice]}
        self.write(f"data: {json.dumps(event)}\n\n".encode())


def words(handler):
    handler.begin()
    for word in ("A ", "bakery ", "at dawn."):
        handler.say(word)
    handler.say("", "stop")
    handler.wfile.write(b"data: [DONE]\n\n")


def _parsed(kind: str, body: bytes) -> dict:
    """JSON, or the fields of a form: texts, and files as bytes in the order they came in."""
    if kind == "application/json":
        return json.loads(body)
    form: dict = {}
    for part in BytesParser().parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body).get_payload():
        name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
        if part.get_filename():
            form.setdefault(name, []).append(content)
        else:
            form[name] = content.decode()
    return form


def painted(handler):
    """As the engines answer: pictures of the size asked for, whose grey level is the seed's."""
    asked = handler.server.asked[-1]["body"]
    width, height = map(int, asked["size"].split("x"))
    seed, count = int(asked["seed"]), int(asked["n"])
    send(handler, [picture(width, height, seed + number) for number in range(count)])


def picture(width: int, height: int, level: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (level % 256,) * 3).save(file, kind)
    return file.getvalue()


def send(handler, files: list[bytes]):
    handler.begin(kind="application/json")
    data = [{"b64_json": base64.b64encode(file).decode()} for file in files]
    handler.wfile.write(json.dumps({"created": 1, "data": data}).encode())
