"""What README and docs show exists: links lead somewhere, and shown commands are commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunetv2_sam3d import cli
from nnunetv2_sam3d.trainers.names import SHORT_NAMES

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ENDS_COMMAND = {"&&", ";", "|", ">", "2>", "#"}


def anchors(page: Path) -> set[str]:
    """The headings' names, as GitHub makes them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.add(plain if plain not in found else f"{plain}-1")
    return found


def code_lines(text: str) -> Iterator[str]:
    """Lines of indented and fenced code, with continued ones joined."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def commands() -> list[tuple[str, list[str]]]:
    """Every command of ours with its page, as lists of arguments."""
    found = []
    for page in PAGES:
        for line in code_lines(page.read_text()):
            try:
                words = shlex.split(line.replace("&&", " && ").replace(";", " ; "), comments=True)
            except ValueError:
                continue  # prose or a program
            starts = [index for index, word in enumerate(words) if Path(word).name == "nnUNetv2_sam3d"]
            for start in starts:
                ends = [index for index, word in enumerate(words) if index > start and word in ENDS_COMMAND]
                found.append((page.name, words[start + 1 : min(ends, default=len(words))]))
    return found


def test_there_are_pages_and_commands() -> None:
    assert len(PAGES) > 10
    assert len(commands()) > 60


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = (PROJECT / "docs" / "index.md").read_text()
    for page in PROJECT.glob("docs/*.md"):
        assert page.name == "index.md" or f"({page.name}" in index, page.name


@pytest.mark.parametrize(("page", "arguments"), commands(), ids=str)
def test_shown_commands_are_understood(page: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        cli.build_parser().parse_args(arguments)
    except SystemExit as end:
        assert end.code == 0, f"{page}: {' '.join(arguments)}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_trainers_exist(page: Path) -> None:
    shown = set(re.findall(r"nnUNetTrainer_SAM3D([A-Za-z]+)", page.read_text()))
    examples = {"Linear"} if page.name == "extending.md" else set()  # what that page adds
    assert shown - examples <= set(SHORT_NAMES), page.name
