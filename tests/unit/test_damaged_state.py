"""Damaged state is named: the table of files times damages times commands.

Every command gets a copy of the same tree with one damaged file. It ends with a short message that names the file and
what to do, or it makes anew what the file held. Nothing else changes, and nothing of other cases.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from state_kit import FOLDS, MODEL, NAME, State, binary_damages, text_damages, write_state

import nnunetv2_sam3d.report.build as build
from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint, write_checkpoint

PREPROCESSED, RAW, RESULTS = f"preprocessed/{NAME}", f"raw/{NAME}", f"results/{NAME}"
FOLD = f"{RESULTS}/{MODEL}/fold_0"
DATA = f"{PREPROCESSED}/nnUNetPlans_3d_fullres"
STEPS = f"{RESULTS}/crossval__nnUNetSAM3DPlans__3d_fullres__fold_0/steps.json"
FEW = ("half", "deep", "retyped")  # for commands that go on and take their time
SLOW = ("adapters", "report", "serve")  # not run with damage that nobody can tell, unlike the others
LONGEST_MESSAGE = 900  # letters, paths of the test's folder left out
# What a command may write over; of the cases' files only those of the damaged case.
OUTPUTS = {
    "evaluate": f"{FOLD}/clicks", "adapters": f"{FOLD}/adapters", "predict": "predicted", "report": "report",
    "split": f"{PREPROCESSED}/splits_final.json",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A file of the table.

    Attributes:
        file: in the tree.
        named: commands that end and name it.
        anew: commands that go on without it or make it anew, by the reason.
        remade: file of the case that has to be absent, so that the command looks at this one.
        called: what messages call the file, where that is not its name.
        flips: whether single bits are turned as well; not where a command that succeeds takes long.
    """

    file: str
    named: str = ""
    anew: tuple[str, str] = ("", "")
    remade: str = ""
    called: str = ""
    flips: bool = True


RECORD = f"{FOLD}/clicks/cases/case_a.json"
TABLE = [
    Row(f"{RESULTS}/{MODEL}/plans.json", "evaluate adapters predict serve report crossval"),
    Row(f"{RESULTS}/{MODEL}/dataset.json", "evaluate adapters predict serve"),
    Row(f"{PREPROCESSED}/nnUNetPlans.json", "plan"),
    Row(f"{PREPROCESSED}/nnUNetSAM3DPlans.json", "crossval"),
    Row(f"{PREPROCESSED}/dataset.json", "plan crossval report"),
    Row(f"{PREPROCESSED}/splits_final.json", "crossval report evaluate", ("split", "--force replaces it")),
    Row(f"{RAW}/dataset.json", "split"),
    Row("split.pkl", "split"),
    Row(f"{FOLD}/checkpoint_final.pth", "evaluate adapters predict serve report inspect export",
        ("crossval", "a damaged checkpoint is set aside when its training starts")),
    Row("base.pth", "merge"),
    Row("adapter.safetensors", "merge"),
    Row(f"{FOLD}/validation/summary.json", anew=("crossval", "the fold is validated again")),
    Row(f"{FOLD}/validation/case_a.nii.gz", "report"),
    Row(f"{FOLD}/debug.json", "report"),
    Row(f"{FOLD}/training_log_2026_1_1_10_00_00.txt", anew=("report crossval", "what it told is unknown")),
    Row(f"{FOLD}/adapters.json", "report", ("adapters", "it is written by the command")),
    Row(STEPS, "report crossval"),
    Row(f"{FOLD}/clicks/run.json", "evaluate"),
    Row(RECORD, anew=("evaluate", "the case is evaluated again")),
    Row(f"{FOLD}/clicks/summary_with_clicks.json", "report", ("evaluate", "it is made of the cases' files")),
    Row(f"{PREPROCESSED}/gt_segmentations/case_a.nii.gz", "evaluate report", remade=RECORD),
    Row(f"{DATA}/case_a.b2nd", "evaluate adapters", remade=RECORD, called="case_a", flips=False),
    Row(f"{DATA}/case_a_seg.b2nd", "evaluate adapters", remade=RECORD, called="case_a", flips=False),
    Row(f"{DATA}/case_a.pkl", "evaluate adapters", remade=RECORD, flips=False),
    Row(f"{DATA}/case_c.b2nd", "crossval", called="case_c"),
    Row(f"{DATA}/case_c.pkl", "crossval"),
    Row("images/case_a_0000.nii.gz", "predict", remade="predicted/case_a.nii.gz"),
    Row("placed/case_a.json", "predict"),
    Row("predicted/predict_sam3d.jsonl", "predict"),
    Row("predicted/case_a.nii.gz", anew=("predict", "the image is predicted again")),
    Row("report/.nnUNetv2_sam3d.json", "report"),
    Row("report/measured.jsonl", anew=("report", "the cases are measured again")),
    Row("times.json", "benchmark", flips=False),
    Row("demo/raw/Dataset990_KidneyPhantoms/phantoms.json", "demo", called="Dataset990_KidneyPhantoms", flips=False),
]  # fmt: skip


