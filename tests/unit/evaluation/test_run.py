"""A fold's evaluation on disk: real checkpoint, nnU-Net's preprocessed files, the command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from toy_fold import SHAPE, VALIDATION, Site, save_network

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.evaluation.click_test import run_protocol
from nnunetv2_sam3d.evaluation.reference_protocol import ReferenceProtocol
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D


def run(site: Site, network: SAM3D, protocol: ReferenceProtocol | None = None, **options: bool) -> dict:
    return run_protocol(site.fold, protocol or site.protocol(), network, torch.device("cpu"), **options)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_summary_is_of_the_fold_and_names_its_sources(site: Site, network: SAM3D) -> None:
    summary = run(site, network)
    assert summary == json.loads((site.output / "summary_with_clicks.json").read_text())
    assert summary["settings"]["target"] == "tumour" and summary["settings"]["seed"] == 0
    assert summary["validation_cases"] == VALIDATION
    assert summary["cases_evaluated"] == 2
    assert summary["cases_left_out"] == {"case_empty": "no voxel of tumour to click on"}
    digest = hashlib.sha256(site.fold.checkpoint.read_bytes()).hexdigest()
    assert summary["checkpoint_sha256"] == digest
    versions = summary["provenance"]["versions"]
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert "surface-distance" in versions and "nnunetv2_sam3d" in versions
    for count in ("1", "3"):
        for figure, mean in summary["mean"][count].items():
            both = [summary["per_case"][case][count][figure] for case in VALIDATION[:2]]
            assert mean == pytest.approx(np.mean(both))
    table = (site.output / "summary_with_clicks.md").read_text()
    assert "WITH CLICKS" in table and "case_empty (no voxel" in table
    assert f"{summary['mean']['3']['Dice']:.3f}" in table
    assert not (site.model / "fold_0" / "validation").exists()


def test_metrics_are_the_networks(site: Site, network: SAM3D) -> None:
    """One click, by plain code: crop, softmax, Dice."""
    run(site, network)
    record = json.loads((site.output / "cases" / "case_a.json").read_text())["clicks"]["1"]
    image, segmentation, _, _ = nnUNetDatasetBlosc2(
        str(site.preprocessed / "nnUNetSAM3DPlans_3d_fullres"), ["case_a"]
    ).load_case("case_a")
    (z, y, x), target = record["points_zyx"][0], segmentation[0] == 2
    assert target[z, y, x]
    wide = np.pad(image[0], 8)  # voxel i is at i + 8, so the crop that begins 8 before the click begins at the click
    with torch.no_grad():
        logits = network(torch.from_numpy(wide[z : z + 16, y : y + 16, x : x + 16])[None, None],
                         torch.full((1, 1, 3), 8.0))[0]  # fmt: skip
    prediction = np.zeros(np.add(SHAPE, 16), bool)
    prediction[z : z + 16, y : y + 16, x : x + 16] = logits.softmax(0)[2].numpy() > 0.5
    prediction = prediction[8:-8, 8:-8, 8:-8]
    expected = 2 * (prediction & target).sum() / (prediction.sum() + target.sum())
    assert record["predicted_voxels"] == pytest.approx(prediction.sum(), abs=1)
    assert record["metrics"]["Dice"] == pytest.approx(expected, abs=2e-3)


def test_second_run_computes_only_what_is_missing(site: Site, network: SAM3D) -> None:
    run(site, network)
    before = contents(site.output)
    (site.output / "cases" / "case_a.json").write_text('{"case": "case_a", "cli')  # a damaged file counts as missing
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = network.register_forward_hook(count)
    run(site, network)
    hook.remove()
    assert calls == 2  # one case, with one and with three clicks
    assert contents(site.output) == before


@pytest.mark.parametrize("damage", [
    {}, [], 5, {"clicks": {}}, {"clicks": {"1": {}}}, {"clicks": {"1": {"metrics": 1}, "3": {}}}, {"left_out": 3},
    {"case": "case_b"},
])  # fmt: skip
def test_a_file_of_a_case_that_is_none_is_made_again(site: Site, network: SAM3D, damage: Any) -> None:
    run(site, network)
    before, file = contents(site.output), site.output / "cases" / "case_a.json"
    content = json.loads(file.read_text())
    for written in (damage, {**content, **damage} if isinstance(damage, dict) and damage else damage):
        file.write_text(json.dumps(written))
        run(site, network)
        assert contents(site.output) == before
    content["clicks"]["1"]["metrics"]["Dice"] = 0.97  # a metric that does not fit the hash
    file.write_text(json.dumps(content))
    run(site, network)
    assert contents(site.output) == before


def test_cases_of_earlier_versions_are_kept(site: Site, network: SAM3D) -> None:
    """They called the metrics figures, and had no hash."""
    run(site, network)
    before, file = contents(site.output), site.output / "cases" / "case_a.json"
    content = json.loads(file.read_text())
    del content["sha256"]
    for entry in content["clicks"].values():
        entry["figures"] = entry.pop("metrics")
    file.write_text(json.dumps(content))
    run(site, network)
    assert json.loads(file.read_text()) == content
    file.unlink()
    run(site, network)
    assert contents(site.output) == before


def test_plans_that_changed_between_two_cases(site: Site, network: SAM3D) -> None:
    run(site, network)
    (site.output / "cases" / "case_a.json").unlink()
    plans = site.model / "plans.json"
    plans.write_text(json.dumps(json.loads(plans.read_text()) | {"changed": 1}))
    with pytest.raises(ValueError, match="another checkpoint, plans, data or split"):
        run(site, network)
    run(site, network, overwrite=True)
    note = site.output / "run.json"
    earlier = json.loads(note.read_text())
    del earlier["plans_sha256"]  # as versions before wrote it
    note.write_text(json.dumps(earlier))
    run(site, network)


def test_results_of_other_settings_or_weights_are_kept(site: Site, network: SAM3D) -> None:
    run(site, network)
    before = contents(site.output)
    with pytest.raises(ValueError, match=r"other settings \(seed 0 instead of 1\).*-o.*--overwrite"):
        run(site, network, site.protocol(seed=1))
    with torch.no_grad():
        network.mask_decoder.seg_layers[0].weight.mul_(2)
    save_network(network, site.fold.checkpoint)
    with pytest.raises(ValueError, match="another checkpoint, plans, data or split"):
        run(site, network)
    assert contents(site.output) == before
    summary = run(site, network, site.protocol(seed=1), overwrite=True)
    assert summary["settings"]["seed"] == 1
    assert contents(site.output)["cases/case_a.json"] != before["cases/case_a.json"]


def test_folder_of_something_else_is_never_touched(site: Site, network: SAM3D, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds other files"):
        run_protocol(site.fold, site.protocol(), network, torch.device("cpu"), output=tmp_path / "mine", overwrite=True)
    assert contents(tmp_path / "mine") == {"thesis.tex": "x"}


def test_automatic_network_is_refused(site: Site, make_network: Callable[..., SAM3D]) -> None:
    with pytest.raises(ValueError, match="no prompt encoder"):
        run(site, make_network(num_classes=3, prompt_encoder=False))
    assert not site.output.exists()


def test_missing_data_are_told_with_the_command(site: Site, network: SAM3D) -> None:
    (site.preprocessed / "nnUNetSAM3DPlans_3d_fullres" / "case_b.pkl").unlink()
    with pytest.raises(ValueError, match=r"case_b.*nnUNetv2_preprocess -d 991 -plans_name nnUNetSAM3DPlans"):
        run(site, network)


def test_the_command(site: Site, network: SAM3D, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cpu", "--clicks", "1", "3"]
    assert main(["evaluate", str(site.model), *options]) == 0
    output = capsys.readouterr().out
    assert "WITH CLICKS on the ground truth (not automatic): tumour (labels 2)" in output
    assert str(site.output / "summary_with_clicks.md") in output
    ours = contents(site.output)
    assert ours["cases/case_a.json"] == json.dumps(json.loads(ours["cases/case_a.json"]), indent=1) + "\n"
    by_name = ["evaluate", "-d", "991", "-tr", "nnUNetTrainer_SAM3DFull", "-f", "0", "-o", str(tmp_path / "again")]
    assert main([*by_name, *options]) == 0
    again = contents(tmp_path / "again")
    assert again["cases/case_a.json"] == ours["cases/case_a.json"]  # same seed, same clicks, same figures
    assert main([*by_name, *options, "--target", "organ"]) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either the folder"),
        (
            ["-d", "991"],
            "SAM3DDualPath__nnUNetSAM3DPlans__3d_fullres does not exist. Choose a model of that data set with",
        ),
        (["-d", "991", "-tr", "nnUNetTrainer_Nobody"], ": nnUNetTrainer_SAM3DFull__nnUNetSAM3DPlans__3d_fullres\n"),
        (
            ["-d", "991", "-tr", "nnUNetTrainer_SAM3DFull", "-chk", "checkpoint_best.pth"],
            "no fold with a checkpoint_best",
        ),
        (["-d", "991", "-tr", "nnUNetTrainer_SAM3DFull", "-f", "0", "0"], "-f names fold 0 twice"),
        (["-d", "991", "-tr", "nnUNetTrainer_SAM3DFull", "-f", "x"], "-f takes numbers of folds or all, got 'x'"),
        (["-d", "991", "-tr", "nnUNetTrainer_SAM3DFull", "-f", "1"], "Folds with that file: fold_0"),
        (["-d", "991", "-tr", "nnUNetTrainer_SAM3DFull", "--target", "spleen"], "no target 'spleen'"),
    ],
)
def test_wrong_arguments(site: Site, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *arguments]) == 1
    assert message in capsys.readouterr().err
