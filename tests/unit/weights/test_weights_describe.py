"""What is said of a file of weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.describe import describe
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import METADATA_KEY, convert

Make = Callable[..., SAM3D]


def numbers(text: str) -> dict[str, list[int]]:
    """The rows of the table of parameters."""
    rows = {}
    for line in text.splitlines():
        if found := re.match(r"  (.{24}) +([\d,]+)(?: +([\d,]+) trained +([\d,]+) frozen)?$", line):
            rows[found[1].strip()] = [int(number.replace(",", "")) for number in found.groups()[1:] if number]
    return rows


def test_description_of_a_reference_checkpoint(whole: Path, make_network: Make) -> None:
    text, network = describe(whole), make_network()
    assert text.startswith(f"{whole}: a 3DSAM-adapter checkpoint\n")
    assert "  embed_dim: 32" in text.splitlines()
    assert "the file does not say" in text
    rows = numbers(text)
    assert rows["all"] == [sum(parameter.numel() for parameter in network.parameters())]
    assert rows["prompt encoder"] == [sum(parameter.numel() for parameter in network.prompt_encoder.parameters())]
    assert sum(count for name, (count,) in rows.items() if name != "all") == rows["all"][0]


def test_description_of_a_converted_file(whole: Path, tmp_path: Path) -> None:
    convert(whole, tmp_path / "original.pth")
    text = describe(tmp_path / "original.pth")
    assert "a converted 3DSAM-adapter checkpoint" in text.splitlines()[0]
    assert f"all parts: {whole} (3dsam-adapter, SHA-256 {sha256(whole)})" in text
    assert numbers(text) == numbers(describe(whole))


def test_description_of_a_trained_file(make_network: Make, tmp_path: Path) -> None:
    network = make_network(adapter="dualpath")
    trained = [name for name, _ in network.named_parameters() if ".adapter." in name]
    encoder = {"file": "/sam.pth", "sha256": "12ab", "kind": "sam"}
    decoder = {
        "file": "/original.pth",
        "sha256": "34cd",
        "kind": "converted",
        "made_from": {"all parts": {"file": "/best.pth.tar", "sha256": "56ef", "kind": "3dsam-adapter"}},
    }
    metadata = {
        "format": 1,
        "network": network.config.to_dict(),
        "trained": trained,
        "provenance": {
            "SAM encoder": encoder,
            "mask decoder": decoder,
            "prompt encoder": decoder,
            "adapters": {"kind": "random"},
        },
    }
    torch.save(
        {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer_SAM3DDualPath",
            METADATA_KEY: metadata,
        },
        tmp_path / "checkpoint_final.pth",
    )
    text = describe(tmp_path / "checkpoint_final.pth")
    assert "a checkpoint of a SAM3D trainer" in text.splitlines()[0]
    rows = numbers(text)
    everything = sum(parameter.numel() for parameter in network.parameters())
    adapters = sum(network.get_parameter(name).numel() for name in trained)
    assert rows["adapters"] == [adapters, adapters, 0]
    assert rows["all"] == [everything, adapters, everything - adapters]
    assert rows["mask decoder"][1] == 0
    lines = text.splitlines()
    assert "  SAM encoder: /sam.pth (sam, SHA-256 12ab)" in lines
    at = lines.index("  mask decoder, prompt encoder: /original.pth (converted, SHA-256 34cd)")
    assert lines[at + 1] == "    all parts: /best.pth.tar (3dsam-adapter, SHA-256 56ef)"
    assert "  adapters: random initialisation" in lines


def test_description_of_a_file_with_unknown_weights(make_network: Make, tmp_path: Path) -> None:
    network = make_network()
    state = network.state_dict() | {"head.weight": torch.zeros(3)}
    torch.save(
        {"network_weights": state, METADATA_KEY: {"format": 1, "network": network.config.to_dict()}},
        tmp_path / "odd.pth",
    )
    with pytest.raises(WeightsError, match="odd.pth.*head.weight"):
        describe(tmp_path / "odd.pth")


def test_description_refuses_what_reading_refuses(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    with pytest.raises(WeightsError, match="is empty"):
        describe(tmp_path / "empty.pth")
