"""A model of two folds, and two images that it can predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from blobs import write_blobs
from model_kit import SETTINGS, write_model

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D


@pytest.fixture
def networks(make_network: Callable[..., SAM3D]) -> list[SAM3D]:
    sizes = {"num_classes": 3, "in_channels": 3, "signed_clicks": True, **SETTINGS["network"]}
    return [make_network(seed, **sizes) for seed in (0, 1)]


@pytest.fixture
def model(networks: list[SAM3D], tmp_path: Path) -> Path:
    return write_model(tmp_path, networks, mirror_axes=(1,))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    write_blobs(folder, "straight", case="straight")
    write_blobs(folder, "oblique sagittal", case="oblique")
    return folder
