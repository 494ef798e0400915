"""What the whole-volume protocol keeps for looking at: the mask after each number of clicks, and the clicks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.clicks.geometry import Geometry
from nnunetv2_sam3d.clicks.json_format import write_clicks
from nnunetv2_sam3d.clicks.slicer import write_markups
from nnunetv2_sam3d.evaluation.protocol import clicks_title
from nnunetv2_sam3d.evaluation.volumes import Volume
from nnunetv2_sam3d.nnunet.folders import TrainedFold

MASKS, PLACED = "masks", "placed"


def mask_file(output: Path, count: int, case: str, file_ending: str) -> Path:
    """Where a mask is: a folder for each number of clicks, such as nnU-Net's own tools take."""
    return output / MASKS / clicks_title(count).replace(" ", "_") / f"{case}{file_ending}"


def clicks_file(output: Path, case: str) -> Path:
    """Where the clicks of a case are."""
    return output / PLACED / f"{case}.mrk.json"


def keep_mask(output: Path, fold: TrainedFold, volume: Volume, count: int, segmentation: np.ndarray) -> None:
    """Writes labels (z, y, x) with the geometry of the original image."""
    file = mask_file(output, count, volume.case, fold.dataset_json["file_ending"])
    file.parent.mkdir(parents=True, exist_ok=True)
    fold.plans.image_reader_writer_class().write_seg(segmentation, str(file), dict(volume.properties))


def keep_clicks(output: Path, fold: TrainedFold, volume: Volume, clicks: Sequence[Click]) -> None:
    """Writes clicks, voxels of the original image, in their order, as 3D Slicer and ``predict --clicks`` read them.

    Images without patient coordinates get this package's own file, in voxels.
    """
    transposed = volume.properties["shape_before_cropping"]
    shape = [transposed[axis] for axis in np.argsort(fold.plans.transpose_forward)]
    geometry = Geometry.from_properties(volume.properties, shape)
    file = clicks_file(output, volume.case)
    file.parent.mkdir(parents=True, exist_ok=True)
    if geometry.lps_from_array is not None:
        write_markups(file, clicks, geometry)
    else:
        write_clicks(file.with_name(f"{volume.case}.json"), clicks, geometry, space="ijk")