def _damages(row: Row, data: bytes) -> Iterator[tuple[str, bytes]]:
    found = text_damages(data) if row.file.endswith(".json") else binary_damages(data)
    return ((name, damaged) for name, damaged in found if row.flips or "flip" not in name)


def _still_sound(row: Row, name: str, damaged: bytes) -> bool:
    """Whether nobody can tell the damage: a changed letter in a JSON file or in notes, a voxel without check sum."""
    if row.file.endswith(".json"):
        try:
            return name.startswith(("flip", "retyped", "empty table")) and isinstance(json.loads(damaged), dict | list)
        except ValueError:
            return False
    return "flip" in name and row.file.endswith((".b2nd", ".pkl", ".jsonl"))


@pytest.fixture(scope="module")
def pristine(
    tmp_path_factory: pytest.TempPathFactory, make_network: Callable[..., SAM3D]
) -> Iterator[tuple[Path, Path]]:
    """The tree and its copy. Commands note absolute paths, so that the tree has to be put back at its place."""
    root, copy = tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("copy") / "state"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(root / name))
        patch.setattr(build.sections, "all_sections", lambda *given: [])  # drawing takes seconds, and reads nothing
        patch.setattr(build, "render", lambda page: "")
        patch.setattr("nnunetv2_sam3d.server.listening.serve", lambda *given: None)
        write_state(root, make_network(num_classes=3, adapter="dualpath"), main)
        shutil.copytree(root, copy)
        yield root, copy


@pytest.fixture
def state(pristine: tuple[Path, Path]) -> State:
    return _restored(pristine)


def _restored(pristine: tuple[Path, Path]) -> State:
    root, copy = pristine
    shutil.rmtree(root)
    shutil.copytree(copy, root)
    return State(root)


