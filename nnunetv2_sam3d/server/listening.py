"""Answering on a port until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from nnunetv2_sam3d.server.refusals import DETAIL

_GRACE_S = 3  # for answers that are on their way when the server ends
_MOST_AT_ONCE = 100  # connections
_HEADER_BYTES = 64 << 10


class _FirstLine(h11.Connection):
    """Puts the sentence of a refusal into the first line of the answer.

    The viewers' client raises an error with that line, which the viewers show; the sentence in the body they do not.
    """

    def send(self, event: Any) -> Any:
        """As h11 has it."""
        if isinstance(event, h11.Response) and event.status_code >= 400:
            reason = next((value for name, value in event.headers if name == DETAIL.lower().encode()), event.reason)
            event = h11.Response(status_code=event.status_code, headers=event.headers, reason=reason)
        return super().send(event)


class _Protocol(H11Protocol):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _FirstLine(h11.SERVER, _HEADER_BYTES)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: if the port is taken, or the host is not this machine's, with what helps.
    """
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {host}, port {port}: {reason}. Choose another one: --port, --host") from error
    # its connections inherit it; otherwise each answer's second packet waits 40 ms for the client's receipt
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop = stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stop()
        super().handle_exit(sig, frame)


def serve(app: FastAPI, listener: socket.socket, stop: Callable[[], None]) -> None:
    """Answers until SIGINT or SIGTERM.

    Args:
        app: what answers.
        listener: from :func:`bind`.
        stop: called when the signal comes; lets predictions end soon.

    Raises:
        KeyboardInterrupt: after SIGINT, when the server has ended.
    """
    server_of(app, stop).run(sockets=[listener])


def server_of(app: FastAPI, stop: Callable[[], None]) -> uvicorn.Server:
    """The server of :func:`serve`, which another thread may run and end."""
    return _Server(
        uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_AT_ONCE,
            timeout_graceful_shutdown=_GRACE_S,
        ),
        stop,
    )
