"""What cannot work is refused by nnU-Net's own commands before time is spent, and earlier results stay."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

Workspace = Any  # the class in conftest.py
BothAtOnce = Callable[[list[Callable[[], Any]]], list[Any]]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_weights_that_cannot_be_used(
    trained: Workspace, users_trainer: Path, tmp_path: Path, both_at_once: BothAtOnce
) -> None:
    torch.save({"network_weights": _Bomb(tmp_path / "it_ran")}, tmp_path / "evil.pth")
    stock = replace(trained, plans="nnUNetPlans").fold("Users", 0) / "checkpoint_final.pth"
    evil, other, without = both_at_once([
        lambda: trained.fails(*trained.training("SAM3DFull", 3, "-pretrained_weights", tmp_path / "evil.pth")),
        lambda: trained.fails(*trained.training("SAM3DFull", 3, "-pretrained_weights", stock)),
        lambda: trained.fails(*trained.training("SAM3DDualPath", 3)),  # fold 0 has a finished Full, fold 3 has not
    ])  # fmt: skip
    assert not (tmp_path / "it_ran").exists()
    assert "evil.pth" in evil and "could run code" in evil
    assert "nnUNetTrainer_Users" in other and "another network" in other
    assert "Starting from the finished" not in without
    for trainer in ("SAM3DOriginal", "SAM3DFull"):
        assert f"nnUNetv2_train {trained.name} 3d_fullres 3 -tr nnUNetTrainer_{trainer} -p {trained.plans}" in without
    for output in (evil, other, without):
        assert "WeightsError" in output
        assert "Epoch 0" not in output
    assert not list(trained.fold("SAM3DDualPath", 3).glob("*.pth"))


def test_plans_that_cannot_be_used(planned: Workspace, both_at_once: BothAtOnce) -> None:
    def cascade(configurations: dict[str, Any]) -> None:
        configurations["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}

    cascaded = planned.derive_copy("Cascade", cascade)
    misspelt = planned.derive_copy("Misspelt", lambda content: content["3d_fullres"]["sam3d"].update(epohcs=3))
    small = planned.derive_copy("Small", lambda content: content["3d_fullres"].update(patch_size=[4, 4, 4]))
    outputs = both_at_once([
        lambda: planned.fails(*planned.training("SAM3DFull", 0, configuration="2d")),
        lambda: cascaded.fails(*cascaded.training("SAM3DFull", 0, configuration="3d_cascade_fullres")),
        lambda: misspelt.fails(*misspelt.training("SAM3DFull", 0)),
        lambda: small.fails(*small.training("SAM3DFull", 0)),
    ])  # fmt: skip
    for output, words in zip(
        outputs,
        (
            "NotImplementedError: 2d is two-dimensional; the SAM3D trainers are three-dimensional. Use 3d_fullres",
            "NotImplementedError: 3d_cascade_fullres is a cascade stage; the SAM3D trainers take no segmentation",
            "ValueError: the plans hold unknown settings ['epohcs']",
            "ValueError: a patch of [4, 4, 4] voxels at token stride [4, 4, 4] is a single token",
        ),
        strict=True,
    ):
        assert words in output
    for pattern in ("*__2d", "*cascade*", "*Misspelt*", "*Small*"):
        assert not list(planned.results.glob(pattern))


def test_plan_refuses_what_cannot_work(planned: Workspace, both_at_once: BothAtOnce) -> None:
    plan = ("nnUNetv2_sam3d", "plan", "-d", planned.number, "--variant", "vit_tiny", "-o", "Refused")
    patch, spacing = both_at_once([
        lambda: planned.fails(*plan, "--patch-size", 2, 3, 4),
        lambda: planned.fails(*plan, "--spacing", 1, 0, 1),
    ])  # fmt: skip
    assert "too few to normalise over" in patch
    assert "spacing must be three lengths" in spacing
    assert "Traceback" not in patch + spacing
    assert not (planned.preprocessed / "Refused.json").exists()


def test_data_that_cannot_be_used(trained: Workspace, both_at_once: BothAtOnce) -> None:
    more_labels = trained.copy(994)
    dataset = json.loads((more_labels.preprocessed / "dataset.json").read_text())
    dataset["labels"]["third"] = 3
    (more_labels.preprocessed / "dataset.json").write_text(json.dumps(dataset))
    more_labels.fold("SAM3DFull", 0).mkdir(parents=True)
    shutil.copy(
        trained.fold("SAM3DFull", 0) / "checkpoint_final.pth",
        more_labels.fold("SAM3DFull", 0) / "checkpoint_latest.pth",
    )
    empty = trained.copy(995)
    for file in (empty.preprocessed / "nnUNetPlans_3d_fullres").glob("*.pkl"):  # as preprocessing writes it then
        properties = pickle.loads(file.read_bytes())
        properties["class_locations"] = {label: [] for label in properties["class_locations"]}
        file.write_bytes(pickle.dumps(properties))
    classes, foreground = both_at_once([
        lambda: more_labels.fails(*more_labels.training("SAM3DFull", 0, "--c")),
        lambda: empty.fails(*empty.training("SAM3DFull", 0)),
    ])  # fmt: skip
    assert "num_classes is 3 in the file and 4 here" in classes
    assert "none of the 4 training cases of fold 0" in foreground and "foreground voxel" in foreground
    for output in (classes, foreground):
        assert "Epoch" not in output


def test_full_disk_leaves_the_earlier_checkpoint(trained: Workspace) -> None:
    fold = trained.fold("SAM3DFull", 3)
    fold.mkdir(parents=True, exist_ok=True)
    earlier = fold / "checkpoint_latest.pth"
    shutil.copy(trained.fold("SAM3DFull", 0) / "checkpoint_final.pth", earlier)
    before = sha256(earlier)
    limit = earlier.stat().st_size // 2  # bytes that a file may have

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    output = trained.fails(*trained.training("SAM3DFull", 3), preexec_fn=limited)
    assert f"OSError: {earlier} could not be written" in output
    assert "The earlier file of that name is untouched. Free disk space" in output
    assert sha256(earlier) == before
    assert [path.name for path in fold.iterdir() if "partial" in path.name or path.suffix == ".pth"] == [earlier.name]
