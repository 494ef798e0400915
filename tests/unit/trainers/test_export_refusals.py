"""Adapter files and bases that do not fit: said, and nothing is written."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from trainer_kit import (
    MakeTrainer,
    Pair,
    dualpath_on,
    sam_checkpoint,
    same,
    weights_of,
)

from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.weights.adapter_file import read_adapter
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.export import export_adapter, merge


def test_other_bases_are_refused(original: Pair, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    sam, checkpoint = original
    export_adapter(checkpoint, tmp_path / "a.safetensors")
    content = torch.load(sam)
    one_bit = content["image_encoder.blocks.3.attn.qkv.bias"].view(torch.int32)
    one_bit[5] ^= 1
    torch.save(content, tmp_path / "other.pth")
    small = make_trainer("Full", initialize=True, network={"embed_dim": 64, "num_heads": 2, "position_grid": 4})
    sam_checkpoint(small, tmp_path / "size.pth")
    dualpath = dualpath_on(checkpoint, make_trainer)[1]
    for other, words in (("other.pth", "stands on"), ("size.pth", "embed_dim"), (str(dualpath), "adapters")):
        with pytest.raises(WeightsError) as caught:
            merge(tmp_path / other, tmp_path / "a.safetensors", tmp_path / "merged.pth")
        message = str(caught.value)
        assert "is not the base of" in message and words in message
        assert f"The base is sam.pth (a SAM checkpoint, SHA-256 {sha256(sam)})" in message
        assert not (tmp_path / "merged.pth").exists()


def test_weights_that_the_adapter_replaces_do_not_matter_in_a_base(original: Pair, tmp_path: Path) -> None:
    export_adapter(original[1], tmp_path / "a.safetensors")
    content = torch.load(original[0]) | {"mask_decoder.x": torch.ones(1)}
    content["image_encoder.blocks.0.norm1.bias"] += 1
    torch.save(content, tmp_path / "other.pth")
    merge(tmp_path / "other.pth", tmp_path / "a.safetensors", tmp_path / "merged.pth")
    assert same(weights_of(tmp_path / "merged.pth"), weights_of(original[1]))


def test_files_that_are_no_adapter_files(original: Pair, tmp_path: Path) -> None:
    sam, checkpoint = original
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    for name, words in (
        ("none.safetensors", "there is no adapter file"), ("other.safetensors", "but no adapter file"),
        ("text.safetensors", "cut off or damaged"), ("sam.pth", "cut off or damaged"),
    ):  # fmt: skip
        with pytest.raises(WeightsError, match=words):
            merge(sam, tmp_path / name, tmp_path / "merged.pth")
    for file in (sam, tmp_path / "none.pth"):
        with pytest.raises(WeightsError, match=f"{file.name}"):
            export_adapter(file, tmp_path / "a.safetensors")


def test_damaged_adapter_files(original: Pair, tmp_path: Path) -> None:
    """Cut off anywhere or with any byte changed: said, never merged."""
    file, chance = tmp_path / "a.safetensors", random.Random(0)
    export_adapter(original[1], file)
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    places = [
        *range(8),
        *(chance.randrange(8, header) for _ in range(400)),
        *(chance.randrange(len(data)) for _ in range(20)),
    ]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(WeightsError, match="a.safetensors"):
            read_adapter(file)
    for size in (0, 7, 8, 100, header, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(WeightsError, match="a.safetensors"):
            read_adapter(file)
    file.write_bytes(data)
    read_adapter(file)


@pytest.mark.parametrize(
    "change",
    [
        {"network": None}, {"network": {"embed_dim": "wide"}}, {"network": {"embed_dim": 33}},
        {"network": {"embed_dim": 64}}, {"network": {"embed_dim": 2.5}}, {"network": {"width": 3}},
        {"network": {"embed_dim": 1 << 40}},
    ],
)  # fmt: skip
def test_wrong_descriptions_of_the_network(original: Pair, tmp_path: Path, change: dict[str, Any]) -> None:
    from nnunetv2_sam3d.weights.adapter_file import write_adapter

    export_adapter(original[1], tmp_path / "a.safetensors")
    tensors, metadata = read_adapter(tmp_path / "a.safetensors")
    network = change["network"] and metadata.checkpoint["sam3d"]["network"] | change["network"]
    described = metadata.checkpoint["sam3d"] | {"network": network}
    wrong = replace(metadata, checkpoint=metadata.checkpoint | {"sam3d": described})
    write_adapter(tmp_path / "wrong.safetensors", tensors, wrong)
    with pytest.raises(WeightsError, match="wrong.safetensors is damaged"):
        merge(original[0], tmp_path / "wrong.safetensors", tmp_path / "merged.pth")


def test_sources_are_not_overwritten(original: Pair, tmp_path: Path) -> None:
    export_adapter(original[1], tmp_path / "a.safetensors")
    for target in (original[0], tmp_path / "a.safetensors"):
        with pytest.raises(WeightsError, match="both a source and the target"):
            merge(original[0], tmp_path / "a.safetensors", target)
    with pytest.raises(WeightsError, match="both the source and the target"):
        export_adapter(original[1], original[1])
    with pytest.raises(OSError, match="could not be written"):
        export_adapter(original[1], tmp_path / "sam.pth" / "a.safetensors")


def test_checkpoint_with_frozen_weights_of_several_files(original: Pair, tmp_path: Path) -> None:
    content = read_checkpoint(original[1])
    content["sam3d"]["trained"] = [name for name in content["sam3d"]["trained"] if ".seg_layers." not in name]
    torch.save(content, tmp_path / "c.pth")
    export_adapter(tmp_path / "c.pth", tmp_path / "a.safetensors")  # random, so that the base cannot give it
    with pytest.raises(WeightsError, match="stands on"):
        merge(original[0], tmp_path / "a.safetensors", tmp_path / "merged.pth")
    content["sam3d"]["provenance"]["last convolution"] = {
        "file": "/x/decoder.pth",
        "sha256": "12ab",
        "kind": "converted",
    }
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="has frozen weights from .*decoder.pth.*exactly one base"):
        export_adapter(tmp_path / "c.pth", tmp_path / "a.safetensors")
