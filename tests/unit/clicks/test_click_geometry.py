"""Clicks on blobs, through nnU-Net's own readers and preprocessor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from blobs import BLOBS, GEOMETRIES, SIZE, centres, preprocess, read, write_blobs
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_sam3d.clicks.click import SPACES, Click, ClickError
from nnunetv2_sam3d.clicks.geometry import Geometry, PreprocessedGrid
from nnunetv2_sam3d.clicks.placing import clicks_in_grid

READERS = ("SimpleITKIO", "NibabelIO", "SimpleITKIOWithReorient", "NibabelIOWithReorient")
# transpose_forward, and spacing of the grid in its axes: finer and coarser than the images', isotropic or not.
GRIDS = {
    "isotropic": ((0, 1, 2), (1.0, 1.0, 1.0)),
    "turned": ((2, 0, 1), (1.7, 0.8, 0.6)),
    "swapped": ((1, 0, 2), (0.9, 2.2, 1.3)),
    "coarse slices": ((0, 2, 1), (4.0, 1.0, 1.0)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_positions_in_every_space_are_the_voxels_that_the_reader_gives(
    geometry: str, reader: str, tmp_path: Path
) -> None:
    blobs = write_blobs(tmp_path, geometry)
    data, properties = read(blobs.files, reader)
    found = Geometry.from_properties(properties, data.shape[1:])
    expected = centres(data)

    for space, positions in {"LPS": blobs.lps, "RAS": blobs.lps * [-1, -1, 1], "ijk": blobs.ijk}.items():
        np.testing.assert_allclose(found.to_zyx(positions, space), expected, atol=0.01, err_msg=space)
    np.testing.assert_array_equal(found.to_zyx(expected, "zyx"), expected)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("geometry", "reader", "resampling"), [
    *((name, "SimpleITKIO", "resample_data_or_seg_to_shape") for name in GEOMETRIES),
    ("oblique sagittal", "NibabelIOWithReorient", "resample_data_or_seg_to_shape"),
    ("anisotropic", "SimpleITKIO", "resample_torch_fornnunet"),
])  # fmt: skip
def test_clicks_reach_their_blob_in_the_preprocessed_image(
    geometry: str, reader: str, resampling: str, grid: str, tmp_path: Path
) -> None:
    blobs = write_blobs(tmp_path, geometry)
    data, properties = read(blobs.files, reader)
    zyx = Geometry.from_properties(properties, data.shape[1:]).to_zyx(blobs.lps, "LPS")
    transpose, spacing = GRIDS[grid]
    preprocessed, properties = preprocess(data, properties, transpose, spacing, resampling)
    assert preprocessed.shape[1:] != data.shape[1:]

    conversion = PreprocessedGrid.from_properties(properties, transpose, preprocessed.shape[1:])
    points = clicks_in_grid([Click((z, y, x)) for z, y, x in zyx.tolist()], conversion)

    assert np.abs(points - centres(preprocessed)).max() < 0.5
    np.testing.assert_allclose(conversion.to_image(points), zyx, atol=1e-9)


def test_voxels_without_resampling_are_exact(tmp_path: Path) -> None:
    blobs = write_blobs(tmp_path, "straight")
    data, properties = read(blobs.files, "SimpleITKIO")
    preprocessed, properties = preprocess(data, properties, (2, 0, 1), (1.0, 1.0, 1.0))
    conversion = PreprocessedGrid.from_properties(properties, (2, 0, 1), preprocessed.shape[1:])
    points = conversion.from_image(np.array(BLOBS)[:, ::-1])
    peaks = [np.unravel_index(channel.argmax(), channel.shape) for channel in preprocessed]
    np.testing.assert_array_equal(points, peaks)


def test_a_click_that_the_cropping_takes_is_refused(tmp_path: Path) -> None:
    blobs = write_blobs(tmp_path, "anisotropic")
    data, properties = read(blobs.files, "SimpleITKIO")
    preprocessed, properties = preprocess(data, properties, (0, 1, 2), (1.0, 1.0, 1.0))
    grid = PreprocessedGrid.from_properties(properties, (0, 1, 2), preprocessed.shape[1:])
    first = [first for first, _ in properties["bbox_used_for_cropping"]]
    last = [end - 1 for _, end in properties["bbox_used_for_cropping"]]
    assert (first, last) == ([1, 3, 2], [15, 20, 21])

    kept = [Click(tuple(corner)) for corner in (first, last, (last[0] + 0.5, last[1] + 0.5, last[2] + 0.5))]
    clicks_in_grid(kept, grid)
    with pytest.raises(ClickError, match=r"click 2 \(tumour\) at voxel \(8, 2, 9\).*border of zeros.*remove it"):
        clicks_in_grid([kept[0], Click((8, 2, 9), "tumour")], grid)


@pytest.mark.parametrize("properties", [{"spacing": (999, 1, 1)}, {"spacing": (1, 1, 1)},
                                        {"sitk_stuff": {"spacing": (1.0, 1.0), "origin": (0.0, 0.0),
                                                        "direction": (1.0, 0.0, 0.0, 1.0)}}])  # fmt: skip
def test_formats_without_patient_coordinates_take_voxels_only(properties: dict) -> None:
    geometry = Geometry.from_properties(properties, (1, 20, 30))
    np.testing.assert_array_equal(geometry.to_zyx([[3, 4, 0]], "ijk"), [[0, 4, 3]])
    with pytest.raises(ClickError, match="no patient coordinates.*LPS.*ijk or zyx"):
        geometry.to_zyx([[3, 4, 0]], "LPS")


def test_a_header_without_volume_is_refused() -> None:
    with pytest.raises(ClickError, match="header"):
        Geometry.from_properties({"nibabel_stuff": {"original_affine": np.diag([1.0, 0, 1, 1])}}, (4, 5, 6))


@pytest.mark.parametrize("reader", READERS)
def test_the_description_is_the_files_whatever_the_reader_turns(reader: str, tmp_path: Path) -> None:
    blobs = write_blobs(tmp_path, "oblique sagittal")
    data, properties = read(blobs.files, reader)
    described = Geometry.from_properties(properties, data.shape[1:]).description()
    direction, spacing = GEOMETRIES["oblique sagittal"]
    assert described["image_size"] == list(SIZE)
    np.testing.assert_allclose(described["spacing"], spacing, atol=1e-5)
    np.testing.assert_allclose(described["direction"], direction.ravel(), atol=1e-5)
    np.testing.assert_allclose(described["origin"], (-113.5, 61.25, -420), atol=1e-3)


finite = st.floats(-1e3, 1e3)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(finite, finite, finite), max_size=5), st.sampled_from(SPACES))
def test_to_and_from_a_space(zyx: list[tuple[float, float, float]], space: str) -> None:
    direction, spacing = GEOMETRIES["oblique"]
    stuff = {"spacing": spacing, "origin": (5.0, -6.0, 7.0), "direction": tuple(direction.ravel()),
             "original_orientation": "ASR"}  # fmt: skip
    geometry = Geometry.from_properties({"sitk_stuff": stuff}, (9, 8, 7))
    positions = geometry.from_zyx(zyx, space)
    assert positions.shape == (len(zyx), 3)
    np.testing.assert_allclose(geometry.to_zyx(positions, space), np.reshape(zyx, (-1, 3)), atol=1e-8)


@settings(deadline=None, derandomize=True)
@given(
    st.permutations([0, 1, 2]),
    st.tuples(*[st.integers(0, 9)] * 3),
    st.tuples(*[st.integers(1, 300)] * 3),
    st.tuples(*[st.integers(1, 300)] * 3),
    st.tuples(finite, finite, finite),
)
def test_to_and_from_the_grid(transpose, start, cropped, shape, zyx) -> None:
    grid = PreprocessedGrid(tuple(transpose), start, cropped, shape)
    np.testing.assert_allclose(grid.to_image(grid.from_image([zyx])), [zyx], rtol=1e-9, atol=1e-6)
    first, last = grid.to_image([(-0.5, -0.5, -0.5), np.subtract(shape, 0.5)])
    assert grid.inside(grid.from_image([first, last])).all()
    assert not grid.inside(grid.from_image([first - 0.1, last + 0.1])).any()
