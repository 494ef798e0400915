"""The whole-volume protocol on a fold on disk: nnU-Net's figures without clicks, files, resuming, the command."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, load_summary_json
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from scipy import stats
from toy_fold import LABELS, VALIDATION, Site, save_network

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.clicks.click_files import read_clicks
from nnunetv2_sam3d.clicks.geometry import PreprocessedGrid
from nnunetv2_sam3d.clicks.placing import clicks_for_case, clicks_in_grid
from nnunetv2_sam3d.evaluation.click_test import run_protocol
from nnunetv2_sam3d.evaluation.whole_volume import WholeVolumeProtocol
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.nnunet.labels import find_target

COUNTS = (0, 1, 3)


@pytest.fixture
def output(site: Site) -> Path:
    return site.model / "fold_0" / "clicks"


def run(site: Site, network: SAM3D, target: str = "tumour", **options: Any) -> dict[str, Any]:
    protocol = WholeVolumeProtocol(find_target(LABELS, target), site.fold, click_counts=COUNTS, mirror_axes=(1, 2))
    return run_protocol(site.fold, protocol, network, torch.device("cpu"), **options)


def nnunets_summary(site: Site, network: SAM3D, folder: Path) -> dict[str, Any]:
    """As nnU-Net's trainer validates a fold, up to the processes it uses."""
    folder.mkdir()
    fold = site.fold
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(network, fold.plans, fold.configuration, None, fold.dataset_json, "", (1, 2))
    dataset = nnUNetDatasetBlosc2(str(site.data), VALIDATION)
    for case in VALIDATION:
        image, _, _, properties = dataset.load_case(case)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image[:]))
        export_prediction_from_logits(
            logits, properties, fold.configuration, fold.plans, fold.dataset_json, str(folder / case)
        )
    reader = fold.plans.image_reader_writer_class()
    compute_metrics_on_folder(
        str(site.preprocessed / "gt_segmentations"), str(folder), str(folder / "summary.json"), reader, ".nii.gz",
        [1, 2], num_processes=1,
    )  # fmt: skip
    return load_summary_json(str(folder / "summary.json"))


def test_no_click_is_nnunets_validation(site: Site, network: SAM3D, tmp_path: Path) -> None:
    expected = nnunets_summary(site, network, tmp_path / "validation")
    seen = 0
    for label, target in ((1, "organ"), (2, "tumour")):
        summary = run(site, network, target, output=tmp_path / target)
        for entry in expected["metric_per_case"]:
            case, metrics = Path(entry["prediction_file"]).name.removesuffix(".nii.gz"), entry["metrics"][label]
            if metrics["n_ref"]:
                record = json.loads((tmp_path / target / "cases" / f"{case}.json").read_text())["clicks"]["0"]
                assert record["predicted_voxels"] == metrics["n_pred"]
                assert summary["per_case"][case]["0"]["Dice"] == pytest.approx(metrics["Dice"], abs=1e-12)
                seen += 0 < metrics["Dice"] < 1
    assert seen >= 2  # zeros alone would prove little


def test_metrics_intervals_and_clicks_are_kept(site: Site, network: SAM3D, output: Path) -> None:
    summary = run(site, network)
    assert (summary["cases_evaluated"], list(summary["mean"])) == (2, ["0", "1", "3"])
    assert list(summary["cases_left_out"]) == ["case_empty"]
    for count, names in summary["mean"].items():
        for name, mean in names.items():
            values = [summary["per_case"][case][count][name] for case in VALIDATION[:2]]
            assert mean == pytest.approx(np.mean(values))
            low, high = summary["interval_95"][count][name]
            # of two cases in one fold: Student's t with one degree of freedom
            reach = stats.t.ppf(0.975, 1) * stats.sem(values)
            assert (low, high) == (pytest.approx(mean - reach), pytest.approx(mean + reach))
    placed = json.loads((output / "cases" / "case_a.json").read_text())["placed"]
    assert len(placed) == 3 and placed[0]["placed"] == "first"
    assert all(10 <= click["point_zyx"][0] < 16 for click in placed)  # the tumour's slices
    table = (output / "summary_with_clicks.md").read_text()
    assert "but for the column automatic" in table
    assert "| metric" in table and "| automatic" in table and "| 3 clicks" in table


def test_a_signed_network_is_evaluated_with_signed_clicks(
    site: Site, output: Path, make_network: Callable[..., SAM3D], capsys: pytest.CaptureFixture[str]
) -> None:
    save_network(make_network(num_classes=3, signed_clicks=True), site.fold.checkpoint)
    assert main(["evaluate", str(site.model), "--device", "cpu", "--clicks", "0", "4", "--target", "organ"]) == 0
    assert "signed clicks" in capsys.readouterr().out
    settings = json.loads((output / "summary_with_clicks.json").read_text())["settings"]
    assert settings["signed_clicks"] is True and settings["click_counts"] == [0, 4]
    placed = [json.loads((output / "cases" / f"{case}.json").read_text())["placed"] for case in VALIDATION]
    assert {click["sign"] for clicks in placed for click in clicks} == {1, -1}


