"""The page in a real browser, and text that would like to be markup."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from results_tree import Tree, write_tree

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.report.tables import Table, csv_text

WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # without a graphics card
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
EVIL = "<img src=x onerror=alert(1)></script><script>document.title='owned'</script>"
LABELS = {"background": 0, EVIL: 1, "tumour $x^2$ & \\input{x} | `b` {{ 7*7 }}": 2, '=HYPERLINK("x")': 3}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a data set with hostile labels and file names."""
    root = tmp_path_factory.mktemp("hostile")
    tree = write_tree(
        root / "nnunet",
        trainers={"nnUNetTrainer_SAM3DFull": 3, "nnUNetTrainer_SAM3DDualPath": 1},
        labels=LABELS,
        case_name="<b onclick=alert(2)>$_{{\"'&{}",
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tree.environment.items():
            patch.setenv(name, value)
        options = ["-d", "990", "--trainers", "Full", "DualPath", "-o", str(root / "out"), "-np", "1"]
        assert main(["report", *options, "--focus", list(LABELS)[2]]) == 0
    return root / "out" / "report.html"


class Elements(HTMLParser):
    """Collects tags with attributes, and what the page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


def test_hostile_text_stays_text(page: Path) -> None:
    text = page.read_text()
    elements = Elements()
    elements.feed(text)
    assert "b" not in {tag for tag, _ in elements.tags}
    assert not any(name.startswith("on") or name == "style" for _, found in elements.tags for name in found)
    assert [found.get("type") for tag, found in elements.tags if tag == "script"] == ["application/json"] * 3 + [None]
    assert all((found["src"] or "").startswith("data:image/") for tag, found in elements.tags if tag == "img")
    assert "{{ 7*7 }}" in text  # not taken for a template
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_nothing_is_loaded(page: Path) -> None:
    """The policy forbids it, and the page does not ask for anything."""
    text = page.read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src &#39;none&#39;; img-src data:; style-src &#39;sha256-")
    assert "unsafe" not in policy and "http" not in policy
    elements = Elements()
    elements.feed(text)
    addresses = [found[name] for _, found in elements.tags for name in ("src", "href", "action") if name in found]
    assert addresses and all((address or "").startswith(("data:image/", "#")) for address in addresses)


def test_hostile_text_in_the_other_files(page: Path) -> None:
    folder = page.parent
    cases = (folder / "cases.csv").read_text()
    assert ",'=HYPERLINK(" in cases.replace('"', "") and not re.search(r'(^|,)"?=', cases)
    latex = (folder / "tables" / "pooled_automatic.tex").read_text()
    assert r"\textbackslash{}input\{x\}" in latex and r"\input" not in latex and r"\$x\textasciicircum{}2\$" in latex
    markdown = (folder / "tables" / "pooled_automatic.md").read_text()
    assert "<img" not in markdown and r"\| \`b\`" in markdown
    for figure in (folder / "figures").glob("*.svg"):
        assert "<script" not in figure.read_text() and "onerror" not in figure.read_text()


def test_escapes() -> None:
    cells = pd.DataFrame([["x|y", "<1"], ["[z]\n\n| w", "-1"]], columns=["a_b", "c"])
    table = Table("t", "50 % & more", cells, ("a_b",))
    assert table.markdown().splitlines()[-1] == r"| \[z\]  \| w |    -1 |"
    assert r"x$|$y & $<$1 \\" in table.latex() and r"50 \% \& more" in table.latex()
    assert "\\addlinespace\n{[z]" in table.latex()  # no argument of the commands before it


def test_csv() -> None:
    """No formulas; whole numbers beside undefined ones stay whole."""
    texts = ["=1", "-a", "@x", "\t1", "a=1", ""]
    for hidden, safe in (
        ("'=1+1;=2", "'=1+1;'=2"),
        ("a; -1", "a;' -1"),
        ("＝1", "'＝1"),
        ("a\t=1", "a\t'=1"),
        ("a\n@b", "a\n'@b"),
    ):
        assert csv_text(pd.DataFrame({"text": [hidden]})).split("\n", 1)[1].strip('"\n') == safe
    found = csv_text(pd.DataFrame({"text": texts, "count": [None, 2, 3, 4, 5, 6], "value": [-1 / 3] * 6}))
    assert found.splitlines()[:2] == ["text,count,value", "'=1,,-0.3333333333"]
    assert [line.split(",")[0] for line in found.splitlines()[2:]] == ["'-a", "'@x", "'\t1", "a=1", ""]
    assert [line.split(",")[1] for line in found.splitlines()[2:]] == list("23456")


@pytest.fixture(scope="module")
def browser() -> str:
    """Chromium's command."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")
    return found


def browse(browser: str, page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Opens the page without a display and without network.

    On a busy machine a headless Chromium sometimes hangs, whatever the page is, so it is started up to three times;
    and containers' small `/dev/shm` cannot hold a long page's picture, so it does not use that.
    """
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [
        browser, "--headless", *sandbox, "--no-first-run", "--disable-background-networking", "--disable-sync",
        "--disable-component-update", "--disable-quic", "--disable-dev-shm-usage", "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000",
    ]  # fmt: skip
    for attempt in range(3):
        own = f"--user-data-dir={profile}{attempt}"
        with subprocess.Popen(
            [*command, own, *options, page.as_uri()],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                stdout, stderr = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                continue
        assert process.returncode == 0, stderr
        return subprocess.CompletedProcess(process.args, 0, stdout, stderr)
    pytest.fail(f"{browser} hung three times on {page.name}")


def test_a_browser_reads_the_page(browser: str, page: Path, tmp_path: Path) -> None:
    found = browse(browser, page, tmp_path / "profile", "--dump-dom", "--window-size=1200,900", *WEBGL)
    assert "<title>Dataset990_Phantoms: Full, DualPath</title>" in found.stdout
    assert "Content Security Policy" not in found.stderr and "Uncaught" not in found.stderr
    states = re.findall(r'class="viewer"[^>]*data-painted="(\d+)"[^>]*data-state="drawn"', found.stdout)
    assert len(states) == 3, re.findall(r'class="viewer"[^>]*>', found.stdout)
    assert min(map(int, states)) > 5000  # pixels that are not the ground
    assert found.stdout.count("<tr") > 30


def test_a_screenshot_shows_tables_and_figures(browser: str, page: Path, tmp_path: Path) -> None:
    """The surfaces' pixels are counted above; drawing them so large in software takes a busy machine too long."""
    browse(
        browser,
        page,
        tmp_path / "profile",
        f"--screenshot={tmp_path / 'page.png'}",
        "--window-size=1100,11000",
        "--disable-gpu",
    )
    picture = imread(tmp_path / "page.png")[..., :3]
    assert picture.shape[:2] == (11000, 1100)
    ink = (picture < 0.5).all(-1).any(1)
    assert ink[:3000].mean() > 0.3  # text and tables
    for name in ("#0072B2", "#D55E00", "#E69F00", "#56B4E9"):  # models and errors are drawn in their colours
        colour = [int(name[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        assert (np.abs(picture - colour).max(-1) < 0.12).sum() > 200, name


def test_a_policy_that_is_broken_is_noticed(browser: str, page: Path, tmp_path: Path) -> None:
    """The check above can fail: with one more script, the browser complains and does not run it."""
    changed = tmp_path / "changed.html"
    changed.write_text(page.read_text().replace("</body>", "<script>document.title = 'owned'</script></body>"))
    found = browse(browser, changed, tmp_path / "profile", "--dump-dom")
    assert "Content Security Policy" in found.stderr
    assert "<title>owned" not in found.stdout


def test_without_any_tumour_there_is_nothing_to_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree: Tree = write_tree(
        tmp_path / "nnunet", trainers={"nnUNetTrainer": 2}, labels={"background": 0, "a": [1, 2, 3], "lesion": 4}
    )
    for name, value in tree.environment.items():
        monkeypatch.setenv(name, value)
    shutil.rmtree(tree.raw)  # only the preprocessed data are there
    options = ["-d", "990", "--trainers", "nnUNetTrainer", "-o", str(tmp_path / "out"), "-np", "1"]
    assert main(["report", *options]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "No case has lesion in its annotation" in text
    assert "script-src &#39;none&#39;" in text
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["differences"] == []
