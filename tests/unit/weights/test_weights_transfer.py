"""Weights into a network: SAM's encoder, other adapters, other classes, and refusals that leave it as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.checkpoint_file import write_checkpoint
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import METADATA_KEY, Weights, load_model, read_weights
from nnunetv2_sam3d.weights.state_dict import PARTS, part_of
from nnunetv2_sam3d.weights.transfer import check_same_network, load_into

Make = Callable[..., SAM3D]

IMAGE = torch.randn(1, 1, 16, 20, 12, generator=torch.Generator().manual_seed(3))
POINTS = torch.tensor([[[3.0, 12.0, 7.5], [10.0, 2.0, 1.0]]])
LAST = "mask_decoder.seg_layers.0.weight"


def logits_of(network: SAM3D) -> Tensor:
    with torch.no_grad():
        return network(IMAGE, POINTS if network.prompt_encoder is not None else None)


def copy_of(network: SAM3D) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network: SAM3D, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Weights]:
    """A function that writes a network as a converted or trained file and reads it back."""

    def write(network: SAM3D, *, drop: str = "", **more: Any) -> Weights:
        state = {name: value for name, value in network.state_dict().items() if name != drop}
        content = {"network_weights": state, METADATA_KEY: {"format": 1, "network": network.config.to_dict()}}
        write_checkpoint(content | more, tmp_path / "given.pth")
        return read_weights(tmp_path / "given.pth")

    return write


Save = Callable[..., Weights]


def sam_content(network: SAM3D) -> dict[str, Tensor]:
    """What SAM's own file would hold for the pretrained part of an encoder."""
    content = {
        "prompt_encoder.not_a_point_embed.weight": torch.randn(1, 16),
        "mask_decoder.mask_tokens.weight": torch.randn(4, 16),
        "image_encoder.neck.0.weight": torch.randn(16, 32, 1, 1),
    }
    for name, value in network.encoder.state_dict().items():
        if not any(ours in name for ours in ("adapter", "rel_pos_d", ".lr", "neck_3d", "depth_embed", "slice_embed")):
            content[f"image_encoder.{name.removeprefix('stem.')}"] = value
    return content


@pytest.fixture
def sam_file(make_network: Make, tmp_path: Path) -> Path:
    torch.save(sam_content(make_network(seed=1)), tmp_path / "sam_small.pth")
    return tmp_path / "sam_small.pth"


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
def test_same_network_gets_everything(make_network: Make, save: Save, adapter: str) -> None:
    source, target = make_network(seed=1, adapter=adapter), make_network(adapter=adapter)
    loaded = load_into(target, save(source))
    assert loaded.names == set(target.state_dict())
    assert loaded.notes == []
    assert torch.equal(logits_of(target), logits_of(source))


@pytest.mark.parametrize("adapter", ["dualpath", "dualpath_conv", "dualpath_fft", "dualpath_no_gate"])
def test_original_into_dualpath_takes_the_global_path(make_network: Make, save: Save, adapter: str) -> None:
    source, target = make_network(seed=1), make_network(adapter=adapter)
    before = copy_of(target)
    loaded = load_into(target, save(source))
    [note] = loaded.notes
    assert f"the file's original adapters were taken into the {adapter} ones; their" in note
    assert "start at random" in note
    for block, given in zip(target.encoder.blocks, source.encoder.blocks, strict=True):
        assert torch.equal(block.adapter.global_conv.weight, given.adapter.conv.weight)
        assert torch.equal(block.adapter.linear2.weight, given.adapter.linear2.weight)
        block.adapter.fuse = lambda g, local: g
    kept = {name for name in before if any(part in name for part in (".local_", ".fusion_gate", ".published_plane"))}
    assert loaded.names == set(before) - kept
    torch.testing.assert_close(logits_of(target), logits_of(source), atol=1e-5, rtol=1e-5)


def test_original_into_a_wide_original_is_the_same_function(make_network: Make, save: Save) -> None:
    source, target = make_network(seed=1), make_network(adapter="original_wide")
    loaded = load_into(target, save(source))
    assert loaded.notes == ["the file's original adapters were taken into the original_wide ones"]
    torch.testing.assert_close(logits_of(target), logits_of(source), atol=1e-5, rtol=1e-5)


