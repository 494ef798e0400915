"""Fetching SAM's weights from servers on this machine that behave as bad servers and lines do."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from bad_server import CONTENT, HALF, PUBLISHED, Server, hang, serve, servers, status

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.weights import WeightsError
from nnunetv2_sam3d.weights import fetch as sources
from nnunetv2_sam3d.weights.fetch import ATTEMPTS, BLOCK, ORIGIN, cache_folder, fetch, find_sam_checkpoint


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """A function that starts a server with the given behaviours."""
    with servers() as start:
        yield start


@pytest.fixture(autouse=True)
def small_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few MB stand for SAM's file, and no proxy of this machine stands between."""
    monkeypatch.setitem(sources.SAM_FILES, "vit_b", PUBLISHED)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("nnUNet_sam_mirror", raising=False)


def get(server: Server, log: list[str] | None = None, **options: Any) -> Path:
    lines = [] if log is None else log
    return fetch("vit_b", **({"url": server.url, "log": lines.append, "timeout_s": 5, "pause_s": 0} | options))


def refused(server: Server, **options: Any) -> str:
    """The message of a fetch that fails; nothing has the final name then."""
    with pytest.raises(WeightsError) as caught:
        get(server, **options)
    assert not final().exists()
    return str(caught.value)


def final() -> Path:
    return cache_folder() / PUBLISHED.name


def left() -> list[str]:
    """What lies in the cache, but for the lock."""
    return sorted(path.name for path in cache_folder().iterdir() if path.suffix != ".lock")


def says_what_to_do(message: str) -> bool:
    """Whether a message names the file, its size and SHA-256, its source, its place and the command."""
    return all(
        words in message
        for words in (
            PUBLISHED.name, f"{PUBLISHED.size:,} bytes", PUBLISHED.sha256, ORIGIN, str(final()),
            "nnUNetv2_sam3d weights fetch vit_b --from",
        )
    )  # fmt: skip


# --- good servers ---


def test_fetch(start: Callable[..., Server]) -> None:
    server, log = start(serve()), list[str]()
    assert get(server, log) == final() == find_sam_checkpoint("vit_b", None)
    assert final().read_bytes() == CONTENT
    assert left() == [PUBLISHED.name]
    assert server.paths == [f"/mirror/{PUBLISHED.name}"]
    assert "SHA-256" in log[-1] and PUBLISHED.sha256 in log[-1]
    get(server, log)
    assert "is there and whole" in log[-1]
    assert len(server.paths) == 1


def test_address_of_the_file_itself(start: Callable[..., Server]) -> None:
    server = start(serve())
    get(server, url=server.url + "other.pth?key=1")
    assert server.paths == ["/mirror/other.pth?key=1"]


def test_mirror_of_the_environment(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(serve())
    monkeypatch.setenv("nnUNet_sam_mirror", server.url)
    assert get(server, url=None) == final()


def test_content_sent_in_pieces_without_a_length(start: Callable[..., Server]) -> None:
    get(start(serve(Content_Length="")))
    assert final().read_bytes() == CONTENT


def test_damaged_file_in_the_cache_is_replaced(start: Callable[..., Server]) -> None:
    cache_folder().mkdir(parents=True)
    for damaged, words in ((CONTENT[:100], "has 100 bytes"), (b"x" + CONTENT[1:], "has SHA-256")):
        final().write_bytes(damaged)
        log = list[str]()
        get(start(serve()), log)
        assert words in log[0] and "replaced" in log[0]
        assert final().read_bytes() == CONTENT


def test_damaged_file_stays_when_there_is_no_better_one(start: Callable[..., Server]) -> None:
    cache_folder().mkdir(parents=True)
    final().write_bytes(b"mine")
    with pytest.raises(WeightsError, match="404"):
        get(start(status(404)))
    assert final().read_bytes() == b"mine"


# --- broken transfers ---


@pytest.mark.parametrize("length", [True, False])
def test_line_that_breaks_is_taken_up_again(start: Callable[..., Server], length: bool) -> None:
    server, log = start(serve(stop_after=HALF, **{} if length else {"Content_Length": ""}), serve()), list[str]()
    get(server, log)
    assert server.ranges == [None, f"bytes={HALF}-"]
    assert any("broke off" in line for line in log)
    assert final().read_bytes() == CONTENT


def test_line_that_always_breaks(start: Callable[..., Server]) -> None:
    server = start(serve(stop_after=BLOCK))
    message = refused(server)
    assert "broke off" in message and says_what_to_do(message)
    assert len(server.ranges) == ATTEMPTS
    assert server.ranges[1:] == [f"bytes={BLOCK * n}-" for n in range(1, ATTEMPTS)]
    assert f"{BLOCK * ATTEMPTS:,} bytes are kept" in message
    later = start(serve())  # another mirror, another day
    get(later)
    assert later.ranges == [f"bytes={BLOCK * ATTEMPTS}-"]
    assert final().read_bytes() == CONTENT
    assert left() == [PUBLISHED.name]


def test_server_that_ignores_ranges(start: Callable[..., Server]) -> None:
    server = start(serve(stop_after=HALF), serve(ranges=False))
    get(server)
    assert server.ranges == [None, f"bytes={HALF}-"]
    assert final().read_bytes() == CONTENT


def test_server_that_sends_another_range_than_asked(start: Callable[..., Server]) -> None:
    wrong = serve(Content_Range=f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}")
    server, log = start(serve(stop_after=HALF), wrong, serve()), list[str]()
    get(server, log)
    assert server.ranges == [None, f"bytes={HALF}-", None]
    assert any("the server sends 'bytes 7-" in line for line in log)
    assert final().read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1000, len(CONTENT), len(CONTENT) + 5])
