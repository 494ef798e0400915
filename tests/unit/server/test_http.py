"""The protocol over HTTP: refusals with a sentence, keys, limits, requests during predictions, mutated requests."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_kit import KEY, SPACING, serving

from nnunetv2_sam3d.server.axis_order import AxisOrder
from nnunetv2_sam3d.server.interactive_session import InteractiveSession
from nnunetv2_sam3d.server.offer import Offer
from nnunetv2_sam3d.server.wire_format import pack, unpack

POINT = {"coordinates": [4, 12, 7], "include_interaction": True, "run_prediction": True}
META = json.dumps({"image_properties": {"spacing": SPACING}})


@pytest.fixture(scope="module")
def url(offer: Offer) -> Iterator[str]:
    with serving(offer, most=8) as (url, _):
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    """A client with a lease."""
    with httpx.Client(base_url=url, timeout=60) as client:
        client.headers["X-Lease-Token"] = client.post("/claim").json()["lease_token"]
        yield client
        assert client.post("/release").json() == {"released": True}


def send(client: httpx.Client, volume: np.ndarray, meta: str = META) -> httpx.Response:
    return client.post("/set_image", content=pack(volume), headers={"X-Meta": meta})


def test_what_the_capabilities_say(client: httpx.Client, offer: Offer) -> None:
    about = client.get("/capabilities").json()
    assert [name for name, there in about["supported_interactions"].items() if there] == ["points"]
    assert about["supports_undo"] is True and about["supports_initial_label"] is False
    assert about["target"] == "tumour" and about["voxel_size"] == [1.5, 1, 1] and about["patch_size"] == [8, 8, 8]
    assert about["background_clicks"] is True and "foreground clicks" in about["clicks_in_words"]


def test_a_sitting(client: httpx.Client, volume: np.ndarray, offer: Offer) -> None:
    assert client.post("/set_do_autozoom", json={"do_autozoom": True}).json() == {}  # before any image
    assert client.post("/reset_interactions", json={}).json() == {}
    assert send(client, volume).json() == {"original_image_shape": list(volume.shape)}
    assert client.post("/set_target_buffer", json={"shape": list(volume.shape[1:]), "dtype": "uint8"}).json() == {}
    reply = client.post("/add_point_interaction", json=POINT)
    meta = json.loads(reply.headers["X-Meta"])
    session = offer.new_session()
    session.set_image(volume, SPACING)
    session.add_click((4, 12, 7))
    part = tuple(slice(*ends) for ends in meta["bbox"])
    np.testing.assert_array_equal(unpack(reply.content, 1 << 20, 3), session.mask[part])
    assert meta["ran_prediction"] and meta["shape"] == list(session.mask[part].shape)
    waiting = client.post("/add_point_interaction", json=POINT | {"run_prediction": False})
    assert json.loads(waiting.headers["X-Meta"]) == {"ran_prediction": False, "bbox": None} and not waiting.content
    assert json.loads(client.post("/predict", json={"force_full_refine": True}).headers["X-Meta"])["ran_prediction"]
    undone = [json.loads(client.post("/undo", json={}).headers["X-Meta"])["ran_prediction"] for _ in range(3)]
    assert undone == [True, True, False]
    assert client.get("/lease_status").json()["idle_timeout_seconds"] == 600


def test_the_viewers_client_sees_what_a_background_click_clears(url: str, volume: np.ndarray, offer: Offer) -> None:
    remote = pytest.importorskip("nnInteractive.inference.remote.remote_session")
    with remote.nnInteractiveRemoteInferenceSession(url) as viewer:
        viewer.set_image(volume, {"spacing": SPACING})
        buffer, session = np.zeros(volume.shape[1:], np.uint8), offer.new_session()
        session.set_image(volume, SPACING)
        viewer.set_target_buffer(buffer)
        for voxel, positive in (([4, 12, 7], True), ([2, 3, 15], False), ([5, 11, 8], False)):
            before = buffer.copy()
            viewer.add_point_interaction(voxel, positive)
            session.add_click(voxel, positive)
            np.testing.assert_array_equal(buffer, session.mask)
            assert positive or (before > buffer).any()
        with pytest.raises(httpx.HTTPStatusError, match="lies outside the volume"):
            viewer.add_point_interaction([40, 0, 0], True)


@pytest.mark.parametrize("confirm", [False, True])
def test_a_volume_whose_axes_cannot_be_told(
    confirm: bool, served_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning is in the log, in the answer, and in what the viewers' unmodified client shows if it is asked for."""
    remote = pytest.importorskip("nnInteractive.inference.remote.remote_session")
    cube, properties = np.zeros((1, 12, 12, 12), np.int16), {"spacing": (2.0, 2.0, 2.0)}
    with serving(Offer(served_model, confirm_axes=confirm)) as (url, _):
        if confirm:
            with remote.nnInteractiveRemoteInferenceSession(url) as viewer:
                with pytest.raises(httpx.HTTPStatusError, match="do not tell its axes apart: .* send it again"):
                    viewer.set_image(cube, properties)
        with remote.nnInteractiveRemoteInferenceSession(url) as viewer:
            viewer.set_image(cube, properties)
        with httpx.Client(base_url=url) as client:
            client.headers["X-Lease-Token"] = client.post("/claim").json()["lease_token"]
            reply = send(client, cube, json.dumps({"image_properties": properties})).json()
    assert "do not tell its axes apart" in reply["warning"]
    assert "do not tell its axes apart" in caplog.text


