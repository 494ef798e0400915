"""Whole volumes with clicks: nnU-Net's automatic logits, prompted windows in them, what is computed once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunetv2_sam3d.inference.window_predictor import WindowPredictor
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

Make = Callable[..., SAM3D]
PATCH = (16, 16, 16)
FOREGROUND = torch.tensor([1.0])


@pytest.fixture
def folds(make_network: Make) -> list[SAM3D]:
    return [make_network(seed, signed_clicks=True) for seed in (0, 1)]


def volume(*size: int) -> Tensor:
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(3))


def predictor(networks: list[SAM3D], image: Tensor, automatic: Tensor | None = None, **options: Any) -> WindowPredictor:
    made = WindowPredictor(networks, PATCH, **options)
    made.set_image(image, automatic)
    return made


def zeros(image: Tensor, value: float = 0.0) -> Tensor:
    return torch.full((2, *image.shape[1:]), value)


def count_encodings(networks: list[SAM3D], monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A list to which every image is added that any of the networks encodes."""
    encoded: list[Tensor] = []
    for network in networks:
        monkeypatch.setattr(network, "encode", lambda x, encode=network.encode: (encoded.append(x), encode(x))[1])
    return encoded


@pytest.mark.parametrize("size", [(20, 24, 18), (12, 24, 9)])
def test_without_clicks_it_is_nnunets_prediction(folds: list[SAM3D], make_network: Make, size: tuple[int, ...]) -> None:
    image = volume(*size)
    ours = predictor(folds, image, mirror_axes=(1, 2))
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    stock.network = make_network(2, signed_clicks=True)
    stock.list_of_parameters = [network.state_dict() for network in folds]
    stock.allowed_mirroring_axes = (1, 2)
    stock.configuration_manager = SimpleNamespace(patch_size=list(PATCH))
    stock.label_manager = SimpleNamespace(num_segmentation_heads=2)
    expected = stock.predict_logits_from_preprocessed_data(image)
    assert torch.equal(ours.automatic(), expected)
    assert torch.equal(ours.logits(torch.zeros(0, 3), torch.zeros(0)), expected)
    assert expected.shape == (2, *size) and expected.float().std() > 0.01


def test_prompted_inside_automatic_far_away(folds: list[SAM3D]) -> None:
    image = volume(40, 24, 20)
    ours = predictor(folds[:1], image)
    point = torch.tensor([[28.4, 12.0, 9.75]])
    logits, automatic = ours.logits(point, FOREGROUND), ours.automatic()
    start = (20, 4, 2)  # 28 - 8, 12 - 8, 10 - 8
    with torch.no_grad():
        crop = image[None, :, 20:36, 4:20, 2:18]
        prompted = folds[0](crop, (point - torch.tensor(start))[None], torch.ones(1, 1))[0]
    inner = tuple(slice(4, 12) for _ in PATCH)
    there = (slice(None), slice(24, 32), slice(8, 16), slice(6, 14))
    torch.testing.assert_close(logits[there].float(), prompted[(slice(None), *inner)], rtol=0, atol=2e-3)
    assert (logits[there] - automatic[there]).abs().max() > 0.01
    far = torch.ones(40, 24, 20, dtype=torch.bool)
    far[20:36, 4:20, 2:18] = False
    assert torch.equal(logits[:, far], automatic[:, far])
    assert logits.dtype == automatic.dtype


def test_blended_where_windows_end(folds: list[SAM3D]) -> None:
    """No jump between neighbouring voxels, although the automatic logits are far from the prompted ones."""
    image = volume(48, 40, 16)
    ours = predictor(folds[:1], image, zeros(image, 30.0))
    # two windows that overlap, and one in the corner of the volume
    points = torch.tensor([[22.0, 20.0, 8.0], [30.0, 20.0, 8.0], [2.0, 2.0, 8.0]])
    logits = ours.logits(points, torch.ones(3))
    assert (logits == 30).any() and logits[:, 22, 20, 8].abs().max() < 10
    jumps = [logits.diff(dim=axis).abs().max().item() for axis in (1, 2, 3)]
    natural = max(jumps[2], logits[:, :10, :10].diff(dim=1).abs().max().item())  # no window ends along x
    # a quarter of this patch is four voxels; the steepest of the five steps is 0.296 of the difference
    assert max(jumps) < 0.3 * 30 + 2 * natural < 20
    assert logits[:, 0, 0].abs().max() < 10  # the volume's own border is no seam