def test_leftovers_of_another_file_are_thrown_away(start: Callable[..., Server], size: int) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / f".{PUBLISHED.name}.partial").write_bytes(b"?" * size)
    get(start(serve()))
    assert final().read_bytes() == CONTENT
    assert left() == [PUBLISHED.name]


@pytest.mark.parametrize("code", [500, 503, 429])
def test_server_that_is_busy_for_a_while(start: Callable[..., Server], code: int) -> None:
    server = start(status(code), status(code), serve())
    get(server)
    assert len(server.ranges) == 3


def test_server_that_is_busy_for_long(start: Callable[..., Server]) -> None:
    server = start(status(503))
    message = refused(server)
    assert "503" in message and says_what_to_do(message)
    assert len(server.ranges) == ATTEMPTS


@pytest.mark.parametrize("after", [0, HALF])
def test_server_that_falls_silent(start: Callable[..., Server], after: int) -> None:
    server, log = start(hang(2, after=after), serve()), list[str]()
    get(server, log, timeout_s=0.3)
    assert any("the server is silent" in line for line in log)
    assert final().read_bytes() == CONTENT


# --- wrong content ---


@pytest.mark.parametrize("code", [404, 403, 416])
def test_server_without_the_file(start: Callable[..., Server], code: int) -> None:
    server = start(status(code))
    message = refused(server)
    assert str(code) in message and says_what_to_do(message)
    assert len(server.ranges) == 1
    assert left() == []


def test_server_with_other_content_of_the_same_size(start: Callable[..., Server]) -> None:
    server = start(serve(CONTENT[::-1]))
    message = refused(server)
    assert "gave another file" in message and says_what_to_do(message)
    assert hashlib.sha256(CONTENT[::-1]).hexdigest() in message
    assert left() == []


def test_server_with_other_content_that_also_breaks_off(start: Callable[..., Server]) -> None:
    server = start(serve(CONTENT[::-1], stop_after=HALF), serve(CONTENT[::-1]))
    assert "gave another file" in refused(server)
    assert server.ranges == [None, f"bytes={HALF}-", None]  # once more from the beginning, not for ever
    assert left() == []


@pytest.mark.parametrize("content", [b"<html>please sign in</html>", CONTENT + b"more"])
def test_server_that_announces_another_size(start: Callable[..., Server], content: bytes) -> None:
    message = refused(start(serve(content, Content_Type="text/html")))
    assert f"{len(content):,} bytes instead of {len(CONTENT):,} (text/html)" in message and says_what_to_do(message)
    assert left() == []


def test_another_size_does_not_cost_what_is_there(start: Callable[..., Server]) -> None:
    refused(start(serve(stop_after=BLOCK)))
    assert "bytes are kept" in refused(start(serve(b"<html>please sign in</html>", ranges=False)))
    assert left() == [f".{PUBLISHED.name}.partial"]


def test_server_that_lies_about_the_length(start: Callable[..., Server]) -> None:
    """It announces the right size and sends less, or nothing about the size and sends more."""
    assert "broke off" in refused(start(serve(CONTENT[:HALF], ranges=False, Content_Length=str(len(CONTENT)))))
    endless = serve(CONTENT * 3, ranges=False, Content_Length="")
    message = refused(start(endless))
    assert "gave another file" in message
    assert left() == []


# --- no server ---


