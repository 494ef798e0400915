"""Outputs of the weights commands are not replaced unasked, and classes are checked when they are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.network_architecture.config import SAM3DConfig
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.checkpoint_file import write_checkpoint
from nnunetv2_sam3d.weights.reading import FORMAT_VERSION, METADATA_KEY, load_model


@pytest.fixture
def model(make_network, tmp_path: Path) -> Path:
    """A converted model of two classes."""
    config: SAM3DConfig = make_network(num_classes=2).config
    content = {"network_weights": SAM3D(config).state_dict()}
    metadata = {"format": FORMAT_VERSION, "network": config.to_dict(), "provenance": {}}
    write_checkpoint(content | {METADATA_KEY: metadata}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def convert(model: Path, *more: str) -> int:
    return main(["weights", "convert", str(model), "-o", *more])


def test_an_output_is_replaced_only_with_force(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = model.with_name("out.pth")
    target.write_text("precious")
    assert convert(model, str(target)) == 1
    assert "out.pth exists already" in capsys.readouterr().err and target.read_text() == "precious"
    assert convert(model, str(target), "--force") == 0
    load_model(target)
    assert convert(model, str(model.parent)) == 1
    assert "is a folder" in capsys.readouterr().err


def test_the_suffix_of_a_file_does_not_matter(model: Path) -> None:
    assert convert(model, str(model.with_name("out.safetensors"))) == 0
    ours, theirs = load_model(model.with_name("out.safetensors")).state_dict(), load_model(model).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_classes_are_checked_when_they_are_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = model.with_name("out.pth")
    assert convert(model, str(target), "--map-class", "tumour=2") == 1
    assert "output channels 0 to 1" in capsys.readouterr().err and not target.exists()
    assert convert(model, str(target), "--map-class", "tumour=1") == 0
    assert "'tumour': channel 1" in capsys.readouterr().out
    folder = tmp_path / "pre" / "Dataset991_Toy"
    folder.mkdir(parents=True)
    described = {"labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(described))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / "pre"))
    assert main(["plan", "-d", "991", "--like", str(model), "--no-prompt-encoder"]) == 1
    assert "prompt_encoder True, which the options contradict" in capsys.readouterr().err
    assert main(["plan", "-d", "991", "--like", str(model), "--map-class", "tumor=1"]) == 1
    assert "--map-class names ['tumor']" in capsys.readouterr().err
