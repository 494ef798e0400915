"""A segmentation that is exported slab by slab is nnU-Net's, voxel for voxel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_kit import GEOMETRIES, REGIONS, SETTINGS, nnunet_export, write_model

from nnunetv2_sam3d.inference import click_predictor, slab_export
from nnunetv2_sam3d.inference.click_predictor import ClickPredictor
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.nnunet.images import ImageError

SHAPE = (15, 22, 18)
Make = Callable[..., SAM3D]


def predictor_of(
    folder: Path, make_network: Make, spacing: Sequence[float], grid_spacing: Sequence[float], labels: dict[str, Any],
    transposed: Sequence[int],
) -> ClickPredictor:  # fmt: skip
    """A predictor with an image of which nnU-Net cuts something off."""
    network = make_network(3, num_classes=2 if labels is REGIONS else 3, **SETTINGS["network"])
    model = write_model(
        folder, [network], labels=labels, spacing=grid_spacing, transpose_forward=transposed, mirror_axes=None
    )
    predictor = ClickPredictor(model, [0], device="cpu")
    image = np.random.default_rng(5).normal(100, 30, SHAPE).astype(np.float32)
    image[:3], image[:, -4:] = 0, 0
    predictor.set_image(image, spacing)
    return predictor


@pytest.mark.parametrize(("spacing", "grid_spacing", "labels", "transposed"), GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_nnunets_export(
    spacing: Sequence[float], grid_spacing: Sequence[float], labels: dict[str, Any], transposed: Sequence[int],
    dtype: torch.dtype, make_network: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    predictor = predictor_of(tmp_path, make_network, spacing, grid_spacing, labels, transposed)
    monkeypatch.setattr(slab_export, "SLAB_BYTES", 40_000)  # some slices at a time
    classes = 2 if labels is REGIONS else 3
    for seed in range(3):
        torch.manual_seed(seed)
        logits = torch.randn(classes, *predictor.grid.shape).to(dtype)
        if seed == 2:
            logits = (2 * logits).round()  # many classes are equally likely: the first one wins
        expected, found = nnunet_export(predictor, logits), predictor.segmentation(logits)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) == 3


def test_other_ways_of_resampling_are_nnunets(
    make_network: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = predictor_of(tmp_path, make_network, *GEOMETRIES[1])
    monkeypatch.setattr(click_predictor, "segmentation_by_slabs", None)  # is not called
    configuration = predictor.configuration.configuration
    monkeypatch.setitem(configuration["resampling_fn_probabilities_kwargs"], "order", 3)
    type(predictor.configuration).resampling_fn_probabilities.fget.cache_clear()
    logits = torch.randn(3, *predictor.grid.shape)
    np.testing.assert_array_equal(predictor.segmentation(logits), nnunet_export(predictor, logits))
    labels, probabilities = predictor.segmentation(logits, probabilities=True)
    assert probabilities.shape == (3, *labels.shape)


def test_what_does_not_fit_is_refused(make_network: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(tmp_path, make_network, *GEOMETRIES[1])
    predictor.check_memory()
    monkeypatch.setattr(click_predictor, "available_bytes", lambda: 300_000_000)
    with pytest.raises(ImageError, match=r"takes 0\.4 GB beside the image, and 0\.3 GB are free: close other programs"):
        predictor.check_memory()