def test_second_run_predicts_only_what_is_missing(site: Site, network: SAM3D, output: Path) -> None:
    before = run(site, network)
    kept = (output / "cases" / "case_b.json").stat().st_mtime_ns
    (output / "cases" / "case_a.json").unlink()
    assert run(site, network) == before
    assert (output / "cases" / "case_b.json").stat().st_mtime_ns == kept


def test_fewer_clicks_than_there_are_cost_nothing(site: Site, network: SAM3D, output: Path) -> None:
    before = run(site, network)
    kept = (output / "cases" / "case_a.json").stat().st_mtime_ns
    protocol = WholeVolumeProtocol(find_target(LABELS, "tumour"), site.fold, click_counts=(0, 1))
    assert run_protocol(site.fold, protocol, network, torch.device("cpu"), output=output) == before
    assert (output / "cases" / "case_a.json").stat().st_mtime_ns == kept
    more = WholeVolumeProtocol(find_target(LABELS, "tumour"), site.fold, click_counts=(0, 1, 3, 5))
    with pytest.raises(ValueError, match=r"click_counts \[0, 1, 3\] instead of \[0, 1, 3, 5\]"):
        run_protocol(site.fold, more, network, torch.device("cpu"), output=output)


def test_an_annotation_that_lies_elsewhere_is_told(site: Site, network: SAM3D, output: Path) -> None:
    """nnU-Net compares it voxel by voxel; one of another size is refused."""
    file = site.preprocessed / "gt_segmentations" / "case_a.nii.gz"
    annotation = sitk.ReadImage(str(file))
    annotation.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(annotation, str(file))
    protocol = WholeVolumeProtocol(find_target(LABELS, "tumour"), site.fold, click_counts=(0,))
    summary = run_protocol(site.fold, protocol, network, torch.device("cpu"), output=output)
    assert list(summary["annotations_apart_voxels"]) == ["case_a"]
    assert "1 annotations lie elsewhere in the patient" in (output / "summary_with_clicks.md").read_text()
    sitk.WriteImage(annotation[1:, :, :], str(file))
    with pytest.raises(ValueError, match=r"does not lie on the grid of .*case_a\.nii\.gz: its size is"):
        run_protocol(site.fold, protocol, network, torch.device("cpu"), output=output / "again")


def test_masks_and_clicks_can_be_opened_elsewhere(site: Site, output: Path, make_network: Callable[..., SAM3D]) -> None:
    """The masks lie on the original image's grid, and the clicks of the file are those of the record."""
    save_network(make_network(num_classes=3, signed_clicks=True), site.fold.checkpoint)
    assert main(["evaluate", str(site.model), "--device", "cpu", "--clicks", "0", "4", "--target", "organ"]) == 0
    fold, volume = site.fold, next(site.fold.volumes(["case_a"]))
    record = json.loads((output / "cases" / "case_a.json").read_text())
    for name, count in (("automatic", "0"), ("4_clicks", "4")):
        mask = sitk.ReadImage(output / "masks" / name / "case_a.nii.gz")
        annotation = sitk.ReadImage(site.preprocessed / "gt_segmentations" / "case_a.nii.gz")
        assert (mask.GetSize(), mask.GetSpacing()) == (annotation.GetSize(), annotation.GetSpacing())
        found = sitk.GetArrayFromImage(mask) == LABELS["organ"]
        assert found.sum() == record["clicks"][count]["predicted_voxels"]
    size = annotation.GetSize()[::-1]
    clicks = clicks_for_case(
        read_clicks(output / "placed" / "case_a.mrk.json"), "case_a", volume.properties, size, LABELS
    )
    grid = PreprocessedGrid.from_properties(volume.properties, fold.plans.transpose_forward, volume.segmentation.shape)
    np.testing.assert_allclose(
        clicks_in_grid(clicks, grid), [click["point_zyx"] for click in record["placed"]], atol=1e-4
    )
    assert [click.sign for click in clicks] == [click["sign"] for click in record["placed"]]
    assert {click.label for click in clicks} == {"organ"}


def test_the_command_chooses_the_protocol_and_draws(
    site: Site, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(site.model), "--device", "cpu"]
    assert main([*command, "--clicks", "0", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Protocol whole-volume" in printed and "foreground clicks" in printed
    assert "seed 0" in printed and not site.output.exists()
    names = {"run.json", "cases", "summary_with_clicks.json", "summary_with_clicks.md"}
    names |= {"metrics.csv", "curves.svg", "curves.png", "masks", "placed"}
    assert {file.name for file in output.iterdir()} == names
    with open(output / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["mode"], row["clicks"]) for row in rows} == {("automatic", "0"), ("clicked", "1")}
    assert {row["case"] for row in rows} == set(VALIDATION[:2])
    assert (output / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert main([*command, "--clicks", "1"]) == 0  # no automatic column asked for: the reference
    assert site.output.is_dir()
    assert main([*command, "--protocol", "whole-volume", "--crop-size", "8", "8", "8"]) == 1
    assert main([*command, "--protocol", "reference", "--clicks", "0", "1"]) == 1
    assert "--protocol whole-volume" in capsys.readouterr().err
