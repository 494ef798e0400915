"""The browser's page and its requests: the same leases, sessions and limits as the viewers' protocol.

A browser sends files, so that the model's own reader reads them as ``predict`` would; voxels are those of the file,
(i, j, k) and (k, j, i). What it shows before the first click is the automatic result.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import FastAPI, Request, Response

from nnunetv2_sam3d.server.axis_order import AxisOrder
from nnunetv2_sam3d.server.browser_image import BrowserImage, Upload
from nnunetv2_sam3d.server.http_app import Service, body_of, json_of
from nnunetv2_sam3d.server.interactive_session import CheckAxes, InteractiveSession, box_of
from nnunetv2_sam3d.server.leases import Lease
from nnunetv2_sam3d.server.offer import Offer
from nnunetv2_sam3d.server.wire_format import WireError

SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_STATIC = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/input.js": ("input.js", "text/javascript"),
    "/page/server.js": ("server.js", "text/javascript"),
    "/page/view.js": ("view.js", "text/javascript"),
    "/page/niivue.js": ("niivue.js", "text/javascript"),
    "/page/licences.txt": ("licences.txt", "text/plain"),
}


@dataclass(frozen=True)
class PageFacts:
    """What the page tells its users.

    Attributes:
        model: for people.
        target: what the mask shows.
        channels: names of the image's channels, in their order.
        reader: nnU-Net's, of the plans.
        sentences: what else they should know, for instance of a model without clicks.
        check_axes: looks at the files' axes.
    """

    model: str
    target: str
    channels: Sequence[str]
    reader: Any
    sentences: Sequence[str] = ()
    check_axes: CheckAxes | None = None

    @classmethod
    def of(cls, offer: Offer) -> PageFacts:
        """Those of an open model."""
        sentences = []
        if not offer.takes_clicks:
            sentences = [
                "The model was trained without clicks: a click shows the connected structure that it found there."
            ]
        elif not offer.background_clicks:
            sentences = ["The model was trained without background clicks: right clicks are refused."]
        reader = offer.plans.image_reader_writer_class()
        name = f"{offer.plans.dataset_name}, {offer.model.name}"
        return cls(name, offer.target.name, offer.channels or ["image"], reader, sentences, offer.check_file)


@dataclass
class _Shown:
    """What one page has: the channels that have come so far, the image, and the mask that it shows, (z, y, x)."""

    uploads: list[Upload] = field(default_factory=list)
    image: BrowserImage | None = None
    mask: np.ndarray | None = None


def _page_of(lease: Lease) -> _Shown:
    if lease.page is None:
        lease.page = _Shown()
    page: _Shown = lease.page
    return page


def add_page(app: FastAPI, facts: PageFacts) -> None:
    """Adds the page and its requests to a server of :func:`~nnunetv2_sam3d.server.http_app.create_app`."""
    service: Service = app.state.service
    _add_files(app, service)

    @app.get("/page/model")
    async def model() -> dict[str, Any]:
        return {
            "name": facts.model,
            "target": facts.target,
            "channels": list(facts.channels),
            "image_bytes": service.served.image_bytes,
            "sentences": list(facts.sentences),
        }

    _add_image(app, service, facts)
    _add_clicks(app, service)
    _add_downloads(app, service, facts)


def _add_files(app: FastAPI, service: Service) -> None:
    """The page's own files, which hold nothing secret: a browser cannot show a key before it has them."""
    folder = files(__package__).joinpath("page")
    for path, (name, kind) in _STATIC.items():
        content = folder.joinpath(name).read_bytes()
        packed = gzip.compress(content, 6) if len(content) > 1 << 16 else None
        app.add_api_route(path, _file(content, packed, kind), methods=["GET"])
        service.open_paths.add(path)