def test_the_viewers_are_told_how_volumes_must_lie(served_model: Path) -> None:
    """In the one text of a good answer that 3D Slicer and napari show: what they take for the model's licence."""
    remote = pytest.importorskip("nnInteractive.inference.remote.remote_session")
    axes = AxisOrder.parse("ikj")
    for options, words in (
        ({}, "is refused .* cannot be judged is taken"),
        ({"confirm_axes": True}, "is refused .* cannot be judged has to be sent twice"),
        ({"refuse_axes": False}, "another order is taken"),
    ):
        offer = Offer(served_model, axes=axes, **options)
        with serving(offer) as (url, _), remote.nnInteractiveRemoteInferenceSession(url) as viewer:
            assert re.search(
                rf"training data and weights\. .*1 x 1 x 3 mm .* along k, j, i\): .*{words}", viewer.license
            )


def test_refusals_have_a_sentence(client: httpx.Client, volume: np.ndarray) -> None:
    def refused(reply: httpx.Response, words: str, status: int = 400) -> None:
        assert reply.status_code == status and words in reply.json()["detail"], reply.text
        assert words in reply.reason_phrase  # which the viewers' client shows

    refused(client.post("/add_point_interaction", json=POINT), "there is no image yet")
    refused(client.post("/set_target_buffer", json={"shape": [1, 1, 1]}), "there is no image yet")
    refused(send(client, volume, "{}"), "X-Meta")
    refused(send(client, volume, '{"image_properties": {"spacing": [1, 1, "x"]}}'), "three finite numbers")
    refused(send(client, volume, "x"), "no JSON")
    refused(send(client, volume[0]), "4 axes, got 3")
    refused(send(client, volume, json.dumps({"image_properties": {"spacing": SPACING[::-1]}})), "--axes ikj")
    refused(send(client, np.zeros((1, 300, 300, 300), np.uint8)), "more than", 413)
    refused(client.post("/set_image", content=b"\0" * (1 << 24) + b"\0"), "X-Meta")
    refused(client.post("/set_image", content=b"\0" * (1 << 24) + b"\0", headers={"X-Meta": META}), "more than", 413)
    refused(
        client.post("/set_image", content=(b"\0" * 65536 for _ in range(300)), headers={"X-Meta": META}), "more", 413
    )
    send(client, volume)
    refused(client.post("/set_target_buffer", json={"shape": [1, 2, 3]}), "must be the volume's")
    refused(client.post("/add_point_interaction", json=POINT | {"coordinates": [99, 0, 0]}), "outside the volume")
    refused(client.post("/add_point_interaction", json=POINT | {"coordinates": "x"}), "a point needs")
    refused(client.post("/add_point_interaction", json=POINT | {"include_interaction": 1}), "a point needs")
    refused(client.post("/add_point_interaction", content="[" * 60_000), "no JSON")
    refused(client.post("/add_point_interaction", content=" " * 70_000), "more than", 413)
    for name in ("bbox", "scribble", "lasso", "initial_seg"):
        refused(client.post(f"/add_{name}_interaction", json={}), "points only")
    assert client.get("/nowhere").status_code == 404 and client.get("/undo").status_code == 405
    for path in ("undo", "set_image", "heartbeat", "lease_status"):
        kind = "GET" if path == "lease_status" else "POST"
        refused(client.request(kind, f"/{path}", headers={"X-Lease-Token": "other"}), "connect again", 410)


