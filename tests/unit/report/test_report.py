"""The report of a results tree whose trainers' errors are known."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from results_tree import Tree, log_of, write_image, write_tree

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.own_files import LIST
from nnunetv2_sam3d.report.training_record import read_training
from nnunetv2_sam3d.results.collect import collect
from nnunetv2_sam3d.results.measure import Row, measure_all
from nnunetv2_sam3d.results.structures import structures_of
from nnunetv2_sam3d.results.trained_models import RepeatedModel, find_models, open_dataset
from nnunetv2_sam3d.trainers.names import SHORT_NAMES
from nnunetv2_sam3d.trainers.start import Start
from nnunetv2_sam3d.weights.reading import METADATA_KEY

TRAINERS = ["Full", "DualPath", "OriginalEval"]
FILES = {"report.html", "cases.csv", "summary.json", "measured.jsonl"}


def report(output: Path, *more: str, trainers: list[str] = TRAINERS) -> Path:
    assert main(["report", "-d", "990", "--trainers", *trainers, "-o", str(output), "-np", "1", *more]) == 0
    return output


def cases_of(output: Path) -> list[dict[str, str]]:
    with open(output / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, Path]:
    """One report that several tests read."""
    root = tmp_path_factory.mktemp("made")
    tree = write_tree(root / "nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tree.environment.items():
            patch.setenv(name, value)
        report(root / "out")
    return tree, root / "out"


def test_every_case_once_with_known_metrics(made: tuple[Tree, Path]) -> None:
    tree, output = made
    rows = cases_of(output)
    assert len(rows) == 3 * 10 * 3
    assert {row["model"] for row in rows} == set(TRAINERS)
    for row in rows:
        assert int(row["fold"]) == tree.cases.index(row["case"]) % 5
        shift_mm = 1.5 * (1 if row["model"] == "DualPath" else 3)
        if row["hd95_mm"]:
            assert float(row["hd95_mm"]) == pytest.approx(shift_mm, abs=1.51)
        assert float(row["volume_error_ml"] or 0) == 0.0  # a shifted mask has its volume
    (none,) = [r for r in rows if (r["model"], r["case"], r["structure"]) == ("Full", "case_000", "tumour")]
    assert (none["empty"], none["dice"], none["hd95_mm"], none["lesions"]) == ("both", "1", "", "0")


def test_dice_is_nnunets(made: tuple[Tree, Path]) -> None:
    """Recomputed from the files, voxel by voxel."""
    tree, output = made
    row = next(
        r for r in cases_of(output) if (r["model"], r["case"], r["structure"]) == ("DualPath", "case_006", "tumour")
    )
    one, two = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(file))) == 2
        for file in (tree.prediction("nnUNetTrainer_SAM3DDualPath", "case_006"), tree.raw / "labelsTr/case_006.nii.gz")
    )
    assert float(row["dice"]) == pytest.approx(2 * (one & two).sum() / (one.sum() + two.sum()))
    assert float(row["reference_ml"]) == pytest.approx(two.sum() * 3 * 1.5 * 1.5 / 1000)


def test_summary_and_its_provenance(made: tuple[Tree, Path]) -> None:
    tree, output = made
    summary = json.loads((output / "summary.json").read_text())
    assert summary["cases"] == 10
    found = summary["provenance"]
    assert found["versions"]["nnunetv2"] and found["versions"]["torch"]
    assert len(found["dataset"]["splits_final.json"]) == len(found["models"][0]["plans.json"]) == 64
    assert found["models"][1]["training commands"][4].startswith("nnUNetv2_train Dataset990_Phantoms 3d_fullres 4 -tr ")
    assert "--trainers Full DualPath OriginalEval" in found["report command"]
    assert str(tree.root) not in (output / "summary.json").read_text()
    dice = [d for d in summary["differences"] if (d["metric"], d["structure"]) == ("dice", "kidney")]
    assert [(d["first"], d["second"]) for d in dice] == [
        ("Full", "DualPath"),
        ("Full", "OriginalEval"),
        ("DualPath", "OriginalEval"),
    ]
    assert dice[0]["mean"] > 0 and dice[0]["effect"] == 1.0
    assert dice[0]["p"] < 1e-6 and dice[0]["p_cases"] == pytest.approx(2 / 2**10)
    assert not dice[0]["includes_training_noise"] and dice[0]["repeat_sd"] is None
    assert dice[1]["p_holm"] == 1.0  # the two give the same masks


def test_costs_and_curves(made: tuple[Tree, Path]) -> None:
    tree, output = made
    runs = {(run["model"], run["fold"]): run for run in json.loads((output / "summary.json").read_text())["trainings"]}
    assert runs["Full", 2]["hours"] == pytest.approx(4 * 90 / 3600)
    assert runs["OriginalEval", 0]["hours"] == 0
    assert (runs["Full", 0]["parameters"], runs["Full", 0]["device"]) == (30, "cpu")
    assert runs["Full", 0]["peak_bytes"] is None
    trainer = "nnUNetTrainer_SAM3DFull"
    curves = read_training(RepeatedModel("Full", trainer, tree.model(trainer)), 2).curves
    assert curves["train_loss"] == [0.48, 0.43, 0.38, 0.33]
    assert curves["pseudo_dice"] == pytest.approx([0.6, 0.625, 0.65, 0.675])


def test_an_interrupted_training_counts_its_repeated_epoch_once(tmp_path: Path) -> None:
    folder = tmp_path / "nnUNetTrainer_SAM3DFull__plans__3d_fullres" / "fold_0"
    folder.mkdir(parents=True)
    (folder / "training_log_2026_1_1_10_00_00.txt").write_text(log_of(range(0, 3), 0))
    (folder / "training_log_2026_1_1_12_00_00.txt").write_text(log_of(range(2, 4), 0, seconds=36.0))
    record = folder.parent.parent / "comparison__plans__fold_0" / "steps.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"train nnUNetTrainer_SAM3DFull": {"seconds": 5, "peak_rss_bytes": 7_000}}))
    found = read_training(RepeatedModel("Full", "nnUNetTrainer_SAM3DFull", folder.parent), 0)
    assert found.curves["epoch"] == [0, 1, 2, 3]
    assert found.hours == pytest.approx((90 + 90 + 36 + 36) / 3600)
    assert (found.trained, found.peak_bytes) == (None, 7_000)


def test_a_start_that_was_trained_again_is_told(tree: Tree, make_network: Callable[..., SAM3D]) -> None:
    folders = {name: tree.model(f"nnUNetTrainer_SAM3D{name}") / "fold_2" for name in ("Full", "DualPath")}

    def train(name: str, seed: int, start: Path | None = None) -> None:
        network = make_network(seed)
        weights = Start(network, lambda _: None)
        if start is not None:
            weights.take(start)
        metadata = {"format": 1, "network": network.config.to_dict(), "provenance": weights.provenance, "trained": []}
        content = {"network_weights": network.state_dict(), "trainer_name": name, METADATA_KEY: metadata}
        torch.save(content, folders[name] / "checkpoint_final.pth")

    train("Full", 0)
    train("DualPath", 1, start=folders["Full"] / "checkpoint_final.pth")
    model = RepeatedModel("DualPath", "nnUNetTrainer_SAM3DDualPath", folders["DualPath"].parent)
    found = read_training(model, 2)
    assert (found.start, found.start_replaced) == (folders["Full"].parent.name, False)
    train("Full", 7)
    page = (report(tree.root / "out", "-f", "2", "3", trainers=["DualPath"]) / "report.html").read_text()
    assert f"DualPath started from {found.start}, which has been trained again since in these folds: 2." in page
    runs = json.loads((tree.root / "out" / "summary.json").read_text())["trainings"]
    assert [run["start_replaced"] for run in runs] == [True, False]


def test_files(made: tuple[Tree, Path]) -> None:
    _, output = made
    assert FILES | {"tables", "figures", LIST, f"{LIST}.lock"} == {path.name for path in output.iterdir()}
    for folder, kinds in (("tables", {".md", ".tex"}), ("figures", {".svg", ".png"})):
        names = {path.stem for path in (output / folder).iterdir()}
        assert {path.name for path in (output / folder).iterdir()} == {n + kind for n in names for kind in kinds}
    assert {path.stem for path in (output / "figures").iterdir()} == {
        "dice_automatic", "surface_dice_automatic", "hd95_mm_automatic", "volumes_automatic", "learning_curves",
        "overlay_worst", "overlay_median", "overlay_best", "answer",
    }  # fmt: skip
    latex = (output / "tables" / "pooled_automatic.tex").read_text()
    assert latex.count(r"\\") == 1 + 9 and r"\toprule" in latex and r"95 \% interval" in latex


def test_the_same_input_gives_the_same_bytes(made: tuple[Tree, Path], tmp_path: Path, monkeypatch) -> None:
    tree, first = made
    for name, value in tree.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    second = report(Path("elsewhere"))
    for file in sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file()):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def measured(tree: Tree, store: Path, processes: int = 1) -> list[Row]:
    dataset = open_dataset(tree.preprocessed)
    models = find_models(dataset, ["Full"], "nnUNetSAM3DPlans", "3d_fullres", SHORT_NAMES)
    items = collect(dataset, models, range(5))
    return measure_all(items, structures_of(dataset.json), [0, 1, 2, 3], store=store, processes=processes)


def test_what_was_measured_is_kept_until_a_mask_changes(tree: Tree, tmp_path: Path) -> None:
    store = tmp_path / "measured.jsonl"
    before = measured(tree, store)
    lines = store.read_text().splitlines()
    assert len(lines) == 10
    store.write_text("\n".join(lines[:6]) + '\n{"key": "cut o')  # an interruption
    assert repr(measured(tree, store)) == repr(before)  # as text, in which NaN equals NaN
    write_image(np.zeros((20, 28, 30), np.uint8), tree.prediction("nnUNetTrainer_SAM3DFull", "case_004"))
    changed = {row.case for row, old in zip(measured(tree, store), before, strict=True) if repr(row) != repr(old)}
    assert changed == {"case_004"}


def test_processes_give_the_same(tree: Tree, tmp_path: Path) -> None:
    assert repr(measured(tree, tmp_path / "one")) == repr(measured(tree, tmp_path / "two", processes=2))


def test_some_folds_are_reported_as_such(tree: Tree, tmp_path: Path) -> None:
    for file in (tree.model("nnUNetTrainer_SAM3DFull") / "fold_3" / "validation").iterdir():
        file.unlink()
    page = (report(tmp_path / "out", "-f", "0", trainers=["Full", "DualPath"]) / "report.html").read_text()
    assert "2 of 10 cases" in page
    assert "Not all folds: 1 of 5" in page
    assert "no standard deviation over folds" in page
    assert "Only 2 cases" in page
    assert "is better on these cases" not in page
