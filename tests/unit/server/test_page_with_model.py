"""The browser's page with a real model: what it is told of the model, and the files that ``predict`` writes as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from fastapi.testclient import TestClient
from model_kit import predict, read
from server_kit import SPACING, write_served

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.server.browser_page import PageFacts, add_page
from nnunetv2_sam3d.server.http_app import Served, create_app
from nnunetv2_sam3d.server.leases import Leases
from nnunetv2_sam3d.server.offer import Offer


def client_of(offer: Offer) -> TestClient:
    app = create_app(Leases(offer.new_session), Served.of(offer))
    add_page(app, PageFacts.of(offer))
    return TestClient(app, "http://localhost")


def test_the_files_of_predict(served_model: Path, offer: Offer, volume: np.ndarray, tmp_path: Path) -> None:
    """In an image whose axes run to the left, to the front and down: the page's mask is that of its clicks."""
    image = sitk.GetImageFromArray(volume[0])
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((3.0, -7.0, 11.0))
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, -1))
    file = tmp_path / "images" / "case_0000.nii.gz"
    file.parent.mkdir()
    sitk.WriteImage(image, str(file))
    with client_of(offer) as client:
        client.headers["X-Lease-Token"] = client.post("/claim").json()["lease_token"]
        opened = client.post("/page/image?name=case_0000.nii.gz&channel=0", content=file.read_bytes())
        assert json.loads(opened.content.partition(b"\n")[0])["complete"]
        clicks = [{"voxel": [7, 12, 4], "foreground": True}, {"voxel": [1, 2, 3], "foreground": False}]
        assert client.post("/page/clicks", json={"clicks": clicks}).status_code == 200
        (tmp_path / "mask.nii.gz").write_bytes(client.get("/page/mask").content)
        (tmp_path / "case_clicks.json").write_bytes(client.get("/page/saved-clicks").content)
    predict(served_model, file.parent, tmp_path / "out", "--clicks", tmp_path / "case_clicks.json")
    assert np.array_equal(read(tmp_path / "mask.nii.gz"), read(tmp_path / "out" / "case.nii.gz"))
    assert read(tmp_path / "mask.nii.gz").any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clicks": "none", "signed_clicks": False}, "trained without clicks"),
        ({"signed_clicks": False}, "right clicks"),
    ],
)
def test_what_the_page_says_of_other_models(
    options: dict[str, Any], words: str, make_network: Callable[..., SAM3D], tmp_path: Path
) -> None:
    with client_of(Offer(write_served(tmp_path, make_network, **options))) as client:
        about = client.get("/page/model").json()
    assert words in about["sentences"][0] and about["channels"] == ["CT"] and about["target"] == "tumour"