def test_a_cold_start_takes_nothing_of_the_adapters(make_network: Make, save: Save) -> None:
    source, target = make_network(seed=1), make_network(adapter="dualpath")
    before = copy_of(target)
    loaded = load_into(target, save(source), adapter_start="cold")
    assert not [name for name in changed(target, before) if ".adapter." in name]
    assert not [name for name in loaded.names if ".adapter." in name]
    assert torch.equal(target.encoder.depth_embed, source.encoder.depth_embed)
    assert "start anew" in loaded.notes[0]


def test_a_quiet_start_is_close_to_the_files_function(make_network: Make, save: Save) -> None:
    source = make_network(seed=1)
    expected, distances = logits_of(source), []
    for start in ("published", "quiet"):
        target = make_network(adapter="dualpath")
        load_into(target, save(source), adapter_start=start)
        distances.append(float((logits_of(target) - expected).norm()))
    assert 0 < distances[1] < 0.5 * distances[0]


def test_a_published_plane_comes_with_its_weights(make_network: Make, save: Save) -> None:
    source = make_network(seed=1, adapter="dualpath", adapter_plane="published")
    target = make_network(adapter="dualpath")
    loaded = load_into(target, save(source))
    assert "plane, 'published'" in loaded.notes[0]
    assert target.config.adapter_plane == "published"
    assert torch.equal(logits_of(target), logits_of(source))
    stock = make_network(adapter="dualpath")
    stock.load_state_dict(copy_of(source))  # as nnU-Net's prediction does
    assert torch.equal(logits_of(stock), logits_of(source))


def test_other_classes_leave_the_last_convolution(make_network: Make, save: Save) -> None:
    source, target = make_network(seed=1, num_classes=2), make_network(num_classes=5)
    before = copy_of(target)
    loaded = load_into(target, save(source))
    assert loaded.names == set(before) - {LAST}
    assert changed(target, before) == {name for name in loaded.names if not name.endswith("attn.lr")}
    [note] = loaded.notes
    assert "2 output channels" in note and "5" in note and "starts at random" in note


def test_prompt_encoder_that_is_not_wanted(make_network: Make, save: Save) -> None:
    source, target = make_network(seed=1), make_network(prompt_encoder=False)
    loaded = load_into(target, save(source))
    assert loaded.names == set(target.state_dict())
    assert ["prompt encoder was left out" in note for note in loaded.notes] == [True]


def test_other_token_stride_is_noted(
    make_network: Make, save: Save, reference_content: Callable[[SAM3D], Any], tmp_path: Path
) -> None:
    source, target = make_network(seed=1), make_network(token_stride=(2, 4, 4))
    [note] = load_into(target, save(source)).notes
    assert "token stride [4, 4, 4], this network has [2, 4, 4]" in note
    torch.save(reference_content(source), tmp_path / "best.pth.tar")  # which does not say its stride
    assert load_into(target, read_weights(tmp_path / "best.pth.tar")).notes == []


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ({"adapter": "dualpath"}, {}, "has dualpath adapters, which give nothing to this trainer's original ones"),
        ({"prompt_encoder": False}, {}, "is an automatic network without prompt encoder.*--no-prompt-encoder"),
        (
            {"embed_dim": 48, "num_heads": 3},
            {},
            "embed_dim is 48 in the file and 32 in the plans.*num_heads is 3 .* and 2",
        ),
        ({"depth": 8}, {}, "depth is 8 in the file and 4 in the plans"),
        ({"num_heads": 4}, {}, "num_heads is 4 in the file and 2"),
        ({"global_attn_indexes": (1,)}, {}, r"global_attn_indexes is \(1,\) in the file and \(1, 3\)"),
        ({"out_channels": 32}, {}, "out_channels is 32 in the file and 16"),
        ({"decoder_channels": 9}, {}, "decoder_channels is 9 in the file and 8"),
        ({"prompt_mlp_dim": 9}, {}, "prompt_mlp_dim is 9 in the file and 32"),
        ({"position_grid": 6}, {}, "position_grid is 6 in the file and 4"),
        ({"adapter_dim": 9}, {}, "bottleneck is 9 in the file and 16"),
        ({"adapter_dim": 9}, {"adapter": "dualpath"}, "bottleneck is 9 in the file and 16"),
    ],
)
def test_refusals_name_the_sizes_and_change_nothing(
    make_network: Make, save: Save, source: dict[str, Any], target: dict[str, Any], message: str
) -> None:
    network = make_network(**target)
    before = copy_of(network)
    weights = save(make_network(seed=1, **source))
    with pytest.raises(WeightsError, match=message) as caught:
        load_into(network, weights)
    assert "given.pth" in str(caught.value)
    assert changed(network, before) == set()


