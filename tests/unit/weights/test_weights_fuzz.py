"""Damaged files of every format: a clear refusal or the whole content, never a crash, a hang or a part of it."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.describe import describe
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import METADATA_KEY, read_weights
from nnunetv2_sam3d.weights.transfer import load_into

# As small as the network can be, so that thousands of files are read in seconds.
SIZES: dict[str, Any] = {
    "embed_dim": 8, "num_heads": 1, "adapter_dim": 2, "decoder_channels": 2, "prompt_mlp_dim": 2, "position_grid": 1,
}  # fmt: skip
CPU_LIMIT_S = 5.0  # a whole file takes some 10 ms


def sam_state(network: SAM3D) -> dict[str, Tensor]:
    """The pretrained part under SAM's names."""
    return {
        f"image_encoder.{name.removeprefix('stem.')}": value.clone()
        for name, value in network.encoder.state_dict().items()
        if not any(ours in name for ours in ("adapter", "rel_pos_d", ".lr", "neck_3d", "depth_embed", "slice_embed"))
    }


def saved(content: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def converted(network: SAM3D) -> dict[str, Any]:
    record = {"file": "/best.pth.tar", "sha256": "12ab", "kind": "3dsam-adapter"}
    metadata = {
        "format": 1, "network": network.config.to_dict(), "outputs": {"names": [], "regions": False},
        "map_class": {"tumour": 1}, "trained": ["a"], "provenance": {"all parts": record},
    }  # fmt: skip
    return {"network_weights": network.state_dict(), METADATA_KEY: metadata, "trainer_name": "x"}


@pytest.fixture(params=["reference zip", "reference pickle", "trained zip", "trained pickle", "sam safetensors"])
def write(request: pytest.FixtureRequest, reference_content: Callable[[SAM3D], Any]) -> Callable[[SAM3D], bytes]:
    """A function that gives the bytes of a file with a network's weights."""
    kind, form = request.param.split()
    if form == "safetensors":
        return lambda network: save(sam_state(network))
    make = reference_content if kind == "reference" else converted

    def one(network: SAM3D) -> bytes:
        torch.manual_seed(0)  # what is not the network's own
        return saved(make(network), form == "zip")

    return one


def damaged(data: bytes, headers: list[int], seed: int) -> bytes:
    """One to three blows, three in four of them on what is no tensor data."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        at = chance.choice(headers) if chance.random() < 0.75 else chance.randrange(len(data))
        at = min(at, len(data) - 1)
        length = chance.choice((1, 1, 2, 4, 8, 100))
        blow = chance.randrange(7)
        if blow == 0:  # a flipped bit
            data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        elif blow == 1:  # other bytes
            data = data[:at] + chance.randbytes(length) + data[at + length :]
        elif blow == 2:  # bytes lost
            data = data[:at] + data[at + length :]
        elif blow == 3:  # bytes too many
            data = data[:at] + chance.randbytes(length) + data[at:]
        elif blow == 4:  # extreme lengths and offsets
            data = data[:at] + chance.choice((b"\xff", b"\x00", b"\x7f", b"9")) * length + data[at + length :]
        elif blow == 5:  # a part twice, or in another's place
            other = chance.choice(headers)
            data = data[:at] + data[other : other + length] + data[at + chance.choice((0, length)) :]
        else:  # cut off
            data = data[: at + 1]
    return data


def check_damage(
    make_network: Callable[..., SAM3D], write: Callable[[SAM3D], bytes], folder: Path, seeds: range
) -> tuple[int, int]:
    """Reads a damaged file for each seed; returns how many were read and how many refused."""
    source, other = make_network(seed=1, **SIZES), make_network(seed=2, **SIZES)
    data = write(source)
    headers = [at for at, (one, two) in enumerate(zip(data, write(other), strict=True)) if one == two]
    path = folder / "damaged.pth"
    path.write_bytes(data)
    whole = read_weights(path)
    checked_sums = data.startswith(b"PK")
    network, read = make_network(**SIZES), 0
    empty = {name: value.clone() for name, value in network.state_dict().items()}
    for seed in seeds:
        path.write_bytes(damaged(data, headers, seed))
        begin = time.process_time()
        try:
            weights = read_weights(path)
            describe(path)
            loaded = load_into(network, weights)
        except WeightsError as error:
            assert str(path) in str(error) and len(str(error)) < 3000, seed
            now = network.state_dict()
            assert all(torch.equal(now[name], value) for name, value in empty.items()), seed
        else:
            read += 1
            assert set(weights.state) == set(whole.state), seed
            assert loaded.names == set(whole.state), seed
            if checked_sums:
                assert all(torch.equal(weights.state[name], value) for name, value in whole.state.items()), seed
            network.load_state_dict(empty)
        assert time.process_time() - begin < CPU_LIMIT_S, seed
    return read, len(seeds) - read


def test_damaged_files(make_network: Callable[..., SAM3D], write: Callable[[SAM3D], bytes], tmp_path: Path) -> None:
    read, refused = check_damage(make_network, write, tmp_path, range(400))
    assert refused > 200
    assert read > 0  # the blow fell on padding, or on values that nothing guards


@pytest.mark.slow
def test_many_damaged_files(
    make_network: Callable[..., SAM3D], write: Callable[[SAM3D], bytes], tmp_path: Path
) -> None:
    check_damage(make_network, write, tmp_path, range(1000, 11000))


def test_one_flipped_bit_in_a_weight(make_network: Callable[..., SAM3D], tmp_path: Path) -> None:
    """PyTorch reads such a file without a word."""
    network = make_network(**SIZES)
    data = saved(converted(network))
    at = data.index(network.encoder.pos_embed.detach().numpy().tobytes()) + 2
    (tmp_path / "flipped.pth").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    torch.load(tmp_path / "flipped.pth", weights_only=True)
    with pytest.raises(WeightsError, match="flipped.pth .*damaged"):
        read_weights(tmp_path / "flipped.pth")


def test_file_without_checksums_is_read(make_network: Callable[..., SAM3D], tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(converted(make_network(**SIZES)), tmp_path / "plain.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_weights(tmp_path / "plain.pth").kind == "trained"


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_truncated_safetensors(make_network: Callable[..., SAM3D], tmp_path: Path, part: float) -> None:
    data = save(sam_state(make_network(**SIZES)))
    (tmp_path / "model.safetensors").write_bytes(data[: int(part * len(data))])
    with pytest.raises(WeightsError, match="model.safetensors .*is no complete safetensors file.*cut off"):
        read_weights(tmp_path / "model.safetensors")


def test_tensor_larger_than_its_storage(make_network: Callable[..., SAM3D], tmp_path: Path) -> None:
    """A few bytes can claim any number of values."""
    content = converted(make_network(**SIZES))
    content["network_weights"]["encoder.depth_embed"] = torch.zeros(1).expand(1 << 20, 1 << 20, 8)
    torch.save(content, tmp_path / "bomb.pth")
    with pytest.raises(WeightsError, match="bomb.pth.*encoder.depth_embed.*larger than what is stored"):
        read_weights(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    "sizes", [{"depth": 4 << 20}, {"embed_dim": 1 << 40}, {"depth": 4.0}, {"out_channels": 1 << 62}]
)
def test_description_of_an_enormous_network(
    make_network: Callable[..., SAM3D], tmp_path: Path, sizes: dict[str, Any]
) -> None:
    content = converted(make_network(**SIZES))
    content[METADATA_KEY]["network"] |= sizes
    torch.save(content, tmp_path / "large.pth")
    with pytest.raises(WeightsError, match=r"large.pth"):
        describe(tmp_path / "large.pth")
