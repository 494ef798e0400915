"""The requests of the browser's page, on the server's leases and limits."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from fastapi.testclient import TestClient
from nifti_files import LESION, OTHER, SHAPE, BrightStructures, nifti, volume
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_sam3d.server.browser_page import PageFacts, add_page
from nnunetv2_sam3d.server.http_app import Served, create_app
from nnunetv2_sam3d.server.interactive_session import InteractiveSession
from nnunetv2_sam3d.server.leases import Leases

KEY = "a key of the test"
NAME = "case_0000.nii.gz"


def client_of(key: str | None = None, channels: tuple[str, ...] = ("CT",), limit: int = 1 << 20) -> TestClient:
    class Model(BrightStructures):
        pass

    Model.channels = len(channels)
    leases = Leases(lambda: InteractiveSession(Model()), most=2)
    app = create_app(leases, Served("toy", SHAPE, image_bytes=limit, api_key=key))
    add_page(app, PageFacts("toy", "lesion", channels, SimpleITKIO(), ["A sentence."]))
    return TestClient(app, "http://localhost", raise_server_exceptions=False)


class Page:
    """Does what the page's script does."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.mask = np.zeros(SHAPE[::-1], np.uint8)
        client.headers["X-Lease-Token"] = client.post("/claim").json()["lease_token"]

    def post(self, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
        response = self.client.post(path, **body)
        assert response.status_code == status, response.text
        if status != 200:
            return response.json()
        line, _, labels = response.content.partition(b"\n")
        head = json.loads(line)
        if head.get("box"):
            place = tuple(slice(*ends) for ends in head["box"])
            self.mask[place] = np.frombuffer(labels, np.uint8).reshape(self.mask[place].shape)
        else:
            assert labels == b""
        return head

    def open(self, content: bytes, name: str = NAME, channel: int = 0, status: int = 200) -> dict[str, Any]:
        self.mask[:] = 0
        return self.post(f"/page/image?name={name}&channel={channel}", status, content=content)

    def click(self, *clicks: tuple[tuple[float, ...], bool], status: int = 200) -> dict[str, Any]:
        listed = [{"voxel": list(voxel), "foreground": foreground} for voxel, foreground in clicks]
        return self.post("/page/clicks", status, json={"clicks": listed})

    def undo(self) -> dict[str, Any]:
        return self.post("/page/undo")

    @property
    def downloaded(self) -> np.ndarray:
        """The mask file, (k, j, i)."""
        response = self.client.get("/page/mask")
        assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''case.nii.gz"
        return np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(response.content)).dataobj).T


@pytest.fixture
def client() -> Iterator[TestClient]:
    with client_of() as client:
        yield client


@pytest.fixture
def page(client: TestClient) -> Page:
    return Page(client)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "sagittal"])
def test_from_the_file_to_the_mask(page: Page, orientation: str) -> None:
    """The automatic result first; clicks are voxels of the file; undo and reset lead back to it."""
    automatic = (volume() > 50).T
    opened = page.open(nifti(volume(), orientation))
    assert np.array_equal(page.mask, automatic)
    assert opened["target_ml"] == pytest.approx(automatic.sum() * 9 / 1000) and opened["clicks"] == []
    assert opened["middle"] == [6, 2, 0]  # of the larger lesion

    assert page.click((LESION, False))["clicks"] == [{"voxel": list(LESION), "foreground": False}]
    assert page.mask[LESION[::-1]] == 0 and page.mask[OTHER[::-1]] == 1
    once = page.mask.copy()
    assert page.click(((0, 6, 4), True))["box"] == [[3, 5], [5, 7], [0, 2]]
    assert page.mask[4, 6, 0] == 1
    assert np.array_equal(page.downloaded, page.mask * 2)

    assert len(page.undo()["clicks"]) == 1
    assert np.array_equal(page.mask, once)
    page.undo()
    assert np.array_equal(page.mask, automatic) and np.array_equal(page.downloaded, automatic * 2)
    page.click((OTHER, False))
    assert page.post("/page/reset")["clicks"] == []
    assert np.array_equal(page.mask, automatic)


def test_several_clicks_are_added_together_or_not_at_all(page: Page) -> None:
    page.open(nifti(volume()))
    assert len(page.click((LESION, True), (OTHER, False))["clicks"]) == 2
    before = page.mask.copy()
    assert "three clicks" in page.click((OTHER, True), (LESION, False), status=400)["detail"]
    assert "outside" in page.click((OTHER, True), ((9, 0, 0), True), status=400)["detail"]
    assert len(page.undo()["clicks"]) == 1
    page.click((OTHER, False))
    assert np.array_equal(page.mask, before)