def test_size_of_a_part_that_is_left_out_does_not_matter(make_network: Make, save: Save) -> None:
    network = make_network(prompt_encoder=False)
    assert load_into(network, save(make_network(seed=1, prompt_mlp_dim=9))).names == set(network.state_dict())


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
@pytest.mark.parametrize(
    "missing",
    [
        "encoder.blocks.2.norm1.weight",
        "encoder.blocks.1.adapter.linear1.bias",
        "prompt_encoder.layers.0.global_query",
        LAST,
    ],
)
def test_incomplete_files_are_refused(make_network: Make, save: Save, adapter: str, missing: str) -> None:
    network = make_network(adapter=adapter)
    before = copy_of(network)
    weights = save(make_network(seed=1), drop=missing)
    with pytest.raises(WeightsError, match=f"given.pth .*lacks 1 weights.*{missing!r}"):
        load_into(network, weights)
    assert changed(network, before) == set()


def test_unknown_and_misshapen_weights_are_refused(make_network: Make, save: Save) -> None:
    network = make_network()
    before = copy_of(network)
    weights = save(make_network(seed=1))
    weights.state["encoder.head.weight"] = torch.zeros(3)
    weights.state["encoder.depth_embed"] = torch.zeros(1, 5, 32)
    with pytest.raises(
        WeightsError,
        match=r"does not fit.*depth_embed \(1, 5, 32\) for \(1, 4, 32\).*head.weight "
        r"\(unknown\)",
    ):
        load_into(network, weights)
    assert changed(network, before) == set()


def test_files_state_is_not_changed_by_loading(make_network: Make, save: Save) -> None:
    weights = save(make_network(seed=1))
    names = list(weights.state)
    load_into(make_network(adapter="dualpath"), weights)
    assert list(weights.state) == names


# SAM ------------------------------------------------------------------------------------------------------------------


def test_sam_fills_the_pretrained_part(sam_file: Path, make_network: Make) -> None:
    weights = read_weights(sam_file)
    assert (weights.kind, weights.config) == ("sam", None)
    source, target = make_network(seed=1), make_network(adapter="dualpath")
    before = copy_of(target)
    loaded = load_into(target, weights)
    assert changed(target, before) == loaded.names
    ours = ("adapter", ".lr", "neck_3d", "depth_embed", "slice_embed")
    assert loaded.names == {
        name for name in target.state_dict() if name.startswith("encoder.") and not any(part in name for part in ours)
    }
    for name in loaded.names - {name for name in loaded.names if name.endswith("rel_pos_d")}:
        assert torch.equal(target.state_dict()[name], source.state_dict()[name]), name
    for mine, given in zip(target.encoder.blocks, source.encoder.blocks, strict=True):
        mean = (given.attn.rel_pos_h + given.attn.rel_pos_w) / 2
        torch.testing.assert_close(mine.attn.rel_pos_d, mean)


def test_sam_is_no_whole_model(sam_file: Path) -> None:
    with pytest.raises(WeightsError, match="sam_small.pth .*holds the image encoder only.*nnUNet_sam_checkpoint"):
        load_model(sam_file)


def test_sam_of_another_size(sam_file: Path, make_network: Make) -> None:
    for sizes in ({"embed_dim": 48, "num_heads": 3}, {"depth": 8}, {"global_attn_indexes": (1,)}, {"position_grid": 6}):
        network = make_network(**sizes)
        before = copy_of(network)
        with pytest.raises(WeightsError, match="sam_small.pth .*--variant|sam_small.pth .*lacks"):
            load_into(network, read_weights(sam_file))
        assert changed(network, before) == set()


