"""3DSAM-adapter checkpoints: names, axis order and sizes, from file to a network that computes the same."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import convert, load_model, network_from, read_weights
from nnunetv2_sam3d.weights.sam3d_adapter import convert_reference
from nnunetv2_sam3d.weights.transfer import load_into

Make = Callable[..., SAM3D]
Content = Callable[[SAM3D], dict[str, Any]]

IMAGE = torch.randn(1, 1, 16, 20, 12, generator=torch.Generator().manual_seed(3))
POINTS = torch.tensor([[[3.0, 12.0, 7.5], [10.0, 2.0, 1.0]]])


def assert_same_state(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(ours) == set(expected)
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []


def assert_same_logits(one: SAM3D, other: SAM3D, points: Tensor | None = POINTS) -> None:
    with torch.no_grad():
        assert torch.equal(one(IMAGE, points), other(IMAGE, points))


@pytest.fixture
def saved(make_network: Make, reference_content: Content, tmp_path: Path) -> Path:
    path = tmp_path / "best.pth.tar"
    torch.save(reference_content(make_network()), path)
    return path


def test_every_weight_finds_its_place(saved: Path, make_network: Make) -> None:
    weights, network = read_weights(saved), make_network()
    assert weights.kind == "3dsam-adapter" and not weights.stride_known
    assert_same_state(weights.state, network.state_dict())


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"embed_dim": 48, "num_heads": 3, "depth": 8, "global_attn_indexes": (0, 7), "num_classes": 3},
        {"out_channels": 32, "decoder_channels": 5, "prompt_mlp_dim": 7, "position_grid": 6, "adapter_dim": 9},
    ],
)
def test_sizes_come_from_the_shapes(make_network: Make, reference_content: Content, sizes: dict[str, Any]) -> None:
    network = make_network(**sizes)
    state, config = convert_reference(reference_content(network))
    expected = network.config.to_dict() | {"adapter_dim": network.config.bottleneck}
    assert config.to_dict() == expected
    assert_same_state(state, network.state_dict())


def test_axes_are_turned(make_network: Make, reference_content: Content) -> None:
    """The reference's last kernel axis is depth."""
    content = reference_content(make_network())
    kernel = torch.zeros(16, 1, 3, 3, 3)
    kernel[2, 0, 0, 1, 2] = 1.0  # (H, W, D)
    content["encoder_dict"]["blocks.1.adapter.conv.weight"] = kernel
    content["encoder_dict"]["slice_embed.weight"] = torch.arange(16.0).repeat(32, 1, 1, 1, 1)
    state, _ = convert_reference(content)
    assert state["encoder.blocks.1.adapter.conv.weight"].nonzero().tolist() == [[2, 0, 2, 0, 1]]
    assert state["encoder.stem.slice_embed.weight"].shape == (32, 1, 16, 1, 1)
    assert state["encoder.stem.slice_embed.weight"][5, 0, :, 0, 0].tolist() == list(range(16))


def test_loaded_model_computes_the_same(saved: Path, make_network: Make) -> None:
    network = load_model(saved)
    assert not network.training
    assert_same_logits(network, make_network())


def test_converted_file(saved: Path, tmp_path: Path, make_network: Make) -> None:
    target = tmp_path / "folder" / "original.pth"
    metadata = convert(saved, target)
    assert_same_logits(load_model(target), make_network())
    # what nnU-Net's own -pretrained_weights reads
    content = torch.load(target, weights_only=True)
    assert_same_state(content["network_weights"], make_network().state_dict())
    assert json.loads(json.dumps(metadata)) == content["sam3d"]
    assert metadata["network"]["embed_dim"] == 32
    record = metadata["provenance"]["all parts"]
    assert (record["file"], record["kind"]) == (str(saved), "3dsam-adapter")
    assert record["sha256"] == sha256(saved)
    assert [path.name for path in target.parent.iterdir()] == ["original.pth"]


def test_converted_file_can_be_converted_again(saved: Path, tmp_path: Path, make_network: Make) -> None:
    convert(saved, tmp_path / "one.pth")
    metadata = convert(tmp_path / "one.pth", tmp_path / "two.pth")
    assert_same_logits(load_model(tmp_path / "two.pth"), make_network())
    assert metadata["provenance"]["all parts"]["made_from"]["all parts"]["file"] == str(saved)


