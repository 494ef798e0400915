"""The protocol of interactive viewers over HTTP: each request is checked, handed to its session, and answered.

What is computed runs in worker threads, so that the event loop answers heartbeats and other clients meanwhile. The
requests of one client follow one another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response

from nnunetv2_sam3d.inference.turns import Stopped
from nnunetv2_sam3d.memory.model import available_bytes
from nnunetv2_sam3d.server.interactive_session import Change, InteractiveSession
from nnunetv2_sam3d.server.leases import Lease, Leases
from nnunetv2_sam3d.server.offer import Offer
from nnunetv2_sam3d.server.refusals import Guard, add_errors
from nnunetv2_sam3d.server.wire_format import TooLarge, WireError, pack, parse_table, unpack, write_meta

LEASE, META = "X-Lease-Token", "X-Meta"
BINARY = "application/octet-stream"
MOST_IMAGE_BYTES = 4 << 30
PROTOCOL = "2.6.0"  # of the clients that it was written for
_JSON_BYTES = 64 << 10
_STALLED_S = 120.0  # without a byte of a body
_REAP_S = 5.0
_LOOK_S = 1.0  # whether a client is still there
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """What the server says of itself.

    Attributes:
        title: model and target, for people.
        patch_size: of the model, (z, y, x).
        facts: what else the capabilities say; the viewers do not read it.
        image_bytes: that an unpacked image may have.
        licence: of the model, and what else people must know: 3D Slicer and napari show it as long as they are
            connected, and nothing else of a good answer.
        api_key: that clients must show; ``None`` for no key.
    """

    title: str
    patch_size: Sequence[int]
    facts: Mapping[str, Any] = field(default_factory=dict)
    image_bytes: int = MOST_IMAGE_BYTES
    licence: str = "that of its training data and weights"
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, offer: Offer, api_key: str | None = None) -> Served:
        """What there is to say of an open model; an image may take a quarter of the memory that is free."""
        facts = {
            "target": offer.target.name,
            "voxel_size": offer.spacing,
            "axes": offer.axes.name,
            "flip": offer.axes.flipped,
            "clicks": offer.takes_clicks,
            "background_clicks": offer.background_clicks,
            "clicks_in_words": offer.clicks_in_words,
        }
        most = min(MOST_IMAGE_BYTES, (available_bytes() or 4 * MOST_IMAGE_BYTES) // 4)
        title = f"{offer.plans.dataset_name}, {offer.model.name}"
        licence = f"{cls.licence}. {offer.axes_in_words}"
        return cls(title, offer.patch_size, facts, image_bytes=most, licence=licence, api_key=api_key)


class Service:
    """The sessions and the threads that compute for them; what the routes of the protocol and of the page share."""

    def __init__(self, leases: Leases, served: Served) -> None:
        self.leases, self.served = leases, served
        self.open_paths = {"/healthz"}  # which need no key
        self._threads = ThreadPoolExecutor(leases.most, thread_name_prefix="session")
        self._works: set[Future[Any]] = set()

    def close(self) -> None:
        """Lets the threads end; what has not begun is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def left_behind(self) -> int:
        """Predictions that go on for clients that are gone."""
        return max(0, self._running() - sum(bool(lease.busy) for lease in self.leases))

    @property
    def working(self) -> bool:
        """Whether something is computed, also for a client that is gone."""
        return self._running() > 0

    def _running(self) -> int:
        return sum(work.running() for work in list(self._works))  # other threads take theirs out

    def lease(self, request: Request) -> Lease:
        """The lease that a request shows; 410 for none."""
        return self.leases.find(request.headers.get(LEASE))

    @asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[Lease]:
        """A request's lease for itself: requests of one client wait for one another."""
        lease = self.lease(request)
        self.leases.use(lease)
        async with lease.lock:
            yield self.lease(request)

    async def compute(self, lease: Lease, work: Callable[[InteractiveSession], T], request: Request | None = None) -> T:
        """Runs something with the session in a thread; the lease cannot expire meanwhile.

        Args:
            lease: whose session it is.
            work: what is run.
            request: if its client disconnects before the end, the session ends, and the work with it.
        """
        future = self._threads.submit(work, lease.session)
        self._works.add(future)
        future.add_done_callback(self._works.discard)
        lease.busy += 1
        result = asyncio.wrap_future(future)
        try:
            while request is not None and not (await asyncio.wait({result}, timeout=_LOOK_S))[0]:
                if await request.is_disconnected():
                    _log.warning("a client left while it was waited for: its session ends")
                    self.leases.release(lease.token)
                    request = None
            return await result
        except Stopped:
            self.leases.find(lease.token)  # says that the session has ended, if it has, and not the server
            raise
        finally:
            lease.busy -= 1
            self.leases.use(lease)

    async def predict(self, request: Request, lease: Lease, work: Callable[[InteractiveSession], Change]) -> Response:
        """Runs a prediction and answers it; takes it back if the client did not wait for it, and so never saw it."""
        before, start = len(lease.session.clicks), time.perf_counter()
        change = await self.compute(lease, work)
        _log.info("%s: %s in %.2f s", request.url.path, _size_of(change), time.perf_counter() - start)
        if await request.is_disconnected() and len(lease.session.clicks) > before:
            lease.session.undo()
            _log.warning("a client did not wait for the answer to its click, which is taken back")
        return await self.compute(lease, partial(change_response, change=change))


