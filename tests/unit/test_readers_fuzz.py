"""Whatever is in a file, its reader gives what it is for or an error that names the file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from safetensors.torch import save

from nnunetv2_sam3d.nnunet.descriptions import read_dataset, read_plans
from nnunetv2_sam3d.nnunet.images import Case, read_header, read_image, read_segmentation, reader_called
from nnunetv2_sam3d.nnunet.preprocessed import read_case
from nnunetv2_sam3d.nnunet.splits import read_folds
from nnunetv2_sam3d.weights.adapter_file import read_adapter
from nnunetv2_sam3d.weights.reading import read_weights
from nnunetv2_sam3d.weights.sources import FILES

Reader = Callable[[Path], Any]
IMAGES = {f"a{ending}": "SimpleITKIO" for ending in (".nii.gz", ".nii", ".nrrd", ".mha")}


@cache
def image_bytes(ending: str, folder: Path) -> bytes:
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    sitk.WriteImage(image, str(folder / f"whole{ending}"))
    return (folder / f"whole{ending}").read_bytes()


def blows(data: st.DataObject, content: bytes) -> bytes:
    """Content with a part replaced, or cut off."""
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 20)))
    new = data.draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"9" * 8, b"\x00" * 8, b"", b"[" * 3000]))
    whole = content[:start] + new + content[end:]
    return whole[: data.draw(st.sampled_from([len(whole), len(whole), start]))]


def reads_or_refuses(file: Path, content: bytes, read: Reader, named: Path | None = None) -> None:
    file.write_bytes(content)
    try:
        read(file)
    except (ValueError, OSError) as error:
        assert str(named or file) in str(error) and len(str(error)) < 3000, error


def tries(count: int) -> settings:
    """So many damaged files, always the same ones."""
    allowed = [HealthCheck.differing_executors]
    return settings(deadline=None, derandomize=True, max_examples=count, suppress_health_check=allowed)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@tries(60)
@given(data=st.data())
def test_images(ending: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = image_bytes(ending, folder)
    if ending == ".nii.gz" and data.draw(st.booleans()):  # what is inside is damaged, the archive is whole
        damaged = gzip.compress(blows(data, gzip.decompress(content)))
    else:
        damaged = blows(data, content)
    reader = reader_called("NibabelIO" if ".nii" in ending and data.draw(st.booleans()) else "SimpleITKIO")
    file = folder / f"damaged{ending}"
    for read in (
        lambda path: read_image([path], reader),
        lambda path: read_segmentation(path, reader),
        lambda path: read_header(Case("damaged", (path,)), reader),
    ):
        reads_or_refuses(file, damaged, read)


SPLITS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c", "b"], "val": ["a"]}]
PLANS = {"plans_name": "x", "configurations": {"3d_fullres": {"spacing": [1.0, 1.0, 1.0]}}}
TABLES: dict[str, tuple[Any, Reader]] = {
    "splits_final.json": (SPLITS, read_folds),
    "plans.json": (PLANS, read_plans),
    "dataset.json": (PLANS, read_dataset),
    "model.safetensors.index.json": ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, read_weights),
}


@pytest.mark.parametrize("name", TABLES)
@tries(60)
@given(data=st.data())
def test_tables(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content, read = TABLES[name]
    reads_or_refuses(tmp_path_factory.getbasetemp() / name, blows(data, json.dumps(content).encode()), read)


@tries(60)
@given(data=st.data())
def test_adapter_files_and_safetensors(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    import torch

    content = save({"a": torch.zeros(3)}, {"kind": "nnunetv2_sam3d adapter", "format": "1", "sha256": "0"})
    damaged = blows(data, content)
    for read in (read_adapter, read_weights):
        reads_or_refuses(tmp_path_factory.getbasetemp() / FILES[0], damaged, read)


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preprocessed")
    values = np.random.default_rng(0).normal(size=(1, 6, 7, 8)).astype(np.float32)
    properties = {"spacing": [1.0, 1.0, 1.0], "shape_before_cropping": (6, 7, 8), "class_locations": {},
                  "bbox_used_for_cropping": [[0, 6], [0, 7], [0, 8]],
                  "shape_after_cropping_and_before_resampling": (6, 7, 8)}  # fmt: skip
    nnUNetDatasetBlosc2.save_case(values, (values > 0).astype(np.int8), properties, str(folder / "a"))
    return folder


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
@pytest.mark.parametrize("size", [0, 5, 50, 100, -1])
def test_cut_off_preprocessed_cases(ending: str, size: int, preprocessed: Path) -> None:
    file = preprocessed / f"a{ending}"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:size])
        with pytest.raises(ValueError, match=rf"^the preprocessed case {preprocessed}/a is damaged"):
            read_case(preprocessed, "a")
    finally:
        file.write_bytes(content)
    assert read_case(preprocessed, "a").image.shape == (1, 6, 7, 8)


@pytest.mark.slow
@pytest.mark.parametrize("test", [test_images, test_tables, test_adapter_files_and_safetensors])
def test_many(test: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same with thousands of files."""
    cases: dict[Any, list[tuple[str, ...]]] = {
        test_images: [(ending,) for ending in (".nii.gz", ".nii", ".nrrd", ".mha")],
        test_tables: [(name,) for name in TABLES],
    }
    for case in cases.get(test, [()]):
        read_many(test.hypothesis.inner_test, case, tmp_path_factory)


def read_many(body: Any, case: tuple[str, ...], folders: pytest.TempPathFactory) -> None:
    @tries(3000)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        body(*case, data=data, tmp_path_factory=folders)

    run()


@pytest.mark.parametrize(("ending", "find", "put"), [
    (".nrrd", b"kinds: domain", b"kinds: " + b"[" * 1000),
    (".nrrd", b"NRRD000", b"N\xff\xff\xff\xff\xff"),
    (".nrrd", b"dimension: 3", b"dimension: " + b"9" * 3000),
    (".mha", b"NDims = 3", b"NDims = 99999999"),
    (".mha", b"DimSize = 5 4 3", b"DimSize = " + b"5 " * 3000),
])  # fmt: skip
def test_headers_with_which_itk_ends_the_process(ending: str, find: bytes, put: bytes, tmp_path: Path) -> None:
    content = image_bytes(ending, tmp_path)
    assert find in content
    (file := tmp_path / f"a{ending}").write_bytes(content.replace(find, put))
    reader = reader_called("SimpleITKIO")
    for read in (
        lambda: read_image([file], reader),
        lambda: read_segmentation(file, reader),
        lambda: read_header(Case("a", (file,)), reader),
    ):
        with pytest.raises(ValueError, match=rf"{file} cannot be read \(its header is no whole"):
            read()


def test_headers_that_other_programs_write_are_read(tmp_path: Path) -> None:
    """Long comments and entries of 3D Slicer in NRRD, and of DICOM files in MetaImage."""
    reader = reader_called("SimpleITKIO")
    expected = np.arange(60).reshape(3, 4, 5)
    for ending, find, put in (
        (".nrrd", b"encoding:", b"# " + b"x" * 5000 + b"\nSegment0_Tags:=" + b"SRT^M-01000^" * 500 + b"\nencoding:"),
        (".mha", b"DimSize", b"0010|4000 = a comment of more than sixteen words " + b"word " * 200 + b"\nDimSize"),
    ):
        (file := tmp_path / f"a{ending}").write_bytes(image_bytes(ending, tmp_path).replace(find, put, 1))
        assert np.array_equal(read_image([file], reader)[0][0], expected)
