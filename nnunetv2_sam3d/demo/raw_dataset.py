"""Phantoms as an nnU-Net raw data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunetv2_sam3d.children import worker_processes
from nnunetv2_sam3d.demo.anatomy import BACKGROUND, CYST, KIDNEY, TUMOUR
from nnunetv2_sam3d.demo.phantoms import PhantomCase, make_phantom
from nnunetv2_sam3d.files import write_json
from nnunetv2_sam3d.json_files import read_table
from nnunetv2_sam3d.nnunet.image_files import image_written_whole

VERSION = 2
FILE_ENDING = ".nii.gz"
LABELS = {"background": BACKGROUND, "kidney": KIDNEY, "tumour": TUMOUR, "cyst": CYST}
SEEDS_PER_SPLIT = 5000


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def case_seeds(seed: int, train_cases: int, test_cases: int) -> tuple[list[int], list[int]]:
    """Seeds of the training and of the test cases; no two cases, splits or data set seeds share one."""
    first, second = 2 * SEEDS_PER_SPLIT * seed, (2 * seed + 1) * SEEDS_PER_SPLIT
    return list(range(first, first + train_cases)), list(range(second, second + test_cases))


def _write_image(array: np.ndarray, case: PhantomCase, path: Path) -> None:
    """The image with its geometry; a kill or a full disk leaves no half of it."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(case.spacing_mm[::-1])
    image.SetOrigin(case.origin_mm)
    image.SetDirection(case.direction)
    with image_written_whole(path, FILE_ENDING) as partial:
        sitk.WriteImage(image, str(partial), useCompression=True)


def _check_folder(folder: Path, configuration: dict) -> None:
    """Raise ValueError if `folder` holds anything but (part of) the data set of this configuration."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    found: object = None
    for file in (folder / "phantoms.json", folder / "dataset.json"):
        if found is None and file.exists():
            found = read_table(file, "Delete the folder, or choose another dataset_id or name").get("phantoms")
    if found != configuration:
        raise ValueError(
            f"{folder} holds another data set (phantoms: {found}, wanted: {configuration}); "
            "delete the folder, or choose another dataset_id or name"
        )


def _files_of(folder: Path, number: int, split: str) -> tuple[Path, Path]:
    """Image and labels of a case."""
    name = f"phantom_{number:03d}"
    return folder / f"images{split}" / f"{name}_0000{FILE_ENDING}", folder / f"labels{split}" / f"{name}{FILE_ENDING}"


def _write_case(task: tuple[Path, int, str, int, bool]) -> None:
    folder, number, split, seed, cysts = task
    image_file, label_file = _files_of(folder, number, split)
    case = make_phantom(seed)
    _write_image(case.image_hu, case, image_file)
    labels = case.labels if cysts else np.where(case.labels == CYST, np.uint8(KIDNEY), case.labels)
    _write_image(labels, case, label_file)


def write_dataset(
    raw_folder: Path,
    *,
    dataset_id: int = 990,
    name: str = "KidneyPhantoms",
    train_cases: int = 24,
    test_cases: int = 6,
    seed: int = 0,
    cysts: bool = True,
    progress: bool = True,
    processes: int = 1,
) -> Path:
    """Write phantoms as the nnU-Net raw data set `raw_folder/DatasetXXX_name` and return that folder.

    Training cases come first in the numbering; test cases go to imagesTs, their labels to labelsTs. Cases already
    complete on disk are kept, so that an interrupted call can be repeated. Without `cysts`, these are
    annotated as kidney, as in KiTS19. Raises ValueError for arguments that make no usable data set, and if the folder
    holds a data set of another configuration.
    """
    _require(1 <= dataset_id <= 999, f"dataset_id must be within 1..999 as in nnU-Net, got {dataset_id}; try 990")
    _require(name.isidentifier(), f"name must be letters, digits and underscores, got {name!r}; try 'KidneyPhantoms'")
    _require(
        5 <= train_cases <= SEEDS_PER_SPLIT,
        f"train_cases must be within 5..{SEEDS_PER_SPLIT}, got {train_cases}; nnU-Net needs one for each of 5 folds",
    )
    _require(
        0 <= test_cases <= SEEDS_PER_SPLIT,
        f"test_cases must be within 0..{SEEDS_PER_SPLIT}, got {test_cases}; use 0 for no test set",
    )
    _require(seed >= 0, f"seed must be at least 0, got {seed}; pass a non-negative int")

    folder = Path(raw_folder) / f"Dataset{dataset_id:03d}_{name}"
    configuration: dict[str, object] = {
        "version": VERSION,
        "seed": seed,
        "train_cases": train_cases,
        "test_cases": test_cases,
    }
    if not cysts:
        configuration["cysts"] = "kidney"
    _check_folder(folder, configuration)
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    # dataset.json comes last and means complete; until then this file says whose the cases are.
    write_json(folder / "phantoms.json", {"phantoms": configuration}, indent=2)

    training, test = case_seeds(seed, train_cases, test_cases)
    jobs = [*((s, "Tr") for s in training), *((s, "Ts") for s in test)]
    tasks = [(folder, number, split, case_seed, cysts) for number, (case_seed, split) in enumerate(jobs)]
    missing = [task for task in tasks if not all(file.exists() for file in _files_of(*task[:3]))]
    with worker_processes(min(processes, len(missing))) as mapped:
        for _ in tqdm(mapped(_write_case, missing), "phantoms", len(missing), unit="case", disable=not progress):
            pass

    description = {
        "channel_names": {"0": "CT"},
        "labels": {name: value for name, value in LABELS.items() if cysts or value != CYST},
        "numTraining": train_cases,
        "file_ending": FILE_ENDING,
        "phantoms": configuration,
    }
    write_json(folder / "dataset.json", description, indent=2)
    return folder
