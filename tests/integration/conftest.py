"""A tiny data set, nnU-Net's real commands in fresh processes, and three trained models that most tests look at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

CONFIGURATION = "3d_fullres"
SHAPE = (20, 24, 16)  # voxels (D, H, W); two windows of a patch
CASES = 5
TINY = (
    "--variant vit_tiny --token-stride 4 --patch-size 16 24 16 --batch-size 2 "
    "--epochs 2 --iterations-per-epoch 2 --val-iterations-per-epoch 1"
).split()


@dataclass(frozen=True)
class Workspace:
    """nnU-Net's three folders, and its commands as a user's shell would start them.

    `number` and `plans` are the data set and the plans that `train` and the paths below are about.
    """

    root: Path
    number: int = 991
    plans: str = "nnUNetSAM3DPlans"

    @property
    def name(self) -> str:
        return f"Dataset{self.number:03d}_Blobs"

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.name

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / self.name

    @property
    def results(self) -> Path:
        return self.root / "results" / self.name

    @property
    def plans_file(self) -> Path:
        return self.preprocessed / f"{self.plans}.json"

    def model(self, trainer: str) -> Path:
        return self.results / f"nnUNetTrainer_{trainer}__{self.plans}__{CONFIGURATION}"

    def fold(self, trainer: str, fold: int) -> Path:
        return self.model(trainer) / f"fold_{fold}"

    def log(self, trainer: str, fold: int) -> str:
        """All training logs of a fold."""
        return "".join(path.read_text() for path in sorted(self.fold(trainer, fold).glob("training_log*.txt")))

    def environment(self, **variables: str) -> dict[str, str]:
        """That of this process without what Python or nnU-Net set in it, with nnU-Net's paths and worker counts."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "nnUNet_", "COV_CORE_", "XDG_CACHE_HOME"))
        }
        paths = {f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")}
        # spinning threads would slow these tests down several times where other processes want the cores
        workers = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "OMP_WAIT_POLICY": "passive"}
        return kept | paths | workers | {"XDG_CACHE_HOME": str(self.root / "cache")} | variables

    def start(self, program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Starts a console script of the running environment; `variables` go into its environment."""
        elsewhere = self.root / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        options = {"cwd": elsewhere} | options
        environment = self.environment(**options.pop("variables", {}))
        return subprocess.Popen(
            [str(Path(sys.executable).parent / program), *map(str, arguments)],
            env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, **options,
        )  # fmt: skip

    def fails(self, program: str, *arguments: object, **options: Any) -> str:
        """Output of a command that has to fail."""
        return self._finish(False, program, *arguments, **options)

    def run(self, program: str, *arguments: object, **options: Any) -> str:
        """Output of a command that has to succeed."""
        return self._finish(True, program, *arguments, **options)

    def _finish(self, success: bool, program: str, *arguments: object, **options: Any) -> str:
        process = self.start(program, *arguments, **options)
        output = process.communicate(timeout=500)[0]
        assert (process.returncode == 0) is success, f"{program} {arguments}: {process.returncode}\n{output[-6000:]}"
        return output

    def training(self, trainer: str, fold: int, *more: object, configuration: str = CONFIGURATION) -> tuple[Any, ...]:
        """The training command, for `run`, `fails` and `start`."""
        return (
            "nnUNetv2_train", self.number, configuration, fold, "-tr", f"nnUNetTrainer_{trainer}", "-p", self.plans,
            "-device", "cpu", *more,
        )  # fmt: skip

    def train(self, trainer: str, fold: int, *more: object, **options: Any) -> str:
        return self.run(*self.training(trainer, fold, *more), **options)

    @property
    def plan_options(self) -> list[str]:
        """How the plans were made, for commands that make them."""
        return list(TINY)

    def copy(self, number: int) -> Workspace:
        """The same preprocessed data as another data set."""
        other = replace(self, number=number)
        shutil.copytree(self.preprocessed, other.preprocessed)
        for file in other.preprocessed.glob("*Plans.json"):
            file.write_text(file.read_text().replace(self.name, other.name))
        return other

    def predict(self, trainer: str, fold: int, images: Path, output: Path, *more: object, **options: Any) -> str:
        return self.run(
            "nnUNetv2_predict", "-i", images, "-o", output, "-d", self.number, "-c", CONFIGURATION, "-f", fold, "-tr",
            f"nnUNetTrainer_{trainer}", "-p", self.plans, "-device", "cpu", "-npp", 1, "-nps", 1, *more, **options,
        )  # fmt: skip

    def derive_copy(self, plans: str, change: Callable[[dict[str, Any]], None]) -> Workspace:
        """The same with other plans: a copy of these in which `change` edits the configurations."""
        content = json.loads(self.plans_file.read_text())
        content["plans_name"] = plans
        change(content["configurations"])
        derived = replace(self, plans=plans)
        derived.plans_file.write_text(json.dumps(content))
        return derived

    def validation_case(self, fold: int, folder: Path) -> Path:
        """A folder with the raw image of a fold's validation case."""
        folder.mkdir(parents=True)
        (folder / f"case_{fold}_0000.nii.gz").symlink_to(self.raw / "imagesTr" / f"case_{fold}_0000.nii.gz")
        return folder


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def two_at_a_time(functions: list[Callable[[], Any]]) -> list[Any]:
    """Runs functions that start commands; most of a short command's time is imports on one core."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda function: function(), functions))


def write_raw_dataset(workspace: Workspace, labels: dict[str, Any], *, cases: int = CASES, **more: Any) -> None:
    """Noise with two bright blobs, labels 1 and 2 (and 3 beside them), in several orientations and spacings."""
    rng = np.random.default_rng(workspace.number)
    for folder in ("imagesTr", "labelsTr"):
        (workspace.raw / folder).mkdir(parents=True)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    values = {value for entry in labels.values() for value in (entry if isinstance(entry, list) else [entry])}
    for case in range(cases):
        annotation = np.zeros(SHAPE, np.uint8)
        for label, middle in ((1, (6, 7, 8)), (2, (13, 16, 8)), (3, (14, 7, 8))):
            centre = np.array(middle) + rng.integers(-1, 2, 3)
            ball = ((grid - centre.reshape(3, 1, 1, 1)) ** 2).sum(0) < 4.5**2
            annotation[ball if label in values else np.zeros_like(ball)] = label
        image = rng.normal(100.0 * annotation, 20).astype(np.float32)
        signs = [(1, 1, 1), (-1, -1, 1), (1, -1, -1)][case % 3]
        for array, file in ((image, f"imagesTr/case_{case}_0000.nii.gz"), (annotation, f"labelsTr/case_{case}.nii.gz")):
            picture = sitk.GetImageFromArray(array)
            picture.SetSpacing((1.0, 1.0, 1.0) if case % 2 else (1.1, 1.1, 1.25))
            picture.SetDirection(np.diag(np.array(signs, float)).ravel().tolist())
            picture.SetOrigin((5.0 * case, -30.0, 12.5))
            sitk.WriteImage(picture, str(workspace.raw / file))
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz", **more}
    (workspace.raw / "dataset.json").write_text(json.dumps(content))
    # one validation case a fold; nnU-Net takes a split that is there
    names = [f"case_{case}" for case in range(cases)]
    splits = [{"train": [name for name in names if name != held_out], "val": [held_out]} for held_out in names]
    workspace.preprocessed.mkdir(parents=True)
    (workspace.preprocessed / "splits_final.json").write_text(json.dumps(splits))


@pytest.fixture(scope="session")
def raw_datasets(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Raw data sets only: 991 with two labels, 992 with regions like KiTS', 993 with an ignore label."""
    workspace = Workspace(tmp_path_factory.mktemp("nnunet"))
    write_raw_dataset(workspace, {"background": 0, "large": 1, "small": 2})
    write_raw_dataset(
        replace(workspace, number=992),
        {"background": 0, "organ": [1, 2, 3], "masses": [2, 3], "tumour": 2},
        cases=2, regions_class_order=[1, 3, 2],
    )  # fmt: skip
    write_raw_dataset(replace(workspace, number=993), {"background": 0, "large": 1, "small": 2, "ignore": 3}, cases=2)
    return workspace


@pytest.fixture(scope="session")
def planned(raw_datasets: Workspace) -> Workspace:
    """All data sets planned and preprocessed by nnU-Net, and plans derived from its own."""

    def plan(*numbers: int) -> None:
        raw_datasets.run("nnUNetv2_plan_and_preprocess", "-d", *numbers, "-c", CONFIGURATION, "-npfp", 1, "-np", 1)
        for number in numbers:
            raw_datasets.run("nnUNetv2_sam3d", "plan", "-d", number, *TINY)

    two_at_a_time([lambda: plan(991), lambda: plan(992, 993)])
    return raw_datasets


@pytest.fixture(scope="session")
def trained(planned: Workspace) -> Workspace:
    """Full, DualPath and OriginalEval trained and validated on fold 0 of 991."""
    planned.train("SAM3DFull", 0)
    two_at_a_time([lambda: planned.train("SAM3DDualPath", 0), lambda: planned.train("SAM3DOriginalEval", 0)])
    return planned


@pytest.fixture(scope="session")
def read_volume() -> Callable[[Path], np.ndarray]:
    return read


@pytest.fixture(scope="session")
def both_at_once() -> Callable[[list[Callable[[], Any]]], list[Any]]:
    return two_at_a_time


@pytest.fixture(scope="session")
def users_trainer(planned: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stock trainer of one step, trained with the real command."""
    folder = tmp_path_factory.mktemp("users trainers")
    (folder / "users_trainers.py").write_text("""\
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainer_Users(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1
""")
    stock = replace(planned, plans="nnUNetPlans")
    stock.train("Users", 0, variables={"nnUNet_extTrainer": str(folder)})
    return folder
