"""Gate and local path around a lesion: one window of a case, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from torch import Tensor

from nnunetv2_sam3d.clicks.sampling import correcting_click
from nnunetv2_sam3d.network_architecture.adapter_paths import PathRecord, recorded_paths
from nnunetv2_sam3d.network_architecture.config import TAPS
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.nnunet.labels import Target
from nnunetv2_sam3d.nnunet.trained_fold import Volume

ZONES = ("inside", "border", "outside")


@dataclass(frozen=True)
class MapView:
    """The slice of a window that goes through the middle of the target.

    Attributes:
        case: its name.
        slice_number: along the first axis of the preprocessed data.
        spacing_mm: of the voxels along H and W.
        shown: the part of H and W that is not padding.
        image: (H, W), the first channel.
        target: as annotated; bool, (H, W).
        predicted: the target as the whole network predicts it; bool, (H, W).
        changed: voxels that get another label without a path, by path; bool, (H, W).
        token_stride: voxels of a token along H and W.
        gates: the gate's mean over the channels, by block; (h, w) tokens.
        shares: of the local path, by block; (h, w) tokens.
    """

    case: str
    slice_number: int
    spacing_mm: tuple[float, float]
    shown: tuple[slice, slice]
    image: np.ndarray
    target: np.ndarray
    predicted: np.ndarray
    changed: dict[str, np.ndarray]
    token_stride: tuple[int, int]
    gates: dict[int, np.ndarray]
    shares: dict[int, np.ndarray]


@dataclass(frozen=True)
class GateMaps:
    """What :func:`look_at` has seen.

    Attributes:
        records: of one pass, with their tokens, by block.
        zones: tokens (D, H, W) inside, at the border of and outside the target; ``None`` for a case without target.
        view: what a figure needs.
    """

    records: dict[int, PathRecord]
    zones: dict[str, Tensor] | None
    view: MapView


def look_at(
    network: SAM3D,
    patch_size: Sequence[int],
    volume: Volume,
    target: Target,
    labels: np.ndarray,
    changed: dict[str, np.ndarray],
) -> GateMaps:
    """Lets the encoder see one window with the middle of the target in it.

    The middle is the deepest voxel of the target's largest part; of a case without target, that of the annotated
    foreground or else of the predicted one, or else of the image.

    Args:
        network: in evaluation mode, its adapters with two paths.
        patch_size: D, H, W, of the window.
        volume: the preprocessed case.
        target: what the gate is looked at around.
        labels: that the network predicts, (D, H, W).
        changed: where another label is predicted without a path, by path; bool, (D, H, W).
    """
    mask = target.mask(volume.segmentation)
    shown = next((some for some in (mask, volume.segmentation > 0, labels != 0) if some.any()), np.ones_like(mask))
    middle = correcting_click(np.zeros_like(shown), shown, volume.spacing_mm)
    assert middle is not None
    image = torch.from_numpy(np.array(volume.image[:], np.float32))
    padded, (_, *inner) = pad_nd_image(image, patch_size, return_slicer=True)
    size = padded.shape[1:]
    centre = [at + side.start for at, side in zip(middle[0], inner, strict=True)]
    starts = [
        min(max(at - length // 2, 0), whole - length)
        for at, length, whole in zip(centre, patch_size, size, strict=True)
    ]
    window = tuple(slice(start, start + length) for start, length in zip(starts, patch_size, strict=True))
    crop = padded[(slice(None),) + window][None]
    device = next(network.parameters()).device
    with torch.inference_mode(), torch.autocast("cuda") if device.type == "cuda" else nullcontext():
        with recorded_paths(network, keep_tokens=True) as records:
            network.encode(crop.to(device))

    def cut(values: np.ndarray) -> np.ndarray:
        """The window of what covers the image, zero where that is padded."""
        large = np.zeros(size, values.dtype)
        large[tuple(inner)] = values
        return large[window]

    z, stride = centre[0] - window[0].start, network.config.token_stride
    rows, columns = (
        slice(max(side.start - part.start, 0), min(side.stop, part.stop) - part.start)
        for side, part in zip(inner[1:], window[1:], strict=True)
    )
    blocks = [(quarter + 1) * network.config.depth // TAPS - 1 for quarter in range(TAPS)]
    view = MapView(
        case=volume.case,
        slice_number=middle[0][0],
        spacing_mm=(float(volume.spacing_mm[1]), float(volume.spacing_mm[2])),
        shown=(rows, columns),
        image=cut(image[0].numpy())[z],
        target=cut(mask)[z],
        predicted=cut(target.mask(labels))[z],
        changed={path: cut(where)[z] for path, where in changed.items()},
        token_stride=stride[1:],
        gates={block: records[block].gate_map()[z // stride[0]].numpy() for block in blocks},
        shares={block: records[block].share_map()[z // stride[0]].numpy() for block in blocks},
    )
    zones = token_zones(cut(mask), cut(np.ones_like(mask)), stride) if mask.any() else None
    return GateMaps(records, zones, view)


def token_zones(target: np.ndarray, image: np.ndarray, token_stride: Sequence[int]) -> dict[str, Tensor]:
    """Tokens that hold nothing but target, target and something else, and no target, among those within the image.

    Args:
        target: bool, (D, H, W).
        image: bool, false for padding.
        token_stride: voxels of a token.

    Returns:
        masks of tokens by :data:`ZONES`; the last tokens of axes that are not whole ones are in none.
    """
    steps = [step for length, stride in zip(target.shape, token_stride, strict=True) for step in (-length % stride, 0)]
    pads = [(0, after) for after in steps[::2]]
    grid = [part for length, (_, after), stride in zip(target.shape, pads, token_stride, strict=True)
            for part in ((length + after) // stride, stride)]  # fmt: skip

    def tokens(mask: np.ndarray) -> np.ndarray:
        return np.pad(mask, pads).reshape(grid).transpose(0, 2, 4, 1, 3, 5).reshape(*grid[::2], -1)

    whole, some, there = tokens(target).all(-1), tokens(target).any(-1), tokens(image).all(-1)
    masks = (whole & there, some & ~whole & there, ~some & there)
    return {zone: torch.from_numpy(mask) for zone, mask in zip(ZONES, masks, strict=True)}