def test_no_server() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(WeightsError) as caught:
        fetch("vit_b", url=f"http://{address}/", pause_s=0)
    message = str(caught.value)
    assert f"there is no connection to {address}" in message and says_what_to_do(message)
    assert left() == []


@pytest.mark.parametrize("url", ["sam.pth", "ftp://host/", "file:///sam.pth", "http:///"])
def test_address_that_is_none(url: str) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch("vit_b", url=url, pause_s=0)
    assert says_what_to_do(str(caught.value))


# --- a local file ---


def test_local_file(tmp_path: Path) -> None:
    source = tmp_path / "download (1).pth"
    source.write_bytes(CONTENT)
    assert fetch("vit_b", source=source) == final()
    assert final().read_bytes() == CONTENT
    assert source.exists()
    assert left() == [PUBLISHED.name]


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], b"x" + CONTENT[1:]])
def test_local_file_that_is_another(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sam.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="sam.pth is not the published sam_vit_b_01ec64.pth: it has"):
        fetch("vit_b", source=tmp_path / "sam.pth")
    assert left() == []
    with pytest.raises(WeightsError, match="there is no file .*none.pth"):
        fetch("vit_b", source=tmp_path / "none.pth")


# --- disk and processes ---


@pytest.mark.parametrize("local", [True, False])
def test_full_disk(start: Callable[..., Server], tmp_path: Path, local: bool) -> None:
    """A limit on the size of files stops the writing half-way."""
    resource = pytest.importorskip("resource")
    server = start(serve())
    (tmp_path / "sam.pth").write_bytes(CONTENT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
    try:
        with pytest.raises(OSError, match="could not be written: .*Free disk space") as caught:
            get(server, source=tmp_path / "sam.pth" if local else None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(final()) in str(caught.value)
    assert not final().exists()
    get(server)
    assert final().read_bytes() == CONTENT
    if not local:
        assert server.ranges[1] is not None  # what the disk had room for was not fetched again


def test_disk_without_room_is_noticed_before_the_transfer(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of that size cannot be had in a test; what the system would say of it is given instead."""
    server = start(serve())
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="1,000 bytes are free"):
        get(server)
    assert server.ranges == []


def test_cache_that_cannot_be_made(start: Callable[..., Server], tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="XDG_CACHE_HOME"):
        get(start(serve()))


FETCHER = """
import sys
from nnunetv2_sam3d.weights import sources
from nnunetv2_sam3d.weights.fetch import fetch
sources.SAM_FILES["vit_b"] = sources.Published(sys.argv[2], int(sys.argv[3]), sys.argv[4])
fetch("vit_b", url=sys.argv[1], log=lambda line: print(line, flush=True), pause_s=0)
"""


def test_processes_at_once_transfer_the_file_once(start: Callable[..., Server]) -> None:
    def slowly(request: BaseHTTPRequestHandler) -> None:
        time.sleep(3)  # until the other process stands at the lock
        serve()(request)

    server = start(slowly)
    command = [sys.executable, "-c", FETCHER, server.url, PUBLISHED.name, str(PUBLISHED.size), PUBLISHED.sha256]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(server.ranges) == 1
    assert final().read_bytes() == CONTENT
    assert sum("is there and whole" in output for output in outputs) == 1


def test_killed_process_leaves_what_the_next_one_takes_up(start: Callable[..., Server]) -> None:
    server = start(hang(60, after=HALF), serve())
    command = [sys.executable, "-c", FETCHER, server.url, PUBLISHED.name, str(PUBLISHED.size), PUBLISHED.sha256]
    partial = cache_folder() / f".{PUBLISHED.name}.partial"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not final().exists()
    kept = partial.stat().st_size
    assert 0 < kept <= HALF
    get(server)
    assert server.ranges[-1] == f"bytes={kept}-"
    assert final().read_bytes() == CONTENT


# --- the command ---


def test_command(start: Callable[..., Server], capsys: pytest.CaptureFixture[str]) -> None:
    server = start(serve())
    assert main(["weights", "fetch", "vit_b", "--url", server.url]) == 0
    assert f"fetching {server.url}{PUBLISHED.name}" in capsys.readouterr().out
    assert main(["weights", "fetch", "vit_tiny"]) == 1
    assert "only for vit_b, vit_l, vit_h" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["weights", "fetch", "vit_b", "--url", "http://a", "--from", "b"])


def test_progress_is_shown_on_a_terminal(
    start: Callable[..., Server], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    get(start(serve()))
    assert re.search(r"sam_vit_b_01ec64.pth: 100%.*4.10M/4.10M", capsys.readouterr().err)
    final().unlink()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    get(start(serve()))
    assert capsys.readouterr().err == ""
