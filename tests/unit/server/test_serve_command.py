"""What ``nnUNetv2_sam3d serve`` refuses before it reads a model, and how it says which library is absent."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from nnunetv2_sam3d.cli import main


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--api-key KEY"),
        (["--host", "192.0.2.1"], "--api-key KEY"),
        (["--axes", "xyz"], "letters k, j and i"),
        (["--flip", "kk"], "letters k, j and i"),
        (["--port", "99999"], "port 99999"),
        (["--host", "192.0.2.1", "--api-key", "secret-key"], "cannot listen on 192.0.2.1"),
        (["--target", "liver"], "there is no target 'liver'"),
        (["-f", "7"], "fold 7 is not trained"),
        (["--sessions", "0"], "must be positive"),
    ],
)
def test_refusals(
    options: list[str], words: str, served_model: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("NN_INTERACTIVE_API_KEY", raising=False)
    assert main(["serve", "-m", str(served_model), "--port", "0", *options]) == 1
    shown = capsys.readouterr()
    assert words in shown.err and "secret-key" not in shown.err + shown.out


def test_a_port_that_is_taken(served_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "-m", str(served_model), "--port", str(port)]) == 1
    assert f"port {port}" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["fastapi", "uvicorn", "blosc2"])
def test_an_absent_library(
    library: str, served_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["serve", "-m", str(served_model)]) == 1
    assert f"{library} is not installed: pip install fastapi uvicorn blosc2" in capsys.readouterr().err
