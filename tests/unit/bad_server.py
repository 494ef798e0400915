"""A server on this machine that behaves as bad servers and lines do."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nnunetv2_sam3d.weights.fetch import BLOCK, Published

CONTENT = bytes(range(256)) * 16_000
PUBLISHED = Published("sam_vit_b_01ec64.pth", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
HALF = 31 * BLOCK
Behaviour = Callable[[BaseHTTPRequestHandler], None]


def serve(content: bytes = CONTENT, *, stop_after: int | None = None, ranges: bool = True, **headers: str) -> Behaviour:
    """An answer with the content, or the range of it that is asked for; `stop_after` bytes the line breaks."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(asked[1]) if asked and ranges else 0
        request.send_response(206 if start else 200)
        said = {"Content-Length": str(len(content) - start)}
        if start:
            said["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for key, value in (said | {key.replace("_", "-"): value for key, value in headers.items()}).items():
            if value:
                request.send_header(key, value)
        request.end_headers()
        request.wfile.write(content[start:][:stop_after])

    return answer


def status(code: int) -> Behaviour:
    return lambda request: request.send_error(code)


def hang(seconds: float, *, after: int = 0) -> Behaviour:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if after:
            request.send_response(200)
            request.send_header("Content-Length", str(len(CONTENT)))
            request.end_headers()
            request.wfile.write(CONTENT[:after])
            request.wfile.flush()
        time.sleep(seconds)

    return answer


class Server(ThreadingHTTPServer):
    """Answers each request with the next behaviour, the last one for ever, and remembers what was asked."""

    daemon_threads = True

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours, self.ranges, self.paths = list(behaviours), list[str | None](), list[str]()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.ranges.append(self.headers.get("Range"))
                server.paths.append(self.path)
                behaviour = server.behaviours.pop(0) if len(server.behaviours) > 1 else server.behaviours[0]
                try:
                    behaviour(self)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has seen enough

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/mirror/"


@contextmanager
def servers() -> Iterator[Callable[..., Server]]:
    """A function that starts a server with the given behaviours; all end with the context."""
    running: list[Server] = []

    def start(*behaviours: Behaviour) -> Server:
        server = Server(*behaviours)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(server)
        return server

    try:
        yield start
    finally:
        for server in running:
            server.shutdown()
            server.server_close()
