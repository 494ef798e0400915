"""The segmentation that follows the clicks equals the one that is exported whole, voxel for voxel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_kit import GEOMETRIES, REGIONS, SETTINGS, nnunet_export, write_model

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.inference.click_predictor import ClickPredictor
from nnunetv2_sam3d.inference.live_segmentation import LiveSegmentation
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

SHAPE = (15, 22, 18)


@pytest.mark.parametrize(
    ("spacing", "grid_spacing", "labels", "transposed"),
    GEOMETRIES,
)
def test_equals_the_whole_export(
    spacing: Sequence[float], grid_spacing: Sequence[float], labels: dict[str, Any], transposed: Sequence[int],
    make_network: Callable[..., SAM3D], tmp_path: Path,
) -> None:  # fmt: skip
    sizes = {"num_classes": 2 if labels is REGIONS else 3, "signed_clicks": True, **SETTINGS["network"]}
    network = make_network(3, **sizes)
    model = write_model(
        tmp_path, [network], labels=labels, spacing=grid_spacing, transpose_forward=transposed, mirror_axes=None
    )
    predictor = ClickPredictor(model, [0], device="cpu")
    rng = np.random.default_rng(5)
    depth = 7 if spacing[0] > 8 else SHAPE[0]
    image = rng.normal(100, 30, SHAPE).astype(np.float32)[:depth]
    image[:3], image[:, -4:] = 0, 0  # nnU-Net cuts it off
    predictor.set_image(image, spacing)
    live = LiveSegmentation(predictor)
    assert live._resampling is not None
    other = predictor.for_another_image()
    other.set_image(image, spacing)
    clicks = [
        Click((3 + int(rng.integers(depth - 3)), int(rng.integers(18)), int(rng.integers(18))), "tumour", sign)
        for sign in (1, 1, -1, 1, -1)
    ]
    automatic = live.automatic.copy()
    changed = 0
    for made in (clicks[:1], clicks[:2], clicks[:4], clicks, clicks[3:], clicks[:1]):
        expected = nnunet_export(other, other.logits(made))
        found = live.with_clicks(made)
        np.testing.assert_array_equal(found, expected)
        changed += int((found != automatic).sum())
    assert changed > 50 and (live.automatic == automatic).all()
