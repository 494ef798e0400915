"""Fetching published weights from a hub on this machine that works, breaks off, and lies."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub, serving
from safetensors.torch import save, save_file

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.network_architecture.config import VARIANTS
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights import sources
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.fetch import fetch
from nnunetv2_sam3d.weights.reading import read_weights
from nnunetv2_sam3d.weights.sam import IN_SAM
from nnunetv2_sam3d.weights.sources import cache_folder, cached, find_sam_checkpoint

REPOSITORY = "tests/sam-tiny"
CHUNK = 10_000  # bytes; so many are lost when a transfer breaks off


def as_hugging_face(seed: int) -> dict[str, torch.Tensor]:
    """The encoder of a random vit_tiny under the names of transformers' ``SamModel``."""
    torch.manual_seed(seed)
    state = SAM3D(VARIANTS["vit_tiny"]).state_dict()
    content = {}
    for name, value in state.items():
        if IN_SAM.fullmatch(name) and not name.endswith("rel_pos_d"):
            name = name.removeprefix("encoder.").removeprefix("stem.")
            name = name.replace("patch_embed.proj.", "patch_embed.projection.").replace("blocks.", "layers.")
            name = name.replace("norm1.", "layer_norm1.").replace("norm2.", "layer_norm2.")
            content[f"vision_encoder.{name}"] = torch.randn_like(value)
    return content


CONTENT, OTHER = save(as_hugging_face(0)), save(as_hugging_face(1))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a small encoder, known as ``tiny``; no proxy of this machine stands between."""
    monkeypatch.setitem(sources.NAMED, "tiny", sources.Published(REPOSITORY, "vit_tiny"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    with serving(REPOSITORY, {"model.safetensors": CONTENT}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def refused(**options: str | Path) -> str:
    """The message of a fetch that fails; trainers find nothing then."""
    with pytest.raises(WeightsError) as caught:
        fetch("tiny", **options)
    assert cached("tiny") is None
    return str(caught.value)


# --- a hub that works ---


def test_fetch(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    log = list[str]()
    file = fetch("tiny", log=log.append)
    assert file == cached("tiny") == cache_folder() / "tiny" / "model.safetensors"
    assert file.read_bytes() == CONTENT and read_weights(file).kind == "sam"
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert log[-1] == f"{file}: {len(CONTENT):,} bytes, SHA-256 {digest}"
    assert (file.parent / "model.safetensors.sha256").read_text() == f"{digest}  model.safetensors\n"
    monkeypatch.setenv("nnUNet_sam_checkpoint", "tiny")
    assert find_sam_checkpoint("vit_b", None) == find_sam_checkpoint("vit_b", "tiny") == file


def test_what_is_there_and_whole_needs_no_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    log, before = list[str](), len(hub.asked)
    fetch("tiny", log=log.append)
    assert "is there and whole" in log[0] and len(hub.asked) == before


def test_what_has_changed_is_fetched_again(hub: Hub) -> None:
    file = fetch("tiny")
    file.write_bytes(b"x" + CONTENT[1:])
    log = list[str]()
    assert fetch("tiny", log=log.append) == file
    assert "has changed since it was fetched" in log[0] and file.read_bytes() == CONTENT


def test_repository_without_safetensors(hub: Hub, tmp_path: Path) -> None:
    torch.save(as_hugging_face(0), tmp_path / "model.bin")
    hub.files = {"pytorch_model.bin": (tmp_path / "model.bin").read_bytes()}
    assert fetch("tiny").name == "pytorch_model.bin"


def test_command(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "fetch", "tiny"]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert main(["weights", "fetch", "vit_x"]) == 1
    assert "only vit_b, vit_l, vit_h, medsam" in capsys.readouterr().err


# --- a hub that breaks off ---


def test_transfer_goes_on_where_it_broke_off(hub: Hub) -> None:
    hub.stops = [100_000, 50_000]
    assert fetch("tiny").read_bytes() == CONTENT
    assert hub.ranges() == [None, "bytes=100000-", "bytes=150000-"]


def test_killed_process_leaves_nothing_that_counts(hub: Hub) -> None:
    """Nothing has the final name; the next fetch begins again, since the hub's library keeps pieces to itself."""
    hub.stops = [100_000]
    code = """
import os, sys
from huggingface_hub import file_download
from nnunetv2_sam3d.weights import fetch, sources
sources.NAMED["tiny"] = sources.Published(sys.argv[1], "vit_tiny")
file_download.time.sleep = lambda seconds: os._exit(9)  # killed when it would try again
fetch.fetch("tiny")
"""
    assert subprocess.run([sys.executable, "-c", code, REPOSITORY], check=False).returncode == 9
    assert cached("tiny") is None
    assert fetch("tiny").read_bytes() == CONTENT