def test_keys(offer: Offer) -> None:
    with serving(offer, KEY) as (url, leases), httpx.Client(base_url=url) as client:
        assert client.get("/healthz").json() == {"ok": True}
        for shown in (
            {},
            {"Authorization": KEY},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": b"Bearer \xff"},
        ):
            reply = client.post("/claim", headers=shown)  # type: ignore[arg-type]
            assert reply.status_code == 401 and "key" in reply.json()["detail"] and KEY not in reply.text
        assert len(leases) == 0
        assert client.post("/claim", headers={"Authorization": f"Bearer {KEY}", "Host": "lab.example"}).is_success


def test_pages_of_other_sites_are_not_answered(url: str) -> None:
    own = url.removeprefix("http://")
    for headers, status in (
        ({"Origin": url}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),  # a name that was bound to this address
        ({"Host": own.replace("127.0.0.1", "localhost")}, 200),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://["}, 403),
    ):
        assert httpx.get(f"{url}/capabilities", headers=headers).status_code == status


class HeldUploads:
    """Volumes that are sent wait with their prediction until they may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        original = InteractiveSession.set_image

        def slow(session: InteractiveSession, image: np.ndarray, spacing: list[float]) -> str | None:
            self.begun.set()
            self.go_on.wait(30)
            return original(session, image, spacing)

        monkeypatch.setattr(InteractiveSession, "set_image", slow)


def test_several_clients_and_heartbeats_during_a_prediction(
    client: httpx.Client, url: str, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with httpx.Client(base_url=url, timeout=60) as other:
        other.headers["X-Lease-Token"] = other.post("/claim").json()["lease_token"]
        send(other, volume)
        held = HeldUploads(monkeypatch)
        replies: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: replies.append(send(client, volume)))
        thread.start()
        assert held.begun.wait(30)
        start = time.perf_counter()
        assert httpx.get(f"{url}/healthz").is_success
        heartbeat = httpx.post(f"{url}/heartbeat", headers=dict(client.headers) | {"host": url.removeprefix("http://")})
        assert heartbeat.json()["remaining_seconds"] > 0
        assert other.post("/add_point_interaction", json=POINT).is_success
        assert other.post("/undo", json={}).is_success and not replies
        assert time.perf_counter() - start < 20
        held.go_on.set()
        thread.join()
        assert replies[0].is_success
        other.post("/release")


def test_full_and_expired(offer: Offer) -> None:
    with serving(offer, most=1, idle_s=0.3) as (url, _), httpx.Client(base_url=url) as client:
        token = client.post("/claim").json()["lease_token"]
        full = client.post("/claim")
        assert full.status_code == 503 and full.headers["Retry-After"] == "10" and "in use" in full.json()["detail"]
        time.sleep(0.5)
        assert client.post("/heartbeat", headers={"X-Lease-Token": token}).status_code == 410
        assert client.post("/claim").is_success


def test_a_client_that_vanishes_in_its_upload(client: httpx.Client, url: str, caplog: pytest.LogCaptureFixture) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /set_image HTTP/1.1\r\nHost: {host}:{port}\r\nX-Lease-Token: {client.headers['X-Lease-Token']}\r\n"
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}X-Meta: {META}\r\nContent-Length: 100000\r\n\r\nNNIA".encode())
    assert client.post("/reset_interactions", json={}, timeout=20).is_success  # the lease is free again
    assert "Traceback" not in caplog.text and not [record for record in caplog.records if record.exc_info]


def test_a_client_that_vanishes_while_its_volume_is_predicted(offer: Offer, caplog: pytest.LogCaptureFixture) -> None:
    """Its prediction, of a minute and more, ends with it, so that the only session is free again."""
    large = pack(np.random.default_rng(0).normal(size=(1, 40, 120, 120)).astype(np.float32))
    with serving(offer, most=1) as (url, _):
        headers = {"X-Lease-Token": httpx.post(f"{url}/claim").json()["lease_token"], "X-Meta": META}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/set_image", content=large, headers=headers, timeout=httpx.Timeout(30, read=0.5))
        assert httpx.post(f"{url}/claim").status_code == 503
        deadline = time.monotonic() + 20
        while (claimed := httpx.post(f"{url}/claim")).status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert claimed.is_success
        assert httpx.post(f"{url}/undo", headers=headers).status_code == 410
    assert "its session ends" in caplog.text and "Traceback" not in caplog.text


def test_who_left_a_prediction_behind_keeps_its_place(
    offer: Offer, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is taken for so many volumes at a time, also if clients disconnect while theirs are predicted."""
    held = HeldUploads(monkeypatch)
    with serving(offer, most=1) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        client.headers["X-Lease-Token"] = client.post("/claim").json()["lease_token"]
        replies: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: replies.append(send(client, volume)))
        thread.start()
        assert held.begun.wait(30)
        assert httpx.post(f"{url}/release", headers={"X-Lease-Token": client.headers["X-Lease-Token"]}).is_success
        assert httpx.post(f"{url}/claim").status_code == 503
        held.go_on.set()
        thread.join()
        assert replies[0].status_code == 410 and "connect again" in replies[0].json()["detail"]
        assert httpx.post(f"{url}/claim").is_success