def test_source_is_not_overwritten(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(WeightsError, match="source and target are the same file"):
        convert(saved, saved.parent / "." / saved.name)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("prompts", ["absent", None, []])
def test_checkpoint_of_train_auto(make_network: Make, reference_content: Content, tmp_path: Path, prompts: Any) -> None:
    network = make_network(prompt_encoder=False)
    content = reference_content(network)
    assert "feature_dict" not in content
    if prompts != "absent":
        content["feature_dict"] = prompts
    torch.save(content, tmp_path / "auto.pth.tar")
    loaded = load_model(tmp_path / "auto.pth.tar")
    assert loaded.prompt_encoder is None
    assert_same_logits(loaded, network, points=None)


def test_automatic_leaves_the_prompt_encoder_out(saved: Path, tmp_path: Path, make_network: Make) -> None:
    metadata = convert(saved, tmp_path / "auto.pth", automatic=True)
    assert metadata["network"]["prompt_encoder"] is False
    network, prompted = load_model(tmp_path / "auto.pth"), make_network()
    prompted.prompt_encoder = None
    assert_same_logits(network, prompted, points=None)
    with pytest.raises(ValueError, match="no prompt encoder"):
        network(IMAGE, POINTS)


def test_automatic_holds_for_converted_files_too(saved: Path, tmp_path: Path) -> None:
    """``--automatic`` of a converted file leaves the prompt encoder out, or says that it cannot."""
    convert(saved, tmp_path / "original.pth")
    try:
        metadata = convert(tmp_path / "original.pth", tmp_path / "auto.pth", automatic=True)
    except WeightsError:
        return
    assert metadata["network"]["prompt_encoder"] is False


def test_names_of_data_parallel_training(make_network: Make, reference_content: Content) -> None:
    content = reference_content(make_network())
    for part in ("encoder_dict", "decoder_dict"):
        content[part] = {f"module.{key}": value for key, value in content[part].items()}
    assert_same_state(convert_reference(content)[0], make_network().state_dict())


@pytest.mark.parametrize("number", [np.float32(0.5), np.int64(3), np.bool_(True), 0.5, torch.tensor(0.5), None])
@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_beside_the_weights(
    make_network: Make, reference_content: Content, tmp_path: Path, number: Any, zipped: bool
) -> None:
    content = reference_content(make_network()) | {"best_val_loss": number}
    torch.save(content, tmp_path / "best.pth.tar", _use_new_zipfile_serialization=zipped)
    assert read_weights(tmp_path / "best.pth.tar").kind == "3dsam-adapter"


def test_number_that_numpy_1_wrote(make_network: Make, reference_content: Content, tmp_path: Path) -> None:
    """NumPy 1 called the module of its scalars ``numpy.core``."""
    content = reference_content(make_network())
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    now, then = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert now in buffer.getvalue()
    (tmp_path / "best.pth.tar").write_bytes(buffer.getvalue().replace(now, then))
    assert_same_state(read_weights(tmp_path / "best.pth.tar").state, make_network().state_dict())


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("encoder_dict", "blocks.0.attn.bias_table"),
        ("encoder_dict", "head.weight"),
        ("decoder_dict", "cls.0.bias"),
        ("decoder_dict", "mlahead.head6.0.weight"),
    ],
)
def test_unknown_weight(make_network: Make, reference_content: Content, tmp_path: Path, part: str, key: str) -> None:
    content = reference_content(make_network())
    content[part][key] = torch.zeros(3)
    torch.save(content, tmp_path / "other.pth.tar")
    with pytest.raises(WeightsError, match="other.pth.tar") as caught:
        load_model(tmp_path / "other.pth.tar")
    assert key in str(caught.value)


