"""The benchmark: real processes on a tiny network; what it writes, keeps, compares and passes over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_sam3d.benchmark import machine, run
from nnunetv2_sam3d.benchmark import records as report
from nnunetv2_sam3d.benchmark.case import TRAINED, BenchmarkCase, cases
from nnunetv2_sam3d.benchmark.plain import PlainSAM3D
from nnunetv2_sam3d.benchmark.run import parity_failures
from nnunetv2_sam3d.benchmark.worker import build, count_operations, fill, saved_bytes
from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

TINY = BenchmarkCase("forward", "ours", "vit_tiny", (32, 32, 32), 4, "float32", "DualPath")
FIELDS = {
    "what", "form", "variant", "patch_size", "depth", "precision", "recipe", "checkpointing", "seconds",
    "seconds_spread", "peak_rss_bytes", "floor_seconds",
}  # fmt: skip


def benchmark(file: Path, *more: str) -> int:
    options = "benchmark --variant vit_tiny --patch-size 32 32 32 --repeats 2 --threads 1".split()
    return main([*options, "--json", str(file), *more])


def test_records_of_both_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Forward passes agree; a step has its sizes; a second call measures nothing twice; a plot is drawn."""
    file, picture = tmp_path / "new" / "b.json", tmp_path / "b.svg"
    assert benchmark(file, "--what", "forward", "step", "--form", "ours", "plain", "--plot", str(picture)) == 0
    result = json.loads(file.read_text())
    assert result["environment"]["threads"] == 1
    records = result["records"]
    assert [(record["what"], record["form"]) for record in records] == [
        ("forward", "ours"), ("forward", "plain"), ("step", "ours"), ("step", "plain"),
    ]  # fmt: skip
    for record in records:
        assert set(record) >= FIELDS
        assert record["seconds"] > 0 and record["seconds_spread"] >= 0 and len(record["seconds_all"]) == 2
        assert record["peak_rss_bytes"] > 1e8
        assert record["floor_seconds"] == record["operations"] / record["products_per_second"]
        assert len(record["products_per_second_all"]) == 3 and min(record["products_per_second_all"]) > 1e9
    for record in records[:2]:
        assert 0 < record["max_difference"] < 1e-4
    assert {record["compared_with"] for record in records[:2]} == {"plain float32", "ours float32"}
    for record in records[2:]:  # AdamW keeps two numbers for each trained one
        assert record["trained_parameters"] < record["parameters"]
        assert record["optimizer_state_bytes"] >= 8 * record["trained_parameters"]
        assert record["checkpoint_bytes"] - record["weights_bytes"] >= record["optimizer_state_bytes"]
    text = capsys.readouterr().out
    assert "x floor" in text and "parameters trained" in text
    assert picture.read_text().count("forward plain vit_tiny") == 1
    assert not Path(f"{file}.logits").exists()

    before = file.read_text()
    assert benchmark(file, "--what", "forward", "--form", "ours", "plain") == 0
    assert "4 records of" in capsys.readouterr().out and file.read_text() == before


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch for which the allowed memory is not enough."""
    monkeypatch.setattr(run, "available_bytes", lambda: 1_500_000_000)
    file = tmp_path / "b.json"
    assert benchmark(file, "--what", "forward", "--patch-size", "512", "512", "512") == 0
    small, large = json.loads(file.read_text())["records"]
    assert small["patch_size"] == [32, 32, 32] and small["seconds"] > 0
    assert large["patch_size"] == [512, 512, 512] and "memory" in large["failed"] and "seconds" not in large
    assert "failed" in report.table([small, large])


def test_prediction_beside_its_passes(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    assert benchmark(file, "--what", "predict", "--volume", "40", "32", "20") == 0
    (record,) = json.loads(file.read_text())["records"]
    assert (record["tiles"], record["mirrorings"], record["passes"]) == (2, 8, 16)
    assert record["seconds"] > record["seconds_of_one_pass"]
    assert record["operations"] == 16 * count_operations(BenchmarkCase.from_dict(record))


def test_results_of_another_machine_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "b.json"
    file.write_text(json.dumps({"environment": {"device": "cpu", "processor": "abacus"}, "records": []}))
    assert benchmark(file, "--what", "forward") == 1
    assert "processor abacus -> " in capsys.readouterr().err
    assert json.loads(file.read_text())["environment"]["processor"] == "abacus"
    file.write_text("{}")
    assert benchmark(file, "--what", "forward") == 1
    assert "is no result of this benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--depth 3", "depth must be a multiple of 4"),
        ("--depth 16", "more than the 4 blocks of vit_tiny"),
        ("--precision float16", "for --device cuda"),
        ("--repeats 0", "--repeats must be at least 1"),
        ("--plot x.jpg", "ends in .png"),
        ("--patch-size 4 4 4", "too few to normalise over"),
    ],
)
def test_misuse_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert benchmark(tmp_path / "b.json", *options.split()) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_combinations_that_make_sense() -> None:
    found = cases(
        variants=["vit_tiny"], patch_sizes=[(32, 32, 32)], depths=None, what=["forward", "step"],
        forms=["ours", "plain"], precisions=["float32"], recipes=["Original", "Full"], checkpointing=[False, True],
    )  # fmt: skip
    # one forward pass of each form; steps: two recipes, ours with and without checkpointing, the plain form without
    assert len(found) == len(set(found)) == 2 + 2 * 3
    assert all(case == BenchmarkCase.from_dict(json.loads(json.dumps(case.to_dict()))) for case in found)


def test_both_forms_get_the_same_weights() -> None:
    """By name; no weight is left where an error would not show."""
    ours, plain = build(TINY), build(BenchmarkCase.from_dict(TINY.to_dict() | {"form": "plain"}))
    assert isinstance(ours, SAM3D) and isinstance(plain, PlainSAM3D)
    fill(ours)
    fill(plain)
    expected = plain.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[name]), name
        assert value.abs().max() > 0, name


def test_operations_are_those_of_the_case() -> None:
    """A step costs more than a pass; fewer trained parameters, less; recomputation is no necessary work.

    Of a product there are two gradients at most, each of its own cost.
    """
    values = TINY.to_dict()
    forward = count_operations(TINY)
    dualpath = count_operations(BenchmarkCase.from_dict(values | {"what": "step"}))
    original, full = (
        count_operations(BenchmarkCase.from_dict(values | {"what": "step", "recipe": recipe}))
        for recipe in ("Original", "Full")
    )
    recomputed = count_operations(BenchmarkCase.from_dict(values | {"what": "step", "checkpointing": True}))
    assert forward < dualpath == recomputed
    assert original < full < 3 * forward and dualpath < 3 * forward


@pytest.mark.parametrize("recipe", TRAINED)
def test_operations_of_every_recipe(recipe: str) -> None:
    assert count_operations(BenchmarkCase.from_dict(TINY.to_dict() | {"what": "step", "recipe": recipe})) > 0


def test_saved_bytes_is_the_size_of_the_file(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": torch.randn(1000), "b": {"c": torch.zeros(7, dtype=torch.int64)}}
    torch.save(content, tmp_path / "x.pth")
    assert abs(saved_bytes(content) - (tmp_path / "x.pth").stat().st_size) < 256


def test_peak_memory_sees_what_is_taken() -> None:
    before = machine.peak_rss_bytes()
    block = np.ones(max(64 << 20, before) // 8)  # more than anything earlier tests may have left
    assert machine.peak_rss_bytes() >= block.nbytes


def test_another_function_is_told() -> None:
    record = TINY.to_dict() | {"max_difference": 2e-4, "compared_with": "plain float32"}
    assert len(parity_failures([record])) == 1
    assert parity_failures([record | {"max_difference": 9e-5}]) == []


def test_growth_with_depth() -> None:
    record = TINY.to_dict() | {"variant": "vit_b", "seconds": 2.0, "peak_rss_bytes": 3_000, "floor_seconds": 1.0}
    deeper = record | {"depth": 8, "seconds": 4.0, "peak_rss_bytes": 5_000}
    (growth,) = report.per_block([deeper, record, deeper | {"form": "plain", "depth": 12}])
    assert (growth["depths"], growth["bytes"], growth["seconds"]) == ([4, 8], 500.0, 0.5)