def test_saved_clicks(page: Page) -> None:
    page.open(nifti(volume()))
    page.click((LESION, True), (OTHER, False))
    response = page.client.get("/page/saved-clicks")
    content = json.loads(response.content)
    assert response.headers["content-disposition"].endswith("case_clicks.json")
    assert [click["sign"] for click in content["clicks"]] == ["foreground", "background"]
    assert content["image"] == NAME and content["space"] == "LPS"


def test_requests_that_make_no_sense(page: Page) -> None:
    assert "no image yet" in page.click((LESION, True), status=400)["detail"]
    assert page.client.get("/page/mask").status_code == page.client.post("/page/undo").status_code == 400
    page.open(nifti(volume()))
    for body in ({}, {"clicks": []}, {"clicks": [1]}, {"clicks": [{"voxel": [1, 2], "foreground": True}]}):
        assert "the clicks are a list of" in page.post("/page/clicks", 400, json=body)["detail"]
    for voxel in ([1, 2, "3"], [1, 2, 1e30], [True, 1, 1], [None, 0, 0]):
        body = {"clicks": [{"voxel": voxel, "foreground": True}]}
        assert "a voxel is three numbers" in page.post("/page/clicks", 400, json=body)["detail"]
    assert "order" in page.open(nifti(volume()), channel=1, status=400)["detail"]
    for query in ("", "?name=x.nii", "?name=x.nii&channel=-1", "?channel=x&name=x.nii"):
        assert "channels" in page.client.post("/page/image" + query).json()["detail"]


def test_a_bad_file_leaves_no_image(page: Page) -> None:
    page.open(nifti(volume()))
    assert "is no NIfTI" in page.open(b"nothing", status=400)["detail"]
    assert "no image yet" in page.click((LESION, True), status=400)["detail"]


def test_an_image_of_several_channels() -> None:
    with client_of(channels=("T1", "T2")) as client:
        page = Page(client)
        assert page.open(nifti(volume()), "case_0000.nii.gz", 0) == {"complete": False}
        assert page.open(nifti(volume()), "case_0001.nii.gz", 1)["complete"]
        assert np.array_equal(page.mask, (volume() > 50).T)


def test_limits() -> None:
    with client_of(limit=2000) as client:
        page = Page(client)
        assert "more than 2000 bytes" in page.open(bytes(2001), status=413)["detail"]
        assert "crop it" in page.open(gzip.compress(bytes(9999)), status=400)["detail"]


def test_the_key_guards_everything_but_the_page_itself() -> None:
    with client_of(KEY) as client:
        assert client.get("/").status_code == client.get("/page/page.js").status_code == 200
        for path in ("/page/model", "/page/mask", "/page/saved-clicks"):
            assert client.get(path).status_code == 401
        for path in ("/claim", "/page/image?name=x.nii&channel=0", "/page/clicks", "/page/undo", "/page/reset"):
            assert client.post(path).status_code == 401
        client.headers["Authorization"] = f"Bearer {KEY}"
        assert client.get("/page/model").json()["target"] == "lesion"
        assert client.post("/page/undo").status_code == 410  # the key alone is no session


def test_pages_of_other_sites_get_nothing(client: TestClient) -> None:
    for origin, status in (("http://elsewhere.example", 403), ("null", 403), ("http://localhost", 200)):
        assert client.post("/claim", headers={"Origin": origin}).status_code == status


def test_the_page_loads_only_its_own_files(client: TestClient) -> None:
    response = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert not re.search(r"<style|<script(?! src)|\son\w+=|\sstyle=", response.text)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', response.text)
    assert len(addresses) == 5
    for address in addresses:
        if address != "data:,":
            assert client.get("/" + address).headers["x-content-type-options"] == "nosniff"
    for script in ("page.js", "view.js", "server.js", "input.js", "page.css"):
        text = client.get(f"/page/{script}").text
        assert "://" not in text
        for module in re.findall(r'from "\./([^"]+)"', text):
            assert client.get(f"/page/{module}").status_code == 200


def test_niivue_is_the_published_file(client: TestClient) -> None:
    """The licences name package, version and digest of what is shipped."""
    licences = client.get("/page/licences.txt").text
    content = files("nnunetv2_sam3d.server").joinpath("page/niivue.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() in licences and "BSD 2-Clause License" in licences
    assert client.get("/page/niivue.js").content == content
