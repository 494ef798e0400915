"""A model of two folds, two images that it can predict, and a model that is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from blobs import write_blobs
from model_kit import SETTINGS, write_model

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

if TYPE_CHECKING:
    from nnunetv2_sam3d.server.offer import Offer


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


@pytest.fixture(scope="session")
def served_model(make_network: Callable[..., SAM3D], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one channel that takes clicks."""
    pytest.importorskip("fastapi")
    from server_kit import write_served

    return write_served(tmp_path_factory.mktemp("served"), make_network)


@pytest.fixture(scope="session")
def offer(served_model: Path) -> Offer:
    """The same, open."""
    from nnunetv2_sam3d.server.offer import Offer

    return Offer(served_model)


@pytest.fixture
def volume() -> np.ndarray:
    """An image (1, k, j, i) for it."""
    from server_kit import phantom

    return phantom()