def test_unknown_weight_of_the_prompt_encoder(make_network: Make, reference_content: Content, tmp_path: Path) -> None:
    content = reference_content(make_network())
    content["feature_dict"][3]["point_embeddings.weight"] = torch.zeros(3)
    torch.save(content, tmp_path / "other.pth.tar")
    with pytest.raises(WeightsError, match=r"other.pth.tar: unknown weight 'point_embeddings.weight'"):
        read_weights(tmp_path / "other.pth.tar")
    assert read_weights(tmp_path / "other.pth.tar", automatic=True).config is not None  # not looked at


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("encoder_dict", "pos_embed"),
        ("encoder_dict", "blocks.2.adapter.conv.bias"),
        ("encoder_dict", "blocks.3.attn.lr"),
        ("encoder_dict", "blocks.0.attn.rel_pos_h"),
        ("decoder_dict", "cls.3.weight"),
        ("decoder_dict", "mlahead.head4.3.weight"),
    ],
)
def test_missing_weight(make_network: Make, reference_content: Content, tmp_path: Path, part: str, key: str) -> None:
    content = reference_content(make_network())
    del content[part][key]
    torch.save(content, tmp_path / "short.pth.tar")
    with pytest.raises(WeightsError, match="short.pth.tar") as caught:
        convert(tmp_path / "short.pth.tar", tmp_path / "out.pth")
    name = {"cls.3.weight": "seg_layers.0.weight", "mlahead.head4.3.weight": "heads.2.3.weight"}.get(key, key)
    assert name in str(caught.value)
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    "damage",
    [
        {"encoder_dict": [1, 2]},
        {"decoder_dict": None},
        {"encoder_dict": {"pos_embed": 3}},
        {"feature_dict": [None]},
        {"feature_dict": {"transformer.layers.0.global_query": torch.zeros(1, 10, 16)}},
        {"feature_dict": 3},
        {"encoder_dict": {}},
    ],
)
def test_damaged_tables(make_network: Make, reference_content: Content, tmp_path: Path, damage: dict[str, Any]) -> None:
    torch.save(reference_content(make_network()) | damage, tmp_path / "damaged.pth.tar")
    with pytest.raises(WeightsError, match="damaged.pth.tar"):
        load_model(tmp_path / "damaged.pth.tar")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(
    make_network: Make, reference_content: Content, tmp_path: Path, value: float
) -> None:
    content = reference_content(make_network())
    content["encoder_dict"]["blocks.1.mlp.lin1.weight"][3, 4] = value
    torch.save(content, tmp_path / "diverged.pth.tar")
    with pytest.raises(WeightsError, match=r"diverged.pth.tar .*NaN or infinite.*'encoder.blocks.1.mlp.lin1.weight'"):
        read_weights(tmp_path / "diverged.pth.tar")


@pytest.mark.golden
@pytest.mark.parametrize("prompted", [True, False])
def test_golden_round_trip(shared: Path, tmp_path: Path, prompted: bool) -> None:
    source = shared / "golden" / "reference_tiny.pth.tar"
    if not prompted:  # what the reference's train_auto writes
        content = read_checkpoint(source)
        del content["feature_dict"]
        source = tmp_path / "last.pth.tar"
        torch.save(content, source)
    metadata = convert(source, tmp_path / "golden.pth")
    assert_same_state(load_model(tmp_path / "golden.pth").state_dict(), read_weights(source).state)
    assert_same_logits(load_model(tmp_path / "golden.pth"), load_model(source), POINTS if prompted else None)
    assert metadata["network"]["adapter"] == "original" and metadata["network"]["prompt_encoder"] is prompted


@pytest.mark.golden
@pytest.mark.parametrize("automatic", [False, True])
def test_golden_quiet_start_is_close(shared: Path, automatic: bool) -> None:
    """DualPath begins near where the original model ended, if its local path begins quietly."""
    weights = read_weights(shared / "golden" / "reference_tiny.pth.tar", automatic=automatic)
    original = network_from(weights).eval()
    torch.manual_seed(0)
    dualpath = SAM3D(replace(original.config, adapter="dualpath")).eval()
    load_into(dualpath, weights, adapter_start="quiet")
    image = torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, begun = original(image), dualpath(image)
    difference = ((begun - expected).norm() / expected.norm()).item()
    agreement = (begun.argmax(1) == expected.argmax(1)).float().mean().item()
    assert 0 < difference < 0.15  # measured: 0.08 of the norm of the logits; at full strength 0.60
    assert agreement > 0.95  # measured: 97.1 % of the voxels get the same class
