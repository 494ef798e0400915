"""The adapters' paths in a real training, and looked at afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint

Workspace = Any  # the class in conftest.py


def test_paths_are_logged_each_epoch_and_shown_by_the_command(trained: Workspace, tmp_path: Path) -> None:
    fold = trained.fold("SAM3DDualPath", 0)
    logged = read_checkpoint(fold / "checkpoint_final.pth")["logging"]["adapter_paths"]
    assert [len(blocks) for blocks in logged] == [4, 4]
    assert trained.log("SAM3DDualPath", 0).count("Adapter of block 0: gate ") == 2
    assert (fold / "progress.png").is_file()
    printed = trained.run(
        "nnUNetv2_sam3d", "adapters", "-d", trained.number, "-p", trained.plans, "--device", "cpu", "-f", 0,
        "-o", tmp_path,
    )  # fmt: skip
    assert "gate, epoch 0" in printed and "gate, epoch 1" in printed
    result = json.loads((tmp_path / "fold_0" / "adapters.json").read_text())
    assert result["logged"]["last"] == {"epoch": 1, "blocks": logged[1]}
    assert result["cases"] == ["case_0"]
    assert (tmp_path / "fold_0" / "adapters" / "case_0.png").is_file()
    assert "do not have two paths" in trained.fails(
        "nnUNetv2_sam3d", "adapters", trained.model("SAM3DFull"), "--device", "cpu"
    )
