"""A finished fold whose start is another model now stops a run before anything is overwritten."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.trainers.start import Start
from nnunetv2_sam3d.weights.lineage import start_of
from nnunetv2_sam3d.weights.reading import FORMAT_VERSION, METADATA_KEY

Site = Any  # the class in conftest.py


@pytest.fixture
def train(site: Site, make_network: Callable[..., SAM3D]) -> Callable[..., Path]:
    """A function that leaves a finished fold with weights of a seed, on top of those that it starts from."""

    def write(trainer: str, fold: int, seed: int, start: Path | None = None) -> Path:
        folder = site.model(trainer) / f"fold_{fold}"
        if not folder.exists():
            site.finish(trainer, fold)
        network = make_network(seed)
        weights = Start(network, lambda _: None)
        if start is not None:
            weights.take(start)
        trained = ["encoder.depth_embed"] if trainer == "SAM3DDualPath" else []
        for name, parameter in network.named_parameters():
            if name in trained:
                torch.nn.init.normal_(parameter)
        metadata = {
            "format": FORMAT_VERSION, "network": network.config.to_dict(), "provenance": weights.provenance,
            "trained": trained,
        }  # fmt: skip
        content = {"network_weights": network.state_dict(), "trainer_name": trainer, METADATA_KEY: metadata}
        torch.save(content, folder / "checkpoint_final.pth")
        (folder / "validation" / "summary.json").touch()
        return folder / "checkpoint_final.pth"

    return write


def crossval(*trainers: str) -> int:
    return main(
        ["crossval", "-d", "991", "--devices", "cpu", "--dry-run", "--trainers", *trainers, "--folds", "0", "2"]
    )


def test_a_start_that_was_trained_again(
    site: Site, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for fold in (0, 2):
        original = train("SAM3DOriginal", fold, seed=fold)
        for trainer in ("SAM3DDualPath", "SAM3DOriginalEval"):
            train(trainer, fold, seed=9, start=original)
    assert crossval("Original", "DualPath", "OriginalEval") == 0
    assert capsys.readouterr().out.count("# finished") == 6
    train("SAM3DOriginal", 2, seed=5)
    for more in ((), ("--slurm",)):
        assert crossval("DualPath", "OriginalEval", *more) == 1  # also where the start is no part of the run
        output = capsys.readouterr()
        assert output.out == ""
        for trainer in ("DualPath", "OriginalEval"):
            assert (
                f"nnUNetTrainer_SAM3D{trainer} started in fold_2 from the same fold of nnUNetTrainer_SAM3DOriginal__"
                "nnUNetSAM3DPlans__3d_fullres, which has been trained again since"
            ) in output.err
            assert f"rename or delete it in {site.model(f'SAM3D{trainer}')}" in output.err
    shutil.move(site.model("SAM3DDualPath") / "fold_2", site.model("SAM3DDualPath") / "old_fold_2")
    assert crossval("Original", "DualPath") == 0
    assert [line.startswith("# finished") for line in capsys.readouterr().out.splitlines()] == [True, True, True, False]


def test_a_start_that_is_to_be_trained_again(
    site: Site, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    full = train("SAM3DFull", 0, seed=0)
    started = train("SAM3DDualPath", 0, seed=9, start=full)
    full.unlink()
    assert crossval("Full", "DualPath") == 1
    assert "3d_fullres, which this run would train again" in capsys.readouterr().err
    assert (
        main(["crossval", "-d", "991", "--devices", "cpu", "--dry-run", "--trainers", "DualPath", "--folds", "0"]) == 0
    )
    assert capsys.readouterr().out.startswith("# finished")  # without Full in the run nothing is said
    started.rename(started.with_name("checkpoint_latest.pth"))  # one that has only begun does not go on either
    assert crossval("Full", "DualPath") == 1
    assert "started in fold_0" in capsys.readouterr().err


def test_weights_decide_and_not_files(site: Site, train: Callable[..., Path], tmp_path: Path) -> None:
    original = train("SAM3DOriginal", 0, seed=0)
    started = train("SAM3DDualPath", 0, seed=9, start=original)
    content = torch.load(original, weights_only=True)
    torch.save(content | {"logging": "written once more"}, original)
    moved = shutil.copytree(site.results, tmp_path / "elsewhere" / site.results.name)
    train("SAM3DOriginal", 0, seed=5)
    copy = start_of(moved / started.relative_to(site.results))
    assert copy is not None and copy.file == moved / original.relative_to(site.results)
    assert copy.model == site.model("SAM3DOriginal").name
    assert not copy.replaced  # the copy of the start was moved with it
    here = start_of(started)
    assert here is not None and here.replaced


def test_other_starts_are_nobodys_business(
    site: Site, train: Callable[..., Path], make_network: Callable[..., SAM3D], tmp_path: Path
) -> None:
    site.finish("SAM3DOriginalEval", 1)
    assert start_of(site.model("SAM3DOriginalEval") / "fold_1" / "checkpoint_final.pth") is None
    file = shutil.copy(train("SAM3DOriginal", 0, seed=0), tmp_path / "original.pth")
    assert start_of(train("SAM3DDualPath", 0, seed=1, start=Path(file))) is None
    other_fold = site.model("SAM3DOriginal") / "fold_0" / "checkpoint_final.pth"
    assert start_of(train("SAM3DDualPath", 3, seed=1, start=other_fold)) is None