@pytest.mark.parametrize(
    "key",
    [
        "pos_embed",
        "blocks.1.norm1.weight",
        "blocks.3.attn.proj.bias",
        "blocks.1.attn.rel_pos_w",
        "blocks.1.attn.rel_pos_h",
    ],
)
def test_incomplete_sam(make_network: Make, tmp_path: Path, key: str) -> None:
    content = sam_content(make_network(seed=1))
    del content[f"image_encoder.{key}"]
    torch.save(content, tmp_path / "short.pth")
    network = make_network()
    before = copy_of(network)
    with pytest.raises(WeightsError, match="short.pth"):
        load_into(network, read_weights(tmp_path / "short.pth"))
    assert changed(network, before) == set()


def test_encoder_that_is_not_sams(make_network: Make, tmp_path: Path) -> None:
    content = sam_content(make_network()) | {"image_encoder.blocks.0.attn.q_norm.weight": torch.ones(16)}
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="other.pth: unknown weight 'image_encoder.blocks.0.attn.q_norm.weight'"):
        read_weights(tmp_path / "other.pth")


# Checkpoints to continue from -----------------------------------------------------------------------------------------


def test_same_network_may_continue(make_network: Make, save: Save) -> None:
    network = make_network(adapter="dualpath")
    check_same_network(save(network, trainer_name="nnUNetTrainer_SAM3DDualPath"), make_network(adapter="dualpath"))
    check_same_network(save(network, trainer_name="x"), make_network(adapter="dualpath", checkpointing=True))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"adapter": "dualpath"}, "adapter is original in the file and dualpath here"),
        ({"num_classes": 5}, "num_classes is 2 in the file and 5 here"),
        ({"token_stride": (8, 4, 4)}, r"token_stride is \[4, 4, 4\] in the file and \[8, 4, 4\] here"),
        ({"adapter_dim": 9}, "belongs to another network"),
    ],
)
def test_other_network_may_not_continue(make_network: Make, save: Save, sizes: dict[str, Any], message: str) -> None:
    weights = save(make_network(), trainer_name="nnUNetTrainer_SAM3DOriginal")
    with pytest.raises(WeightsError, match=message):
        check_same_network(weights, make_network(**sizes))


def test_converted_files_are_no_training_to_continue(make_network: Make, save: Save) -> None:
    with pytest.raises(WeightsError, match="given.pth .*no checkpoint of a training.*-pretrained_weights"):
        check_same_network(save(make_network()), make_network())


# Parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
def test_parts_cover_the_network(make_network: Make, adapter: str) -> None:
    parts = {part_of(name) for name in make_network(adapter=adapter).state_dict()}
    assert parts == {part for part, _ in PARTS}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoder.stem.patch_embed.proj.weight", "SAM encoder"),
        ("encoder.pos_embed", "SAM encoder"),
        ("encoder.blocks.0.attn.rel_pos_h", "SAM encoder"),
        ("encoder.blocks.0.attn.qkv.bias", "SAM encoder"),
        ("encoder.blocks.0.mlp.lin1.weight", "SAM encoder"),
        ("encoder.blocks.0.attn.rel_pos_d", "3D parts of the encoder"),
        ("encoder.blocks.11.norm2.bias", "3D parts of the encoder"),
        ("encoder.stem.slice_embed.bias", "3D parts of the encoder"),
        ("encoder.depth_embed", "3D parts of the encoder"),
        ("encoder.neck_3d.3.0.weight", "3D parts of the encoder"),
        ("encoder.blocks.3.adapter.linear1.weight", "adapters"),
        ("prompt_encoder.layers.1.norm4.bias", "prompt encoder"),
        ("mask_decoder.heads.0.0.weight", "mask decoder"),
        ("mask_decoder.seg_layers.0.weight", "last convolution"),
    ],
)
def test_part_of_a_weight(name: str, part: str) -> None:
    assert part_of(name) == part