@contextmanager
def _dated(file: Path) -> Iterator[None]:
    """What happens to the file does not change its time, as on a failing disk."""
    status = file.stat()
    yield
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _run(state: State, command: str, capsys: pytest.CaptureFixture[str], what: str, *more: str) -> tuple[int, str]:
    """Exit status and message of a command, which has to be one that is made for people."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:  # demo sets nnU-Net's folders
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(state.root / name))
        try:
            status = main([*state.commands()[command], *more])
        except Exception as error:
            raise AssertionError(f"{what}: a traceback") from error
    message = capsys.readouterr().err
    start = f"nnUNetv2_sam3d {state.commands()[command][0]}: "  # progress bars stand before it
    return status, (start + message.partition(start)[2]).replace(str(state.root), "") if status else ""


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.file.replace(MODEL, "MODEL"))
def test_a_damaged_file(row: Row, pristine: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data = (pristine[1] / row.file).read_bytes()
    names = row.called or Path(row.file).name
    expected = [(command, 1) for command in row.named.split()] + [(command, 0) for command in row.anew[0].split()]
    for name, damaged in _damages(row, data):
        for command, status in expected:
            if (not status and name not in FEW) or (command in SLOW and _still_sound(row, name, damaged)):
                continue
            what = f"{row.file}, {name}, {command}"
            state = _restored(pristine)
            if row.remade:
                (state.root / row.remade).unlink()
            with _dated(state.root / row.file):
                (state.root / row.file).write_bytes(damaged)
            before = state.contents()
            found, message = _run(state, command, capsys, what)
            after = state.contents()
            if not _still_sound(row, name, damaged):
                assert found == status, f"{what}: status {found} {message}"
                assert not found or names in message, f"{what}: {message}"
            assert not found or ("Traceback" not in message and 30 < len(message) < LONGEST_MESSAGE), (
                f"{what}: {message}"
            )
            own = OUTPUTS.get(command, "nothing")
            others = [f for f in before if before[f] != after.get(f) and (not f.startswith(own) or "case_b" in f)]
            assert not others, f"{what} changed {others}"


INNER: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("weights of another type", lambda content: content | {"network_weights": 5}),
    ("no weights", lambda content: content | {"network_weights": {}}),
    ("description of another type", lambda content: content | {"sam3d": []}),
    ("description of no network", lambda content: content | {"sam3d": content["sam3d"] | {"network": "vit_b"}}),
    ("trained of another type", lambda content: content | {"sam3d": content["sam3d"] | {"trained": 5}}),
    ("origin of another type", lambda content: content | {"sam3d": content["sam3d"] | {"provenance": "SAM"}}),
    ("a list", lambda content: [content]),
]
OF_SOME: list[tuple[str, str, Any]] = [
    ("report adapters", "logging", []),
    ("report adapters", "logging", {"adapter_paths": ["text"], "train_losses": [0.5]}),
    ("report export", "init_args", None),
    ("export", "init_args", {"configuration": []}),
    ("export", "optimizer_state", {}),
    ("export", "trainer_name", 5),
    ("inspect evaluate predict", "inference_allowed_mirroring_axes", 5),
    ("inspect evaluate predict", "inference_allowed_mirroring_axes", [[0]]),
]


def test_entries_of_a_checkpoint(pristine: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    cases = [("inspect export report", what, change) for what, change in INNER]
    cases += [
        (commands, f"{key} {value}", lambda content, key=key, value=value: content | {key: value})  # type: ignore[misc]
        for commands, key, value in OF_SOME
    ]
    for commands, what, change in cases:
        for command in commands.split():
            state = _restored(pristine)
            file = state.fold / "checkpoint_final.pth"
            with _dated(file):
                write_checkpoint(change(read_checkpoint(file)), file)
            status, message = _run(state, command, capsys, f"{what}, {command}")
            assert status == 1 and file.name in message, f"{what}, {command}: {message}"
            assert len(message) < LONGEST_MESSAGE, f"{what}, {command}: {message}"


@pytest.mark.parametrize("name", ["case_a.b2nd", "case_a_seg.b2nd"])
def test_planes_that_cannot_be_unpacked(name: str, state: State, capsys: pytest.CaptureFixture[str]) -> None:
    file = state.data / name
    data = file.read_bytes()
    for part in range(2, 8):
        start, end = part * len(data) // 10, (part + 1) * len(data) // 10
        file.write_bytes(data[:start] + b"\xff" * (end - start) + data[end:])
        (state.root / RECORD).unlink(missing_ok=True)
        status, message = _run(state, "evaluate", capsys, f"{name}, {part}")
        assert status == 0 or "the preprocessed case" in message and "case_a" in message, message


def test_plans_changed_between_two_cases(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    (state.root / RECORD).unlink()
    plans = json.loads((state.model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 2.0]
    (state.model / "plans.json").write_text(json.dumps(plans))
    before = state.contents()
    status, message = _run(state, "evaluate", capsys, "other plans")
    assert status == 1 and "plans" in message and "--overwrite" in message
    assert state.contents() == before


@pytest.mark.parametrize("name", ["nnUNet_n_proc_DA", "nnUNet_def_n_proc"])
@pytest.mark.parametrize("value", ["abc", "", "-1", "1.5"])
def test_numbers_of_workers(
    name: str, value: str, state: State, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    status, message = _run(state, "crossval", capsys, name)
    assert status == 1 and f"the variable {name} is {value!r}" in message and "unset it" in message


def test_odd_names_of_images(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    images = state.root / "images"
    for name in ("two\nlines", "n" * 238):  # 250 letters with channel and ending
        shutil.copy(images / "case_b_0000.nii.gz", images / f"{name}_0000.nii.gz")
    (images / "circle").symlink_to(images)
    (images / "loop_0000.nii.gz").symlink_to(images / "loop_0000.nii.gz")
    status, message = _run(state, "predict", capsys, "a link to itself")
    assert status == 1 and "loop_0000.nii.gz" in message
    (images / "loop_0000.nii.gz").unlink()
    assert _run(state, "predict", capsys, "odd names")[0] == 0
    written = {file.name for file in (state.root / "predicted").glob("*.nii.gz")}
    assert written == {f"{name}.nii.gz" for name in ("case_a", "case_b", "two\nlines", "n" * 238)}


def test_folders_for_predictions(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    words = state.commands()["predict"]
    words[words.index("--clicks") : words.index("--clicks") + 2] = []
    output = words.index("-o") + 1
    before = state.contents()
    words[output] = str(state.root / "split.pkl" / "out")
    assert main(words) == 1 and "split.pkl is a file" in capsys.readouterr().err
    words[words.index("-i") + 1] = str(state.fold / "validation" / f"{FOLDS[0]['val'][0]}.nii.gz")
    words[output] = str(state.fold / "validation")
    assert main(words) == 1 and "would replace the image" in capsys.readouterr().err
    assert state.contents() == before
