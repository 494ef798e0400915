"""The command ``adapters`` on a fold on disk, and what it draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_fold import LABELS, PATCH, Site, save_network

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.evaluation.gate_maps import token_zones
from nnunetv2_sam3d.evaluation.two_paths import AdapterStudy, as_text
from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.inference.window_predictor import WindowPredictor
from nnunetv2_sam3d.network_architecture.adapter_paths import two_path_adapters, without
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.nnunet.labels import find_target
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint, write_checkpoint


@pytest.fixture
def network(make_network: Callable[..., SAM3D]) -> SAM3D:
    network = make_network(num_classes=3, adapter="dualpath")
    network.set_adapter_plane("slice")  # the weights say so, too
    return network


@pytest.fixture
def fold(site: Site) -> Path:
    return site.model / "fold_0"


def study(site: Site, network: SAM3D, *cases: str) -> dict[str, Any]:
    return AdapterStudy(site.fold, network, torch.device("cpu"), find_target(LABELS)).run(cases)


def labels(site: Site, network: SAM3D, case: str) -> np.ndarray:
    (volume,) = site.fold.volumes([case])
    predictor = WindowPredictor([network], PATCH)
    predictor.set_image(torch.from_numpy(np.array(volume.image[:], np.float32)))
    return predictor.automatic().argmax(0).numpy()


def test_the_command_leaves_tables_and_maps(site: Site, fold: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = fold / "checkpoint_final.pth"
    blocks = [{"gate_mean": 0.25, "gate_sd": 0.125, "local_share": share} for share in (0.111, 0.222, 0.333, 0.444)]
    write_checkpoint(read_checkpoint(file) | {"logging": {"adapter_paths": [[], blocks, blocks[::-1]]}}, file)
    (fold / "adapters").mkdir()
    (fold / "adapters" / "of_others.png").touch()
    assert main(["adapters", str(fold), "--device", "cpu", "--max-cases", "3"]) == 0
    output = capsys.readouterr().out
    result = json.loads((fold / "adapters.json").read_text())
    assert as_text(result) in output
    assert "0.250 (0.125) | 0.111" in output and "epoch 1" in output and "epoch 2" in output
    assert (result["format"], result["checkpoint_sha256"]) == (1, sha256(file))
    assert [block["block"] for block in result["blocks"]] == [0, 1, 2, 3]
    assert set(result["blocks"][0]) == {"block", "gate_mean", "gate_sd", "local_share"}
    assert result["cases"] == ["case_a", "case_b", "case_empty"]
    pictures = {f"{case}.png" for case in result["cases"]}
    assert {path.name for path in (fold / "adapters").glob("*.png")} == pictures | {"of_others.png"}
    assert (fold / "adapters" / "case_a.png").read_bytes()[:4] == b"\x89PNG"


def test_shares_of_changed_voxels_are_counted_over_all_cases(site: Site, network: SAM3D) -> None:
    result = study(site, network, "case_a", "case_b")
    for path in ("local", "global"):
        changed = union = voxels = 0
        for case in ("case_a", "case_b"):
            whole = labels(site, network, case)
            with without(network, path):
                other = labels(site, network, case)
            changed += int((whole != other).sum())
            union += int(((whole > 0) | (other > 0)).sum())
            voxels += whole.size
        assert 0 < changed < voxels
        assert result["changed"][path] == pytest.approx(changed / union)
        assert result["changed_voxels"][path] == pytest.approx(changed / voxels)
    assert (result["changed"]["of"], result["changed_voxels"]["of"]) == ("foreground", "all")


def test_a_silent_local_path_has_no_share_and_changes_nothing(site: Site, network: SAM3D) -> None:
    for adapter in two_path_adapters(network).values():
        torch.nn.init.zeros_(adapter.local_unetpp.conv_0_1.norm.weight)
        torch.nn.init.zeros_(adapter.local_unetpp.conv_0_1.norm.bias)
    result = study(site, network, "case_a")
    assert all(block["local_share"] == 0 for block in result["blocks"])
    assert result["changed"]["local"] == result["changed_voxels"]["local"] == 0
    assert result["changed"]["global"] > 0
    assert result["logged"] is None and "has no metrics of the paths" in as_text(result)


def test_zones_are_of_cases_with_target_only(site: Site, network: SAM3D) -> None:
    zones = study(site, network, "case_a", "case_empty")["zones"]
    assert [entry["block"] for entry in zones] == [0, 1, 2, 3]
    counts = {zone: zones[0][zone] and zones[0][zone]["tokens"] for zone in ("inside", "border", "outside")}
    assert sum(count or 0 for count in counts.values()) == 4**3
    assert counts["border"] and counts["outside"] > counts["border"]
    alone = study(site, network, "case_empty")
    assert all(entry[zone] is None for entry in alone["zones"] for zone in ("inside", "border", "outside"))
    assert "Around tumour" not in as_text(alone)


def test_tokens_of_a_known_target() -> None:
    target, image = np.zeros((8, 12, 10), bool), np.ones((8, 12, 10), bool)
    target[:4, 2:12, :4] = True  # tokens of 4: one half in rows 0 to 3, two whole ones
    image[4:, :, :4] = False
    zones = {zone: torch.nonzero(tokens).tolist() for zone, tokens in token_zones(target, image, (4, 4, 4)).items()}
    assert zones["inside"] == [[0, 1, 0], [0, 2, 0]]
    assert zones["border"] == [[0, 0, 0]]
    # padded tokens, and those that the image does not fill, are in none
    assert zones["outside"] == [[0, y, 1] for y in range(3)] + [[1, y, 1] for y in range(3)]


def test_a_window_larger_than_the_image_and_smaller_tokens(site: Site, network: SAM3D) -> None:
    plans = json.loads((site.model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [24, 16, 30]
    (site.model / "plans.json").write_text(json.dumps(plans))
    found = AdapterStudy(site.fold, network, torch.device("cpu"), find_target(LABELS))
    found.run(["case_a"])
    (view,) = found.views
    (volume,) = site.fold.volumes(["case_a"])
    rows, columns = view.shown
    assert (rows, columns) == (slice(0, 16), slice(6, 24))
    image = np.asarray(volume.image[0])[view.slice_number]
    shown = view.image[view.shown]
    assert any(np.array_equal(shown, image[y : y + 16]) for y in range(len(image) - 15))
    assert view.target.any() and view.gates[3].shape == (4, 8)


def test_elsewhere_and_chosen_cases(site: Site, fold: Path, tmp_path: Path) -> None:
    arguments = ["adapters", str(site.model), "--device", "cpu", "-o", str(tmp_path / "out")]
    assert main([*arguments, "-f", "0", "--cases", "case_b", "--target", "organ"]) == 0
    result = json.loads((tmp_path / "out" / "fold_0" / "adapters.json").read_text())
    assert (result["cases"], result["target"]) == (["case_b"], "organ")
    assert (tmp_path / "out" / "fold_0" / "adapters" / "case_b.png").is_file()
    assert not (fold / "adapters.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "case_trained"], "case_trained: no validation case of fold 0"),
        (["--max-cases", "0"], "--max-cases must be at least 1"),
        (["-f", "1"], "fold 1 is not trained to its end"),
        (["--target", "liver"], "there is no target 'liver'"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, site: Site, fold: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapters", str(site.model), "--device", "cpu", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (fold / "adapters.json").exists()
    assert main(["adapters", str(fold), "-f", "0", "--device", "cpu"]) == 1
    assert "is a fold, and -f names others" in capsys.readouterr().err


def test_adapters_of_one_path_are_told(
    site: Site, fold: Path, make_network: Callable[..., SAM3D], capsys: pytest.CaptureFixture[str]
) -> None:
    save_network(make_network(num_classes=3), fold / "checkpoint_final.pth")
    assert main(["adapters", str(site.model), "--device", "cpu"]) == 1
    message = capsys.readouterr().err
    assert "(original) do not have two paths" in message and "dualpath_fft" in message
