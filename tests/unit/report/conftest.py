"""Results trees for the report's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from results_tree import Tree, write_tree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A results tree that a test may change; nnU-Net's variables point to it."""
    made = write_tree(tmp_path / "nnunet")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made
