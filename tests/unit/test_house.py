"""The plan of the package: imports go down, no two rooms share a name, and a command loads no more than it needs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from nnunetv2_sam3d import __file__ as package

PACKAGE = Path(package).parent
PROJECT = PACKAGE.parent


def test_imports_go_down() -> None:
    """The contracts of pyproject.toml, ``TYPE_CHECKING`` included."""
    pytest.importorskip("importlinter")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_no_two_rooms_share_a_name() -> None:
    """But for ``commands``, whose modules are called like the commands."""
    modules = [path for path in PACKAGE.rglob("*.py") if path.stem != "__init__" and path.parent.name != "commands"]
    names = Counter(path.stem for path in modules) + Counter(path.name for path in PACKAGE.iterdir() if path.is_dir())
    assert [name for name, count in names.items() if count > 1] == []


def test_files_are_short() -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > 450} == {}


def modules_of(code: str) -> set[str]:
    """Modules that a fresh process has loaded after some code."""
    code = f"import contextlib, io, sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines())


def test_help_loads_neither_pytorch_nor_numpy() -> None:
    loaded = modules_of(
        "from nnunetv2_sam3d.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])"
    )
    assert "nnunetv2_sam3d.commands.plan" in loaded
    assert loaded & {"torch", "numpy", "scipy", "pandas", "matplotlib", "nnunetv2", "huggingface_hub"} == set()
    assert len(loaded) < 400


def test_trainers_load_little_more_than_nnunets_own() -> None:
    stock = modules_of("from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer")
    ours = modules_of("import nnunetv2_sam3d.trainers.variants")
    assert len(ours) <= 1.2 * len(stock)
    rooms = {name.split(".")[1] for name in ours if name.startswith("nnunetv2_sam3d.")}
    assert (
        rooms & {"commands", "experiment", "report", "benchmark", "demo", "evaluation", "results", "planning"} == set()
    )
