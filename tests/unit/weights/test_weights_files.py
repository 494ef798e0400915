"""Files from strangers: what is wrong with them is said, nothing in them runs, and writing damages nothing."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from limited import run_limited
from safetensors.torch import save_file

from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint, write_checkpoint
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import FORMAT_VERSION, METADATA_KEY, convert, read_weights

Make = Callable[..., SAM3D]


def refused(path: Path) -> str:
    """The message with which a file is refused; it names the file."""
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# Reading --------------------------------------------------------------------------------------------------------------


def test_no_file(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.pth")
    assert "is not a file" in refused(tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    assert "is empty" in refused(tmp_path / "empty.pth")


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><html><body>Sign in</body></html>",
        b"\n  <html>\n",
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    ],
)
def test_web_page(tmp_path: Path, page: bytes) -> None:
    (tmp_path / "page.pth").write_bytes(page)
    message = refused(tmp_path / "page.pth")
    assert "is a web page" in message and "Download it again" in message


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file(whole: Path, tmp_path: Path, part: float, zipped: bool) -> None:
    path = tmp_path / "cut.pth.tar"
    torch.save(read_checkpoint(whole), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    message = refused(path)
    assert re.search(r"\(\d+ bytes\) is no complete PyTorch checkpoint.*cut off", message), message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x00" * 4096, "is no complete PyTorch checkpoint"),
        (b"just some text\n" * 40, "is a text file, not a weights file"),
        ('{"name": "hippocampus – left"}'.encode(), "is a text file, not a weights file"),
        (b"\x1f\x8b\x08\x00garbage", "is no complete PyTorch checkpoint"),
    ],
)
def test_other_formats(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "other.pth").write_bytes(content)
    message = refused(tmp_path / "other.pth")
    assert words in message and "run code" not in message


def test_pointer_of_git_lfs(tmp_path: Path) -> None:
    """What a clone of a Hugging Face repository without Git LFS holds."""
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    assert "git lfs pull" in refused(tmp_path / "model.safetensors")


class RunsCode:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_does_not_run(
    make_network: Make, reference_content: Callable[[SAM3D], Any], tmp_path: Path, zipped: bool
) -> None:
    marker = tmp_path / "marker"
    content = reference_content(make_network()) | {"scheduler": RunsCode(marker)}
    torch.save(content, tmp_path / "evil.pth.tar", _use_new_zipfile_serialization=zipped)
    message = refused(tmp_path / "evil.pth.tar")
    assert not marker.exists()
    assert "could run code" in message and f"{os.mkdir.__module__}.mkdir" in message
    # the file would have run it
    torch.load(tmp_path / "evil.pth.tar", weights_only=False)
    assert marker.exists()


class Harmless:
    """An object that a training might leave in its checkpoint."""


def test_other_objects_are_named(tmp_path: Path) -> None:
    torch.save({"encoder_dict": {}, "decoder_dict": {}, "args": Harmless()}, tmp_path / "args.pth")
    message = refused(tmp_path / "args.pth")
    assert "could run code" in message and f"{__name__}.Harmless" in message


def test_stock_nnunet_checkpoint(tmp_path: Path) -> None:
    torch.save(
        {
            "network_weights": {"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(2)},
            "trainer_name": "nnUNetTrainer",
            "optimizer_state": {},
            "grad_scaler_state": None,
        },
        tmp_path / "checkpoint_final.pth",
    )
    message = refused(tmp_path / "checkpoint_final.pth")
    assert "nnU-Net checkpoint of another network (trainer 'nnUNetTrainer')" in message
    assert "a SAM checkpoint" in message and "a 3DSAM-adapter checkpoint" in message


@pytest.mark.parametrize(
    ("content", "summary"),
    [
        (torch.zeros(2, 3), "a Tensor of shape (2, 3)"),
        ([1, 2], "a list"),
        ({}, "a table of 0 entries"),
        (
            {"image_encoder.layers.0.weight": torch.zeros(2), "b": 1, "c": 1, "d": 1, "e": 1},
            "a table of 5 entries: image_encoder.layers.0.weight, b, c, d, ...",
        ),
    ],
)
def test_unknown_content(tmp_path: Path, content: Any, summary: str) -> None:
    torch.save(content, tmp_path / "what.pth")
    message = refused(tmp_path / "what.pth")
    assert summary in message and "no known kind" in message and "a SAM checkpoint" in message


def test_newer_format(make_network: Make, tmp_path: Path) -> None:
    network = make_network()
    metadata = {"format": FORMAT_VERSION + 1, "network": network.config.to_dict()}
    torch.save({"network_weights": network.state_dict(), METADATA_KEY: metadata}, tmp_path / "newer.pth")
    assert "Update it: pip install --upgrade nnunetv2_sam3d" in refused(tmp_path / "newer.pth")


@pytest.mark.parametrize(
    "damage",
    [
        {"network_weights": None},
        {"network_weights": [torch.zeros(3)]},
        {"network_weights": {"encoder.pos_embed": 3}},
        {METADATA_KEY: {"network": {"width": 3}}},
        {METADATA_KEY: {"network": None}},
        {METADATA_KEY: {"network": {}}},
        {METADATA_KEY: None},
        {METADATA_KEY: {"network": {"embed_dim": "wide"}}},
        {METADATA_KEY: {"network": {"embed_dim": 30, "num_heads": 4}}},
    ],
)
def test_damaged_file_of_ours(make_network: Make, tmp_path: Path, damage: dict[str, Any]) -> None:
    network = make_network()
    content = {
        "network_weights": network.state_dict(),
        METADATA_KEY: {"format": 1, "network": network.config.to_dict()},
    }
    torch.save(content | damage, tmp_path / "damaged.pth")
    with pytest.raises(WeightsError, match="damaged.pth"):
        convert(tmp_path / "damaged.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_sam_file_with_entries_that_are_no_tensors(tmp_path: Path) -> None:
    torch.save({"image_encoder.blocks.0.attn.qkv.weight": 3}, tmp_path / "sam.pth")
    refused(tmp_path / "sam.pth")


def test_reading_changes_no_global_of_torch(whole: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    read_weights(whole)
    assert set(torch.serialization.get_safe_globals()) == before


# Writing --------------------------------------------------------------------------------------------------------------


def test_writing_makes_folders_and_leaves_one_file(tmp_path: Path) -> None:
    write_checkpoint({"a": torch.ones(3)}, tmp_path / "new" / "folder" / "file.pth")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["file.pth"]
    assert torch.equal(read_checkpoint(tmp_path / "new" / "folder" / "file.pth")["a"], torch.ones(3))


@pytest.mark.parametrize("earlier", [True, False])
def test_full_disk_leaves_the_earlier_file(tmp_path: Path, earlier: bool) -> None:
    """A limit on the size of files stops the writing half-way, as a full disk or an exhausted quota does."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "file.pth"
    if earlier:
        write_checkpoint({"a": torch.ones(3)}, path)
    before = path.read_bytes() if earlier else b""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match="file.pth could not be written: .*Free disk space") as caught:
            write_checkpoint({"a": torch.randn(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ("earlier file of that name is untouched" in str(caught.value)) == earlier
    assert [entry.name for entry in tmp_path.iterdir()] == (["file.pth"] if earlier else [])
    if earlier:
        assert path.read_bytes() == before


def test_content_that_cannot_be_saved_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    write_checkpoint({"a": torch.ones(3)}, path)
    with pytest.raises(Exception, match="pickle|local object"):
        write_checkpoint({"a": torch.ones(3), "b": lambda: 0}, path)
    assert torch.equal(read_checkpoint(path)["a"], torch.ones(3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.pth"]


def test_target_that_cannot_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for target in (tmp_path / "file" / "out.pth", tmp_path):
        with pytest.raises(OSError, match="could not be written") as caught:
            write_checkpoint({"a": torch.ones(3)}, target)
        assert str(target) in str(caught.value)
    assert (tmp_path / "file").read_text() == "text"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def bombs(folder: Path) -> list[Path]:
    """Files of a few kB or MB whose content would be gigabytes, or whose reading would take years."""
    laughs: list[Any] = []
    for _ in range(30):
        laughs = [laughs, laughs]
    provenance: dict[str, Any] = {}
    for level in range(19):
        halves = {
            half: {"file": half, "sha256": f"{half}{level}", "kind": "sam", "made_from": provenance} for half in "ab"
        }
        provenance = dict(halves)
    half, meta = torch.zeros(1 << 20, dtype=torch.float16), {"format": 1, "network": None}
    state = {"encoder.pos_embed": torch.zeros(1, 2, 2, 4)}
    contents = {
        "laughs": {"network_weights": {}, "trainer_name": laughs},
        "outputs": {"network_weights": {}, "sam3d": meta | {"outputs": laughs}},
        "provenance": {"network_weights": state, "sam3d": meta | {"provenance": provenance}},
        "shared": {"network_weights": {f"encoder.x{number}": half[:] for number in range(1500)}, "sam3d": meta},
        "views": {"network_weights": {f"encoder.x{n}": half[n:] for n in range(1500)}, "sam3d": meta},
        "reference": {"encoder_dict": {f"blocks.{n}.norm1.weight": half[:] for n in range(1500)}, "decoder_dict": {}},
        "long name": {"network_weights": {"encoder." + "x" * 2_000_000: half[:2]}, "sam3d": meta},
        "axes": {"network_weights": state, "sam3d": meta, "inference_allowed_mirroring_axes": laughs},
    }
    files = []
    for name, content in contents.items():
        for ending, zipped in (("pth", True), ("old.pth", False)):
            files.append(folder / f"{name}.{ending}")
            torch.save(content, files[-1], _use_new_zipfile_serialization=zipped)
    key = b"\x80\x02}" + b")q\x000" + b"h\x00h\x00\x86q\x000" * 60 + b"h\x00K\x01s."  # a tuple whose hash never ends
    files.append(folder / "key.pth")
    with zipfile.ZipFile(files[-1], "w") as archive:
        archive.writestr("a/data.pkl", key)
        archive.writestr("a/version", b"3\n")
    return files


def test_small_files_cost_neither_gigabytes_nor_hours(tmp_path: Path) -> None:
    files = bombs(tmp_path)
    body = """
for file in sys.argv[1:]:
    start = time.process_time()
    try:
        describe(file)
    except WeightsError as error:
        assert file in str(error) and len(str(error)) < 1500, str(error)[:3000]
    else:
        sys.exit(f"{file} was accepted")
    assert time.process_time() - start < 5, (file, time.process_time() - start)
"""
    imports = (
        "from nnunetv2_sam3d.weights.describe import describe\nfrom nnunetv2_sam3d.weights.errors import WeightsError"
    )
    run_limited(imports, body, files, seconds=30, megabytes=300)


@pytest.mark.parametrize("axes", [5, [[0]], [0.0], [True], "01", [3], {0: 1}])
def test_axes_for_mirroring_that_are_none(make_network: Make, tmp_path: Path, axes: Any) -> None:
    network = make_network(0)
    content = {
        "network_weights": network.state_dict(), "trainer_name": "x", "inference_allowed_mirroring_axes": axes,
        METADATA_KEY: {"format": 1, "network": network.config.to_dict()},
    }  # fmt: skip
    torch.save(content, file := tmp_path / "a.pth")
    assert "its axes for mirroring are" in refused(file)


def test_a_set_of_several_files_is_read_whole_or_refused(make_network: Make, tmp_path: Path) -> None:
    network = make_network(0)
    state = {
        f"image_encoder.{name.removeprefix('stem.')}": value.clone()
        for name, value in network.encoder.state_dict().items()
        if not any(ours in name for ours in ("adapter", "rel_pos_d", ".lr", "neck_3d", "depth_embed", "slice_embed"))
    }
    cut = next(place for place, name in enumerate(state) if "blocks.1.mlp" in name)
    parts = [dict(list(state.items())[:cut]), dict(list(state.items())[cut:])]
    names = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, tmp_path / name)
    assert "is number 1 of 2 files" in refused(tmp_path / names[0])
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes((tmp_path / names[0]).read_bytes())
    assert "it is incomplete" in refused(renamed)
    index = tmp_path / "model.safetensors.index.json"
    table = {name: file for file, part in zip(names, parts, strict=True) for name in part}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    torch.save(state, whole := tmp_path / "whole.pth")
    expected = read_weights(whole).state
    for given in (index, *(tmp_path / name for name in names)):
        found = read_weights(given).state
        assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in found)
    for damage, words in (
        ({**table, "x": names[0]}, "does not hold the weights"),
        ({**table, "x": "../passwd"}, "no file beside it"),
        ({**table, "x": "absent.bin"}, "1 are absent: absent.bin"),
        ({}, "names no files"),
        ([1], "no index of weights"),
    ):
        index.write_text(json.dumps({"weight_map": damage}))
        assert words in refused(index)
    index.write_text("[" * 100_000)
    assert "no index of weights" in refused(index)


def test_unknown_content_is_described_to_the_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {"backbone": {"conv1.weight": torch.zeros(1)}}}, file := tmp_path / "a.pth")
    assert (
        "a table of 2 entries: epoch, model (a table of 1 entries: backbone (a table of 1 entries: conv1.weight))"
        in refused(file)
    )
