"""A trained fold on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_fold import Site, write_fold

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D


@pytest.fixture
def network(make_network: Callable[..., SAM3D]) -> SAM3D:
    return make_network(num_classes=3)


@pytest.fixture
def site(nnunet_paths: Path, network: SAM3D) -> Site:
    """Fold 0 with the network's checkpoint; nnU-Net's variables point to it."""
    return write_fold(nnunet_paths, network)
