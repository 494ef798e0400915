"""A server on this machine that speaks the Hugging Face Hub's protocol, and can break off and lie."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves one repository.

    Attributes:
        repository: its name.
        files: content by name.
        sent: content that is sent in place of what is announced, by name.
        stops: after how many bytes the next answers break off; ``None`` for a whole one, which follows for ever.
        status: an error with which everything is answered.
        asked: method, path and range of every request.
    """

    daemon_threads = True

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository, self.files = repository, files
        self.sent: dict[str, bytes] = {}
        self.stops: list[int | None] = []
        self.status: int | None = None
        self.asked: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self) -> list[str | None]:
        """The ranges of all transfers."""
        return [asked for method, path, asked in self.asked if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the tests' output."""

    def _answer(self) -> None:
        hub = self.server
        hub.asked.append((self.command, self.path, self.headers.get("Range")))
        repository, _, name = self.path.removeprefix("/").partition("/resolve/main/")
        if hub.status is not None:
            self._error(hub.status, None)
        elif repository != hub.repository:
            self._error(404, "RepoNotFound")
        elif name not in hub.files:
            self._error(404, "EntryNotFound")
        else:
            self._send(name)

    def _error(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, name: str) -> None:
        announced = self.server.files[name]
        content = self.server.sent.get(name, announced)
        digest = hashlib.sha256(announced).hexdigest()
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        headers = {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(announced))}
        headers |= {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes", "Content-Length": str(len(content) - start)}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            stop = self.server.stops.pop(0) if self.server.stops else None
            self.wfile.write(content[start : None if stop is None else start + stop])
            if stop is not None:
                self.close_connection = True


@contextmanager
def serving(repository: str, files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub for as long as the context lasts."""
    with Hub(repository, files) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