def _size_of(change: Change) -> str:
    if change.values is None:
        return "no voxel changed"
    return f"a box of {' x '.join(map(str, change.values.shape))} voxels changed"


def change_response(session: InteractiveSession, change: Change) -> Response:
    """A change of the mask as the clients read it."""
    meta: dict[str, Any] = {"ran_prediction": change.ran, "bbox": change.box}
    body = b""
    if change.box is not None and change.values is not None:
        body = pack(change.values)
        meta |= {"dtype": "uint8", "shape": list(change.values.shape)}
    if session.warning:
        meta["warning"] = session.warning
    return Response(body, media_type=BINARY, headers={META: write_meta(meta)})


async def body_of(request: Request, most_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        TooLarge: as soon as it is known to be longer.
        WireError: if nothing comes for long.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced[:20]) > most_bytes:
        raise TooLarge(f"the body has more than {most_bytes} bytes")
    parts: list[bytes] = []
    length, stream = 0, request.stream().__aiter__()
    while True:
        try:
            part = await asyncio.wait_for(stream.__anext__(), _STALLED_S)
        except StopAsyncIteration:
            return b"".join(parts)
        except asyncio.TimeoutError as error:  # its own class before Python 3.11
            raise WireError(f"the body did not arrive: no byte for {_STALLED_S:g} s") from error
        length += len(part)
        if length > most_bytes:
            raise TooLarge(f"the body has more than {most_bytes} bytes")
        parts.append(part)


async def json_of(request: Request) -> dict[str, Any]:
    """The JSON table in a request's body."""
    return parse_table(await body_of(request, _JSON_BYTES), "the body")


def capabilities(served: Served) -> dict[str, Any]:
    """What the clients ask a server about: points are taken, nothing else."""
    return {
        "supported_interactions": {
            "points": True,
            "bbox2d": False,
            "bbox3d": False,
            "scribble": False,
            "lasso": False,
        },
        "channel_mapping": {"prev_seg": 0, "points": [3, 4]},
        "num_interaction_channels": 7,
        "supports_initial_label": False,
        "supports_zero_shot_label_refinement": False,
        "preferred_scribble_thickness": [2, 2, 2],
        "interaction_decay": None,
        "patch_size": list(served.patch_size),
        "do_autozoom": False,
        "inference_session_version": PROTOCOL,
        "license": served.licence,
        "supports_undo": True,
        "model": served.title,
        **served.facts,
    }


