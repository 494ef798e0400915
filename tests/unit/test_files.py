"""Files are written whole or not at all, and only what a command made is replaced by it."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from nnunetv2_sam3d.files import append_json_line, write_text, write_whole
from nnunetv2_sam3d.own_files import LIST, made_anew


def test_two_writers_at_once(tmp_path: Path) -> None:
    """The second begins and ends while the first one writes; each leaves a whole file."""
    target = tmp_path / "model.pth"

    def first(file) -> None:
        file.write(b"a" * 500)
        file.flush()
        writer = threading.Thread(target=lambda: write_whole(target, lambda other: other.write(b"b" * 1000)))
        writer.start()
        writer.join()
        assert target.read_bytes() == b"b" * 1000
        file.write(b"a" * 500)

    write_whole(target, first)
    assert target.read_bytes() == b"a" * 1000
    assert os.listdir(tmp_path) == ["model.pth"]


def test_what_a_killed_writer_left(tmp_path: Path) -> None:
    old, new, others = (tmp_path / f".{name}.partial" for name in ("a.txt.00ff", "a.txt.11ff", "b.txt.00ff"))
    for file in (old, new, others):
        file.write_text("half")
    for file in (old, others):
        os.utime(file, (time.time() - 2 * 86400,) * 2)
    write_text(tmp_path / "a.txt", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, others.name, "a.txt"]


def test_long_names(tmp_path: Path) -> None:
    write_text(tmp_path / ("ä" * 60 + "x" * 130), "content")
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        append_json_line(tmp_path / "notes.jsonl", {"case": 1})


def test_lines_after_one_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    append_json_line(file, {"n": 1})
    file.write_text(file.read_text() + '{"n": 2, "te')
    append_json_line(file, {"n": 3})
    append_json_line(file, {"n": 4})
    assert file.read_text().splitlines() == ['{"n": 1}', '{"n": 2, "te', '{"n": 3}', '{"n": 4}']


def names_in(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not path.name.startswith(LIST)
    }


def make(folder: Path, *names: str) -> None:
    with made_anew(folder, "report") as new:
        for name in names:
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text("made")


def test_only_own_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("figures/drawing.svg", "main.tex"):
        (tmp_path / name).write_text("mine")
    make(tmp_path, "page.html", "figures/a.svg", "tables/t.tex")
    make(tmp_path, "page.html", "figures/b.svg")
    assert names_in(tmp_path) == {"figures/drawing.svg", "main.tex", "page.html", "figures/b.svg"}
    assert not (tmp_path / "tables").exists()
    with pytest.raises(ValueError, match=r"drawing\.svg.*did not make.*another folder with -o"):
        make(tmp_path, "page.html", "figures/drawing.svg")
    assert (tmp_path / "figures/drawing.svg").read_text() == "mine"
    assert names_in(tmp_path) == {"figures/drawing.svg", "main.tex", "page.html", "figures/b.svg"}


def test_a_failure_leaves_the_earlier_files(tmp_path: Path) -> None:
    make(tmp_path, "page.html")
    with pytest.raises(RuntimeError), made_anew(tmp_path, "report") as new:
        (new / "page.html").write_text("half")
        raise RuntimeError
    assert (tmp_path / "page.html").read_text() == "made"
    assert names_in(tmp_path) == {"page.html"}


def test_a_list_that_names_files_elsewhere(tmp_path: Path) -> None:
    """Nobody gets a file deleted by writing it into the list."""
    (tmp_path / "precious.txt").write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / LIST).write_text(json.dumps({"report": ["../precious.txt", str(tmp_path / "precious.txt"), 3, None]}))
    make(folder, "page.html")
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"report": 3}', "[" * 100_000, "\x00\xff"])
def test_a_damaged_list(content: str, tmp_path: Path) -> None:
    (tmp_path / LIST).write_text(content)
    make(tmp_path, "page.html")
    make(tmp_path, "page.html")
    assert (tmp_path / "page.html").is_file() and "page.html" in (tmp_path / LIST).read_text()
