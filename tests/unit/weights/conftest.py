"""A checkpoint as the reference writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

Make = Callable[..., SAM3D]


@pytest.fixture
def whole(make_network: Make, reference_content: Callable[[SAM3D], Any], tmp_path: Path) -> Path:
    torch.save(reference_content(make_network()), tmp_path / "best.pth.tar")
    return tmp_path / "best.pth.tar"
