"""A model that is served, open and on disk, and an image for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

if TYPE_CHECKING:
    from nnunetv2_sam3d.server.offer import Offer


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