def _file(content: bytes, packed: bytes | None, kind: str) -> Callable[..., Any]:
    """Answers with a file, compressed where the browser takes that."""
    headers = SECURITY | {"Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        if packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, media_type=kind, headers=headers | {"Content-Encoding": "gzip"})
        return Response(content, media_type=kind, headers=headers)

    return answer


def _add_image(app: FastAPI, service: Service, facts: PageFacts) -> None:
    @app.post("/page/image")
    async def image(request: Request) -> Response:
        """Takes the file of one channel; the last one begins the automatic prediction."""
        name, channel = request.query_params.get("name", ""), request.query_params.get("channel", "")
        async with service.turn(request) as lease:
            page, most = _page_of(lease), service.served.image_bytes
            if channel == "0":
                page.uploads = []
            if channel != str(len(page.uploads)) or len(page.uploads) >= len(facts.channels):
                raise WireError(f"the channels must come in their order: {', '.join(facts.channels)}")
            kept = sum(len(upload.content) for upload in page.uploads)
            page.uploads.append(Upload.named(name, await body_of(request, most - kept)))
            if len(page.uploads) < len(facts.channels):
                return Response(_line({"complete": False}))
            uploads, page.uploads = page.uploads, []
            work = partial(_open, page=page, uploads=uploads, facts=facts, most=most)
            return await service.compute(lease, work, request)


def _open(session: InteractiveSession, page: _Shown, uploads: list[Upload], facts: PageFacts, most: int) -> Response:
    page.image = page.mask = None
    image, voxels = BrowserImage.read(uploads, facts.reader, most)
    session.axes = AxisOrder()  # the model's reader gave the axes
    session.set_image(voxels, image.spacing, facts.check_axes)
    page.image = image
    return _answer(session, page)


def _add_clicks(app: FastAPI, service: Service) -> None:
    @app.post("/page/clicks")
    async def clicks(request: Request) -> Response:
        """Adds clicks, all of them or none."""
        async with service.turn(request) as lease:
            page = _page_of(lease)
            listed = _clicks_in(await json_of(request))
            return await service.compute(lease, partial(_add, page=page, clicks=listed))

    @app.post("/page/undo")
    async def undo(request: Request) -> Response:
        async with service.turn(request) as lease:
            return await service.compute(lease, partial(_change, page=_page_of(lease), change=InteractiveSession.undo))

    @app.post("/page/reset")
    async def reset(request: Request) -> Response:
        async with service.turn(request) as lease:
            return await service.compute(lease, partial(_change, page=_page_of(lease), change=InteractiveSession.reset))


def _clicks_in(content: dict[str, Any]) -> list[tuple[list[float], bool]]:
    """(i, j, k) of the file and whether the structure is there, for each click of a request."""
    listed = content.get("clicks")
    wanted = 'the clicks are a list of {"voxel": [i, j, k], "foreground": true or false}'
    if not isinstance(listed, list) or not listed:
        raise WireError(wanted)
    found = []
    for click in listed:
        voxel = click.get("voxel") if isinstance(click, dict) else None
        if not isinstance(voxel, list) or len(voxel) != 3 or not isinstance(click.get("foreground"), bool):
            raise WireError(wanted)
        if not all(type(place) in (int, float) and abs(place) < 1e6 for place in voxel):
            raise WireError(f"a voxel is three numbers, got {str(voxel):.80}")
        found.append((voxel, click["foreground"]))
    return found


def _add(session: InteractiveSession, page: _Shown, clicks: list[tuple[list[float], bool]]) -> Response:
    image, added = _image_of(page), 0
    try:
        for voxel, foreground in clicks:
            session.add_click(image.voxel(voxel), foreground)
            added += 1
    except Exception:
        for _ in range(added):
            session.undo()
        raise
    return _answer(session, page)


def _change(session: InteractiveSession, page: _Shown, change: Callable[[InteractiveSession], Any]) -> Response:
    _image_of(page)
    change(session)
    return _answer(session, page)


def _image_of(page: _Shown) -> BrowserImage:
    if page.image is None:
        raise ValueError("there is no image yet: open one first")
    return page.image


def _mask_of(session: InteractiveSession) -> np.ndarray:
    """What the page shows: the automatic result until there are clicks."""
    if session.automatic is not None and not session.clicks:
        return session.automatic
    return session.mask


def _answer(session: InteractiveSession, page: _Shown) -> Response:
    """A line of JSON, and the mask in the box in which it differs from what the page shows, along (k, j, i)."""
    image, mask = _image_of(page), _mask_of(session)
    own = image.in_file_order(mask)
    box = box_of(own if page.mask is None else own != image.in_file_order(page.mask))
    page.mask = mask.copy()
    millilitres = float(np.count_nonzero(mask) * np.prod(image.spacing) / 1000)
    head = {
        "complete": True,
        "box": box,
        "clicks": [{"voxel": image.file_voxel(click.zyx), "foreground": click.sign > 0} for click in session.clicks],
        "target_ml": millilitres,
        "middle": None if session.clicks else _middle(own),
        "sentences": [session.warning] if session.warning else [],
    }
    labels = b"" if box is None else own[tuple(slice(*ends) for ends in box)].astype(np.uint8).tobytes()
    body = gzip.compress(_line(head) + labels, 1)
    return Response(body, media_type="application/octet-stream", headers={"Content-Encoding": "gzip"})


def _middle(mask: np.ndarray) -> list[int] | None:
    """A voxel (i, j, k) in the mask (k, j, i), where it is widest; ``None`` for an empty one."""
    if not mask.any():
        return None
    k = int(np.argmax(np.count_nonzero(mask, axis=(1, 2))))
    inside = np.argwhere(mask[k])
    j, i = inside[np.argmin(((inside - inside.mean(0)) ** 2).sum(1))].tolist()
    return [i, j, k]


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _add_downloads(app: FastAPI, service: Service, facts: PageFacts) -> None:
    def mask_file(session: InteractiveSession, page: _Shown) -> Response:
        image = _image_of(page)
        return _download(*image.mask_file(session.model.segmentation(session.clicks)), "application/gzip")

    def click_file(session: InteractiveSession, page: _Shown) -> Response:
        return _download(*_image_of(page).click_file(session.clicks, facts.model), "application/json")

    def route(work: Callable[[InteractiveSession, _Shown], Response]) -> Callable[..., Any]:
        async def answer(request: Request) -> Response:
            async with service.turn(request) as lease:
                page = _page_of(lease)
                return await service.compute(lease, lambda session: work(session, page))

        return answer

    app.add_api_route("/page/mask", route(mask_file), methods=["GET"])
    app.add_api_route("/page/saved-clicks", route(click_file), methods=["GET"])


def _download(name: str, content: bytes, kind: str) -> Response:
    return Response(
        content, media_type=kind, headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
    )
