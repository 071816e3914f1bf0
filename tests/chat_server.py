"""An OpenAI-compatible chat endpoint on the loopback, for tests: a real HTTP server that answers as it is told to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-secret-0123456789"


class Server(ThreadingHTTPServer):
    """Answers as `behave` does, and keeps what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict] = []
        self.behave = words
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({"path": self.path, "headers": self.headers, "body": body})
        try:
            self.server.behave(self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.stopped.set()

    def log_message(self, *args):
        pass

    def begin(self, status=200, kind="text/event-stream", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def say(self, text: str, finish: str | None = None):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        event = {"id": "1", "object": "chat.completion.chunk", "choices": [choice]}
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()


def words(handler):
    handler.begin()
    for word in ("A ", "bakery ", "at dawn."):
        handler.say(word)
    handler.say("", "stop")
    handler.wfile.write(b"data: [DONE]\n\n")
