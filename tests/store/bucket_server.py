"""An S3 server on this machine for tests, which counts requests and gives faults: errors, silence, half answers, damage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from s3_server import S3Application
from werkzeug.serving import WSGIRequestHandler, make_server

SILENCE = 5.0  # seconds, longer than clients of tests wait


class Request(NamedTuple):
    """One request of a client."""

    method: str
    name: str  # with the bucket


class BucketServer:
    """Answers of an application, one at a time, so that a put of a new name is atomic. `fault` may name one for a request."""

    def __init__(self, app: Callable[..., Iterable[bytes]] | None = None) -> None:
        self.requests, self.fault = list[Request](), self.no_fault
        self.app, self.lock = app or S3Application(), threading.Lock()
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True, request_handler=_QuietHandler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    @staticmethod
    def no_fault(request: Request) -> str:
        return ""

    def answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/"))
        self.requests.append(request)
        fault = self.fault(request)
        if fault in ("error", "silence"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            time.sleep(SILENCE if fault == "silence" else 0)
            start("500 Internal Server Error", [])
            return [b""]
        if fault == "missing":  # as servers answer that are no S3 servers
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("404 Not Found", [("Content-Length", "0")])
            return [b""]
        if fault == "broken upload":  # the connection ends before the content was read
            raise ConnectionAbortedError
        kept: list[Any] = []
        with self.lock:
            body = b"".join(self.app(environ, lambda status, headers, *rest: kept.extend((status, headers))))
        if fault == "lost answer":  # a put stays, and its client gets an error
            start("500 Internal Server Error", [])
            return [b""]
        if fault == "broken download":
            body = body[: len(body) // 2]  # of the announced length
        if fault == "damage" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        start(*kept)
        return [body]

    @contextmanager
    def running(self) -> Iterator[BucketServer]:
        thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()


class _QuietHandler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""
