"""Who is not answered, and how a refusal looks: a status and a sentence."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from nnunetv2_sam3d.inference.turns import Stopped
from nnunetv2_sam3d.server.leases import AllTaken, LeaseExpired
from nnunetv2_sam3d.server.served_models import VolumeTooLarge
from nnunetv2_sam3d.server.wire_format import TooLarge

DETAIL = "X-Detail"  # the sentence in ASCII
_log = logging.getLogger(__name__)


class Guard:
    """Lets nobody in who should not be: asks for the key, or without one answers this machine's programs only.

    A page of another site, open in a browser on this machine, can reach the server as well. It shows by its ``Origin``,
    or by the name under which it found the server (DNS rebinding).

    Args:
        app: what answers those who are let in.
        key: that they must show; ``None`` for no key.
        open_paths: which need no key.
    """

    def __init__(self, app: ASGIApp, key: str | None, open_paths: set[str]) -> None:
        self.app, self._key, self._open_paths = app, key, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As Starlette calls it."""
        refusal = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if origin is not None and _network_location(origin) != host:
            return error_response(403, f"requests of pages from {origin[:80]} are not answered")
        if self._key is None:
            if not is_loopback(_host_name(host)):
                return error_response(
                    403, f"without --api-key the server answers on this machine only, not as {host[:80]}"
                )
            return None
        shown = request.headers.get("authorization", "").encode("utf-8", "replace")
        if request.url.path in self._open_paths or secrets.compare_digest(shown, f"Bearer {self._key}".encode()):
            return None
        what = "this is not the server's key" if shown else "the server needs its key"
        detail = f"{what}: enter it in the viewer (API key), or as NN_INTERACTIVE_API_KEY"
        return error_response(401, detail, {"WWW-Authenticate": "Bearer"})


def _network_location(url: str) -> str | None:
    """Host and port of an address; ``None`` for what is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return None


def _host_name(host: str) -> str:
    """Without the port; empty for what is no host."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which no other one reaches."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def error_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A refusal; clients that show only the first line of an answer get the sentence there, see ``listening``."""
    first_line = detail.encode("ascii", "replace").decode()
    shown = {DETAIL: "".join(sign if sign.isprintable() else " " for sign in first_line)[:800]}
    return JSONResponse({"detail": detail}, status, headers={**(headers or {}), **shown})


def add_errors(app: FastAPI) -> None:
    """Every error becomes a status and a sentence; none ends the server."""

    async def refused(_: Request, error: Exception) -> JSONResponse:
        return error_response(400, str(error))

    async def too_large(_: Request, error: Exception) -> JSONResponse:
        return error_response(413, str(error))

    async def expired(_: Request, error: Exception) -> JSONResponse:
        return error_response(410, str(error))

    async def ending(_: Request, error: Exception) -> JSONResponse:
        return error_response(503, "the server is being stopped")

    async def full(_: Request, error: Exception) -> JSONResponse:
        return error_response(503, str(error), {"Retry-After": "10"})

    async def no_memory(_: Request, error: Exception) -> JSONResponse:
        _log.error("out of memory: %s", error)
        return error_response(413, "the server has not enough memory for this volume; crop it, or use a smaller one")

    async def defect(_: Request, error: Exception) -> JSONResponse:
        return error_response(500, f"the server failed at this ({type(error).__name__}); its log says more")

    async def gone(_: Request, error: Exception) -> JSONResponse:
        return error_response(400, "the body is cut off: the client disconnected")  # nobody reads it

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return error_response(error.status_code, str(error.detail), error.headers)

    for kind, handler in (
        (ValueError, refused),
        (TooLarge, too_large),
        (VolumeTooLarge, too_large),
        (LeaseExpired, expired),
        (AllTaken, full),
        (Stopped, ending),
        (MemoryError, no_memory),
        (torch.cuda.OutOfMemoryError, no_memory),
        (HTTPException, http),
        (ClientDisconnect, gone),
        (Exception, defect),
    ):
        app.add_exception_handler(kind, handler)