def test_no_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = refused()
    for words in (REPOSITORY, "http://127.0.0.1:9", "weights fetch tiny --from", "HF_ENDPOINT"):
        assert words in message


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_server_that_refuses(hub: Hub, status: int) -> None:
    hub.status = status
    assert "cannot be fetched" in refused()


def test_repository_without_weights(hub: Hub) -> None:
    hub.files = {"config.json": b"{}"}
    assert "it has none of model.safetensors, pytorch_model.bin" in refused()


def test_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="1,000 bytes are free"):
        fetch("tiny")
    assert hub.ranges() == []


# --- a hub that lies ---


def test_other_content_than_announced(hub: Hub) -> None:
    hub.sent = {"model.safetensors": OTHER}
    assert len(OTHER) == len(CONTENT)
    message = refused()
    assert "instead of" in message and "Nothing was kept" in message
    hub.sent = {}
    assert fetch("tiny").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"<html>log in first</html>", b"", CONTENT[:-100], CONTENT + b"more"])
def test_other_file_than_announced(hub: Hub, content: bytes) -> None:
    hub.sent = {"model.safetensors": content}
    refused()
    hub.sent = {}
    assert fetch("tiny").read_bytes() == CONTENT


def test_file_that_is_no_encoder_of_that_size(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.NAMED, "tiny", sources.Published(REPOSITORY, "vit_b"))
    assert "no encoder of SAM of size vit_b" in refused()
    hub.files = {"model.safetensors": save({"weight": torch.zeros(3)})}
    assert "gave another file" in refused()


# --- local files ---


@pytest.mark.parametrize("name", ["model.safetensors", "medsam_vit_b.pth"])
def test_local_file(hub: Hub, tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    if source.suffix == ".pth":
        torch.save(as_hugging_face(0), source)
    else:
        save_file(as_hugging_face(0), source)
    file = fetch("tiny", source=source)
    assert file.read_bytes() == source.read_bytes() and file == cached("tiny") and hub.asked == []


def test_local_file_that_does_not_fit(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no file" in refused(source=tmp_path / "absent.pth")
    save_file(as_hugging_face(0), tmp_path / "model.safetensors")
    monkeypatch.setitem(sources.NAMED, "tiny", sources.Published(REPOSITORY, "vit_b", "model.safetensors", "0" * 64))
    assert "is damaged: it has SHA-256" in refused(source=tmp_path / "model.safetensors")
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "other.safetensors")
    message = refused(source=tmp_path / "other.safetensors")
    assert "no encoder of SAM of size vit_b" in message and "export nnUNet_sam_checkpoint=" in message


def test_named_weights_that_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="is not fetched yet: nnUNetv2_sam3d weights fetch medsam"):
        find_sam_checkpoint("vit_b", "medsam")


def test_file_of_version_0_1_is_found() -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "sam_vit_b_01ec64.pth").touch()
    assert find_sam_checkpoint("vit_b", None) == cache_folder() / "sam_vit_b_01ec64.pth"
