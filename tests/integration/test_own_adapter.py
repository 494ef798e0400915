"""A fourth adapter and its trainer: one class and one recipe, trained by nnU-Net's own command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from extending import code_blocks

from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint

Workspace = Any  # the class in conftest.py

# What somebody puts into a file in a folder of their own, which nnUNet_extTrainer names.
OWN = code_blocks("python")[0]


def test_one_class_and_one_recipe_are_enough(trained: Workspace, tmp_path: Path) -> None:
    (tmp_path / "own_trainers.py").write_text(OWN)
    variables = {"nnUNet_extTrainer": str(tmp_path)}
    trained.train("SAM3DLinear", 0, variables=variables)
    log = trained.log("SAM3DLinear", 0)
    assert "the file's original adapters were taken into the linear ones" in log
    own = read_checkpoint(trained.fold("SAM3DLinear", 0) / "checkpoint_final.pth")
    start = read_checkpoint(trained.fold("SAM3DFull", 0) / "checkpoint_final.pth")["network_weights"]
    assert own["sam3d"]["network"]["adapter"] == "linear"
    weights = own["network_weights"]
    assert not [name for name in weights if ".adapter.conv." in name]
    frozen = [name for name in weights if name not in own["sam3d"]["trained"]]
    assert frozen and all(torch.equal(weights[name], start[name]) for name in frozen)
    linear = "encoder.blocks.0.adapter.linear1.weight"
    assert linear in own["sam3d"]["trained"] and not torch.equal(weights[linear], start[linear])

    output = trained.run("nnUNetv2_sam3d", "crossval", "-d", trained.number, "-p", trained.plans, "--dry-run", "-f", 0,
                         "--trainers", "Full", "nnUNetTrainer_SAM3DLinear", variables=variables)  # fmt: skip
    finished = [line for line in output.splitlines() if line.startswith("# finished: nnUNetv2_train")]
    assert [name for line in finished for name in ("SAM3DFull", "SAM3DLinear") if name in line] == [
        "SAM3DFull",
        "SAM3DLinear",
    ]