@pytest.mark.parametrize("size", [(20, 24, 18), (12, 24, 9)])
def test_mirrored_and_ensembled_by_hand(folds: list[SAM3D], size: tuple[int, ...]) -> None:
    image = volume(*size)
    ours = predictor(folds, image, zeros(image), mirror_axes=(0, 2))
    points = torch.tensor([[7.0, 10.0, 6.25], [8.0, 13.0, 3.0]])
    signs = torch.tensor([1.0, -1.0])
    logits = ours.logits(points, signs)
    below = torch.tensor([max(0, 16 - length) // 2 for length in size])
    padded = torch.nn.functional.pad(image, [v for n in reversed(size) for v in ((16 - n) // 2, 16 - n - (16 - n) // 2)
                                             for v in [max(v, 0)]])  # fmt: skip
    start = torch.stack([torch.zeros(3), points[0] + below + 0.5 - 8]).amax(0).floor()
    start = torch.minimum(start, torch.tensor(padded.shape[1:]) - 16)
    z, y, x = (slice(int(s), int(s) + 16) for s in start)
    inside, results = points + below - start, []
    for network, axes in itertools.product(folds, ((), (0,), (2,), (0, 2))):
        mirrored = inside.clone()
        mirrored[:, list(axes)] = 15 - mirrored[:, list(axes)]
        dims = [axis + 2 for axis in axes]
        with torch.no_grad():
            out = network(torch.flip(padded[None, :, z, y, x], dims), mirrored[None], signs[None])
        results.append(torch.flip(out, dims)[0])
    expected = torch.stack(results).mean(0)
    z, y, x = points[0].round().long()
    oz, oy, ox = (below - start).round().long()
    torch.testing.assert_close(logits[:, z, y, x], expected[:, z + oz, y + oy, x + ox], rtol=0, atol=1e-4)


def test_features_are_computed_once_for_a_window(folds: list[SAM3D], monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, image = count_encodings(folds, monkeypatch), volume(40, 24, 20)
    ours = predictor(folds, image, zeros(image), mirror_axes=(0,))
    clicks = torch.tensor([[10.0, 12.0, 9.0], [12.0, 13.0, 8.0], [30.0, 12.0, 9.0]])
    first = ours.logits(clicks[:1], torch.ones(1))
    assert len(encoded) == 4  # two folds, mirrored and not
    second = ours.logits(clicks[:2], torch.tensor([1.0, -1.0]))
    assert len(encoded) == 4 and not torch.equal(first, second)
    third = ours.logits(clicks, torch.tensor([1.0, -1.0, 1.0]))
    assert len(encoded) == 8
    assert torch.equal(third[:, :18], second[:, :18])  # the first window as it was
    assert torch.equal(ours.logits(clicks[:1], torch.ones(1)), first) and len(encoded) == 8
    ours.set_image(image, zeros(image))
    assert torch.equal(ours.logits(clicks[:1], torch.ones(1)), first) and len(encoded) == 12


def test_little_memory_changes_no_result(folds: list[SAM3D], monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, image = count_encodings(folds, monkeypatch), volume(40, 24, 20)
    clicks = torch.tensor([[10.0, 12.0, 9.0], [30.0, 12.0, 9.0]])
    one_window = 4 * (4 * 16 * 4**3 + 16**3)  # four taps and the image in float32
    results = []
    for cache_bytes in (0, one_window, 2 * one_window):
        encoded.clear()
        ours = predictor(folds[:1], image, zeros(image), cache_bytes=cache_bytes)
        ours.logits(clicks, torch.ones(2))
        # both windows' clicks change
        results.append(ours.logits(torch.cat([clicks, clicks + 1]), torch.tensor([1.0, 1.0, -1.0, -1.0])))
        assert ours._used_bytes() <= cache_bytes
        assert len(encoded) == (2 if cache_bytes == 2 * one_window else 4)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_what_it_refuses(make_network: Make) -> None:
    unsigned, image = make_network(), volume(20, 20, 20)
    ours = predictor([unsigned], image, zeros(image))
    inside = torch.tensor([[3.0, 3.0, 3.0]])
    with pytest.raises(ValueError, match="background clicks.*--signed-clicks"):
        ours.logits(inside, -FOREGROUND)
    with pytest.raises(ValueError, match=r"lie outside the image of \[20, 20, 20\] voxels"):
        ours.logits(inside + 17, FOREGROUND)
    with pytest.raises(ValueError, match="signs are 1"):
        ours.logits(inside, 0 * FOREGROUND)
    automatic = predictor([make_network(prompt_encoder=False)], image, zeros(image))
    with pytest.raises(ValueError, match="no prompt encoder"):
        automatic.logits(inside, FOREGROUND)
    assert torch.equal(automatic.logits(torch.zeros(0, 3), torch.zeros(0)), zeros(image))
    with pytest.raises(ValueError, match=r"expected an image of shape \(1, D, H, W\), got \(2, 20, 20, 20\)"):
        ours.set_image(torch.zeros(2, 20, 20, 20))
    with pytest.raises(ValueError, match="expected automatic logits of shape"):
        ours.set_image(image, torch.zeros(3, 20, 20, 20))
    with pytest.raises(RuntimeError, match="an image must be set"):
        WindowPredictor([unsigned], PATCH).automatic()
    with pytest.raises(ValueError, match="networks of one model, got 2 networks of 2 kinds"):
        WindowPredictor([unsigned, make_network(num_classes=3)], PATCH)