def test_a_click_that_nobody_waited_for_is_taken_back(
    client: httpx.Client, volume: np.ndarray, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    send(client, volume)
    with httpx.Client(base_url=url, headers={"X-Lease-Token": client.headers["X-Lease-Token"]}) as hasty:
        with pytest.raises(httpx.ReadTimeout):
            hasty.post("/add_point_interaction", json=POINT, timeout=httpx.Timeout(30, read=1e-4))
    deadline = time.monotonic() + 30
    while "which is taken back" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.05)
    undone = json.loads(client.post("/undo", json={}).headers["X-Meta"])
    assert "which is taken back" in caplog.text and undone == {"ran_prediction": False, "bbox": None}


PATHS = ["set_image", "set_target_buffer", "add_point_interaction", "undo", "reset_interactions", "predict", "claim",
         "set_do_autozoom", "heartbeat", "release", "add_scribble_interaction", "nowhere"]  # fmt: skip


@pytest.mark.parametrize("tries", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_requests(tries: int, url: str, volume: np.ndarray) -> None:
    """None ends the server, none is answered by a failure of its own."""
    rng, small = random.Random(tries), volume[:, :2, :4, :4]
    bodies = [
        pack(small),
        json.dumps(POINT).encode(),
        json.dumps({"shape": [2, 4, 4], "dtype": "uint8"}).encode(),
        b"{}",
    ]
    statuses: dict[int, int] = {}
    with httpx.Client(base_url=url, timeout=60) as client:
        token = client.post("/claim").json()["lease_token"]
        for _ in range(tries):
            body, meta = bytearray(rng.choice(bodies)), bytearray(META.encode())
            for text in (body, body, meta):
                if rng.random() < 0.5:
                    place = rng.randrange(len(text) + 1)
                    text[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
            clean = bytes(sign for sign in meta if 32 <= sign < 127 or sign > 159).strip()
            own = token if rng.random() < 0.9 else "".join(rng.choices("0123456789abcdef", k=rng.randrange(40)))
            headers: dict[str, Any] = {"X-Meta": clean, "X-Lease-Token": own}
            if rng.random() < 0.1:
                headers[rng.choice(["Host", "Origin"])] = "".join(rng.choices("http://[]:@%.localhost127", k=12))
            reply = client.post(f"/{rng.choice(PATHS)}", content=bytes(body), headers=headers)
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
            assert reply.status_code < 500 or reply.status_code == 503, (reply.status_code, reply.text)
            if not reply.is_success:
                assert isinstance(reply.json()["detail"], str)
            if own == token and reply.request.url.path == "/release":
                token = client.post("/claim").json().get("lease_token", token)
            elif reply.request.url.path == "/claim" and reply.is_success:
                client.post("/release", headers={"X-Lease-Token": reply.json()["lease_token"]})
        assert client.get("/healthz").is_success
        client.post("/release", headers={"X-Lease-Token": token})
    assert statuses[200] > tries / 20 and statuses[400] > tries / 10 and statuses[410] > 0