def create_app(leases: Leases, served: Served) -> FastAPI:
    """The server.

    ``app.state.service`` is the :class:`Service`, for routes that are added to it.

    Args:
        leases: makes the sessions.
        served: what the server says of itself, and its limits.
    """
    service = Service(leases, served)

    @asynccontextmanager
    async def reaping(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_reap(leases))
        try:
            yield
        finally:
            task.cancel()
            service.close()

    app = FastAPI(title="nnunetv2_sam3d", lifespan=reaping, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service = service
    add_errors(app)
    app.add_middleware(Guard, key=served.api_key, open_paths=service.open_paths)
    _add_lease_routes(app, service)
    _add_image_routes(app, service)
    _add_prompt_routes(app, service)
    return app


async def _reap(leases: Leases) -> None:
    while True:
        await asyncio.sleep(_REAP_S)
        if ended := leases.expire():
            _log.info("%d session(s) ended: their clients were idle or gone", len(ended))


def _add_lease_routes(app: FastAPI, service: Service) -> None:
    leases = service.leases

    @app.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/capabilities")
    async def about() -> dict[str, Any]:
        return capabilities(service.served)

    @app.post("/claim")
    async def claim() -> dict[str, Any]:
        lease = leases.claim(left_behind=service.left_behind)
        return {
            "lease_token": lease.token,
            "idle_timeout_seconds": leases.idle_s,
            "liveness_timeout_seconds": leases.liveness_s,
            "max_sessions": leases.most,
        }

    @app.post("/heartbeat")
    async def heartbeat(request: Request) -> dict[str, float]:
        return {"remaining_seconds": leases.remaining_s(service.lease(request))}

    @app.get("/lease_status")
    async def lease_status(request: Request) -> dict[str, float]:
        lease = leases.find(request.headers.get(LEASE), alive=False)
        return {"remaining_seconds": leases.remaining_s(lease), "idle_timeout_seconds": leases.idle_s}

    @app.post("/release")
    async def release(request: Request) -> dict[str, bool]:
        leases.release(request.headers.get(LEASE))
        return {"released": True}


def _add_image_routes(app: FastAPI, service: Service) -> None:
    @app.post("/set_image")
    async def set_image(request: Request) -> dict[str, Any]:
        async with service.turn(request) as lease:
            meta = parse_table(request.headers.get(META, ""), f"the header {META}")
            properties = meta.get("image_properties")
            spacing = properties.get("spacing") if isinstance(properties, dict) else None
            if not isinstance(spacing, list):
                raise WireError(f'the header {META} needs {{"image_properties": {{"spacing": [k, j, i]}}}}, in mm')
            body = await body_of(request, service.served.image_bytes)

            def work(session: InteractiveSession) -> tuple[int, ...]:
                image = unpack(body, service.served.image_bytes, ndim=4)
                session.set_image(image, spacing)
                return image.shape

            start = time.perf_counter()
            shape = await service.compute(lease, work, request)
            size = " x ".join(map(str, shape[1:]))
            _log.info("a volume of %s voxels was predicted in %.1f s", size, time.perf_counter() - start)
            reply: dict[str, Any] = {"original_image_shape": shape}
            if lease.session.warning:
                _log.warning("%s", lease.session.warning)
                reply["warning"] = lease.session.warning
            return reply

    @app.post("/set_target_buffer")
    async def set_target_buffer(request: Request) -> dict[str, Any]:
        async with service.turn(request) as lease:
            content = await json_of(request)
            shape = list(lease.session.mask.shape)
            if content.get("shape") != shape:
                raise WireError(f"the mask's shape must be the volume's, {shape}, got {str(content.get('shape')):.80}")
            await service.compute(lease, InteractiveSession.reset)
            return {}

    @app.post("/reset_interactions")
    async def reset_interactions(request: Request) -> dict[str, Any]:
        async with service.turn(request) as lease:
            await service.compute(lease, InteractiveSession.reset)
            return {}

    @app.post("/set_do_autozoom")
    async def set_do_autozoom(request: Request) -> dict[str, Any]:
        async with service.turn(request):
            await json_of(request)  # a model sees one voxel size: there is nothing to zoom
            return {}


def _add_prompt_routes(app: FastAPI, service: Service) -> None:
    @app.post("/add_point_interaction")
    async def add_point(request: Request) -> Response:
        async with service.turn(request) as lease:
            content = await json_of(request)
            voxel, positive = content.get("coordinates"), content.get("include_interaction")
            now = content.get("run_prediction", True)
            if not isinstance(voxel, list) or not isinstance(positive, bool) or not isinstance(now, bool):
                raise WireError(
                    'a point needs "coordinates" [k, j, i], "include_interaction" and "run_prediction" (true or false)'
                )
            work = partial(InteractiveSession.add_click, voxel=voxel, positive=positive, predict=now)
            return await service.predict(request, lease, work)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        async with service.turn(request) as lease:
            await json_of(request)
            return await service.predict(request, lease, InteractiveSession.predict)

    @app.post("/undo")
    async def undo(request: Request) -> Response:
        async with service.turn(request) as lease:
            return await service.predict(request, lease, InteractiveSession.undo)

    async def unsupported(request: Request) -> Response:
        async with service.turn(request):
            raise WireError("this model takes points only: no boxes, scribbles, lassos and initial segmentations")

    for name in ("bbox", "scribble", "lasso", "initial_seg"):
        app.add_api_route(f"/add_{name}_interaction", unsupported, methods=["POST"])
