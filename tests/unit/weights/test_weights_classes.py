"""Classes of another model: nothing is mapped silently, and what is mapped keeps its probability."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.settings import Settings
from nnunetv2_sam3d.weights.channels import OutputChannels
from nnunetv2_sam3d.weights.class_map import parse_class_map
from nnunetv2_sam3d.weights.describe import describe
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import convert, read_weights
from nnunetv2_sam3d.weights.transfer import load_into

Make = Callable[..., SAM3D]
IMAGE = torch.randn(1, 1, 16, 20, 12, generator=torch.Generator().manual_seed(3))
LAST = "mask_decoder.seg_layers.0.weight"
LABELS = OutputChannels(("background", "kidney", "tumour", "cyst"), regions=False)
REGIONS = OutputChannels(("kidney and masses", "masses", "tumour"), regions=True)


@pytest.fixture
def binary(make_network: Make, reference_content: Callable[[SAM3D], object], tmp_path: Path) -> Path:
    """A tumour model of 3DSAM-adapter."""
    torch.save(reference_content(make_network(seed=1)), tmp_path / "best.pth.tar")
    return tmp_path / "best.pth.tar"


def logits(network: SAM3D) -> Tensor:
    with torch.no_grad():
        return network(IMAGE)[0]


def tumour_probability(path: Path, make_network: Make) -> Tensor:
    network = make_network(seed=1)
    load_into(network, read_weights(path))
    return logits(network).softmax(0)[1]


def test_region_keeps_the_probability(binary: Path, make_network: Make) -> None:
    network = make_network(num_classes=3)
    fresh = network.state_dict()[LAST].clone()
    loaded = load_into(network, read_weights(binary), outputs=REGIONS, class_map={"tumour": 1})
    torch.testing.assert_close(logits(network)[2].sigmoid(), tumour_probability(binary, make_network))
    assert torch.equal(network.state_dict()[LAST][:2], fresh[:2])
    assert LAST not in loaded.names  # so that it is trained
    [note] = loaded.notes
    assert "mapped as asked: 'tumour' from channel 1" in note
    assert "'kidney and masses', 'masses' start at random" in note


def test_label_keeps_its_logits(binary: Path, make_network: Make) -> None:
    network = make_network(num_classes=4)
    loaded = load_into(network, read_weights(binary), outputs=LABELS, class_map={"tumour": 1})
    torch.testing.assert_close(logits(network)[[0, 2]].softmax(0)[1], tumour_probability(binary, make_network))
    assert LAST not in loaded.names and "'kidney', 'cyst' start at random" in loaded.notes[0]


def test_everything_mapped_needs_no_training(binary: Path, make_network: Make) -> None:
    network = make_network(num_classes=1)
    outputs = OutputChannels(("tumour",), regions=True)
    loaded = load_into(network, read_weights(binary), outputs=outputs, class_map={"tumour": 1})
    assert LAST in loaded.names
    torch.testing.assert_close(logits(network)[0].sigmoid(), tumour_probability(binary, make_network))


@pytest.mark.parametrize("outputs", [REGIONS, LABELS])
def test_nothing_is_mapped_unasked(binary: Path, make_network: Make, outputs: OutputChannels) -> None:
    network = make_network(num_classes=len(outputs.names))
    fresh = network.state_dict()[LAST].clone()
    loaded = load_into(network, read_weights(binary), outputs=outputs)
    assert torch.equal(network.state_dict()[LAST], fresh) and LAST not in loaded.names
    assert "was not taken" in loaded.notes[0] and "--map-class NAME=CHANNEL" in loaded.notes[0]


def test_two_regions_are_not_taken_for_background_and_tumour(binary: Path, make_network: Make) -> None:
    """The shapes would fit, the meaning does not."""
    network = make_network()
    loaded = load_into(network, read_weights(binary), outputs=OutputChannels(("masses", "tumour"), regions=True))
    assert LAST not in loaded.names
    assert "labels (softmax), this data set has regions (sigmoid)" in loaded.notes[0]


def test_map_in_a_converted_file(binary: Path, make_network: Make, tmp_path: Path) -> None:
    convert(binary, tmp_path / "original.pth", class_map={"tumour": 1})
    convert(tmp_path / "original.pth", tmp_path / "again.pth")  # keeps it
    for name in ("original.pth", "again.pth"):
        assert "for a data set with 'tumour': channel 1" in describe(tmp_path / name)
        network = make_network(num_classes=3)
        load_into(network, read_weights(tmp_path / name), outputs=REGIONS)
        torch.testing.assert_close(logits(network)[2].sigmoid(), tumour_probability(binary, make_network))


def test_a_file_of_the_same_classes_is_not_mapped(binary: Path, make_network: Make) -> None:
    """The plans' map is for the first model; the ones trained from it have the data set's classes."""
    weights = read_weights(binary)
    weights.outputs = OutputChannels(("background", "tumour"), regions=False)
    network = make_network()
    loaded = load_into(network, weights, outputs=weights.outputs, class_map={"nonsense": 7})
    assert loaded.notes == [] and torch.equal(network.state_dict()[LAST], weights.state[LAST])


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ({"tumor": 1}, "names 'tumor', but the data set has kidney, tumour, cyst"),
        ({"background": 1}, "names 'background'"),
        ({"tumour": 2}, "channel 2 for 'tumour', but the file's foreground channels are 1 to 1"),
        ({"tumour": 0}, "channel 0 for 'tumour'"),
    ],
)
def test_impossible_maps(binary: Path, make_network: Make, class_map: dict[str, int], message: str) -> None:
    network = make_network(num_classes=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_into(network, read_weights(binary), outputs=LABELS, class_map=class_map)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_parsing() -> None:
    assert parse_class_map(["tumour=1", "a=b=0"]) == {"tumour": 1, "a=b": 0}
    for texts in (["tumour"], ["=1"], ["tumour=one"], ["tumour=-1"], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match="NAME=CHANNEL"):
            parse_class_map(texts)


def test_map_in_the_plans() -> None:
    settings = Settings(map_class={"tumour": 1})
    assert Settings.from_plans({"sam3d": settings.to_dict()}) == settings
    for wrong in ({"tumour": -1}, {"tumour": "1"}, {"tumour": True}, ["tumour"]):
        with pytest.raises(ValueError, match="map_class must be a table"):
            Settings(map_class=wrong)  # type: ignore[arg-type]
