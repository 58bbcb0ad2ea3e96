"""A server with OpenAI's interface on loopback. It labels phantoms' reports by rules, and misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ctclip_model.config import TfidfConfig
from ctclip_model.data.report_layout import normalise_report
from ctclip_model.labelling.terms import MENTION, report_terms

MODEL, KEY = "house-8b", "sk-of-the-house-1234567890"
Reply = Callable[["Handler", dict[str, Any]], None]


class LanguageModel:
    """The server, the requests that it got, and the misbehaviours that it will play, each once, in order."""

    def __init__(self, key: str | None = None) -> None:
        self.key = key
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.plays: deque[Reply] = deque()
        self.always: Reply | None = None
        self.by_report: dict[str, Reply] = {}  # replies, each by a part of the report that gets it
        self.delay_s = 0.0
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = self.origin = ""

    @contextmanager
    def running(self) -> Iterator[LanguageModel]:
        """Serves until the end of the block."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"model": self}))
        server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{server.server_address[1]}"
        self.url = f"{self.origin}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    model: LanguageModel

    def do_GET(self) -> None:
        send_json(self, {"object": "list", "data": [{"id": MODEL}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model = self.model
        with model.lock:
            model.requests.append(body)
            model.headers.append(dict(self.headers))
            model.paths.append(self.path)
            model.at_once += 1
            model.most_at_once = max(model.most_at_once, model.at_once)
            reply = model.plays.popleft() if model.plays else model.always
        report = body["messages"][-1]["content"]
        reply = next((reply for part, reply in model.by_report.items() if part in report), reply)
        time.sleep(model.delay_s)
        with suppress(ConnectionError):
            (reply or self.choose())(self, body)
        with model.lock:
            model.at_once -= 1

    def choose(self) -> Reply:
        if self.model.key is not None and self.headers.get("Authorization") != f"Bearer {self.model.key}":
            return error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        if not self.path.endswith("/v1/chat/completions"):
            return error(404, "Not Found")
        return answer

    def log_message(self, *_: object) -> None:
        pass


def send_json(handler: Handler, content: object, status: int = 200, **headers: str) -> None:
    raw = json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(raw)


def answer(handler: Handler, body: dict[str, Any]) -> None:
    """The answer of a good model: the findings that the rules of `labelling.terms` read in the report."""
    if body["model"] != MODEL:
        return error(404, f"The model `{body['model']}` does not exist.")(handler, body)
    return say(json.dumps(read_truth(body)))(handler, body)


def read_truth(body: dict[str, Any]) -> dict[str, bool]:
    """Findings of the schema that a request's report states."""
    terms = report_terms(normalise_report(body["messages"][-1]["content"]), TfidfConfig())
    names = body["response_format"]["json_schema"]["schema"]["properties"]
    return {name: MENTION + name in terms for name in names}


def say(content: str | None, finish_reason: str = "stop", **message: Any) -> Reply:
    """A message of the model, whatever its content."""

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content}}
        choice["message"] |= message  # type: ignore[operator]
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        send_json(handler, {"object": "chat.completion", "choices": [choice], "usage": usage})

    return reply


def say_fenced(handler: Handler, body: dict[str, Any]) -> None:
    """The right answer in a code fence."""
    say(f"```json\n{json.dumps(read_truth(body), indent=2)}\n```")(handler, body)


def error(status: int, message: str = "no", **headers: str) -> Reply:
    return lambda handler, _: send_json(handler, {"error": {"message": message}}, status, **headers)


def close(handler: Handler, _: dict[str, Any]) -> None:
    """Ends the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


def cut(handler: Handler, _: dict[str, Any]) -> None:
    """Ends the connection in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def stall(handler: Handler, _: dict[str, Any]) -> None:
    """Sends nothing, until the other side leaves."""
    handler.connection.settimeout(600)
    handler.connection.recv(1)
    handler.close_connection = True


def trickle(handler: Handler, _: dict[str, Any]) -> None:
    """Sends a space now and then, until the other side leaves."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)
