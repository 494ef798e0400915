"""The command line: help, one message for an error, exit status."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_sam3d import __version__
from nnunetv2_sam3d.cli import build_parser, main
from nnunetv2_sam3d.commands import doctor


def parsers(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its parser."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from parsers(child, (*path, name))


COMMANDS = {" ".join(path): parser for path, parser in parsers(build_parser()) if path}


@pytest.fixture
def paths(nnunet_paths: Path) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (nnunet_paths / name).mkdir()
    return nnunet_paths


@pytest.fixture
def no_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnUNet_{name}", raising=False)


def test_commands() -> None:
    verbs = {f"weights {verb}" for verb in ("convert", "export-adapter", "fetch", "inspect", "merge")}
    others = {
        "benchmark",
        "crossval",
        "demo",
        "doctor",
        "evaluate",
        "experiment",
        "plan",
        "predict",
        "report",
        "splits import",
    }
    assert others | verbs <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_a_summary_and_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    text, examples = capsys.readouterr().out.split("examples:\n")
    assert COMMANDS[command].description
    assert examples.strip()
    assert "usage: nnUNetv2_sam3d " + command.split()[0] in text


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_commands_that_parse(command: str) -> None:
    examples = (COMMANDS[command].epilog or "").splitlines()[1:]
    assert any(line.split()[: len(command.split()) + 1] == ["nnUNetv2_sam3d", *command.split()] for line in examples)
    for line in examples:
        program, *arguments = line.split("#")[0].split()
        assert program.startswith("nnUNetv2_")
        if program == "nnUNetv2_sam3d":
            build_parser().parse_args(arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str) -> None:
    speaks_for_itself = {"batch_size", "file", "output"}
    for action in COMMANDS[command]._actions:
        assert action.help or action.dest in speaks_for_itself or isinstance(action, argparse._SubParsersAction)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"nnunetv2_sam3d {__version__}"


@pytest.mark.parametrize("arguments", ["", "absent", "plan", "weights", "plan -d 1 --variant vit_x"])
def test_misuse_shows_the_usage(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def one_message(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that fails."""
    assert main(arguments) == 1
    written = capsys.readouterr().err
    assert "Traceback" not in written
    assert written.startswith(f"nnUNetv2_sam3d {arguments[0]}: ")
    assert written.count(f"nnUNetv2_sam3d {arguments[0]}: ") == 1
    return written


def test_errors_of_plan(paths: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "991" in one_message(["plan", "-d", "991"], capsys)
    assert "neverheard" in one_message(["plan", "-d", "neverheard"], capsys)
    (paths / "preprocessed" / "Dataset991_Toy").mkdir()
    assert "nnUNetv2_plan_and_preprocess -d 991" in one_message(["plan", "-d", "991"], capsys)
    assert "one number or three" in one_message(["plan", "-d", "991", "--token-stride", "4", "4"], capsys)
    assert "token_stride" in one_message(["plan", "-d", "991", "--token-stride", "3"], capsys)
    assert "epochs" in one_message(["plan", "-d", "991", "--epochs", "0"], capsys)
    arguments = ["plan", "-d", "991", "--like", "x.pth", "--variant", "vit_b"]
    assert "exclude each other" in one_message(arguments, capsys)
    assert "x.pth does not exist" in one_message(["plan", "-d", "991", "--like", "x.pth"], capsys)
    assert "nowhere does not exist" in one_message(["adapters", "nowhere"], capsys)


def test_damaged_plans_are_named(paths: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (paths / "preprocessed" / "Dataset991_Toy").mkdir()
    (paths / "preprocessed" / "Dataset991_Toy" / "nnUNetPlans.json").write_text("{broken")
    assert "nnUNetPlans.json" in one_message(["plan", "-d", "991"], capsys)


def test_errors_without_paths(no_paths: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nnUNet_preprocessed" in one_message(["plan", "-d", "991"], capsys)
    message = one_message(["experiment", "-d", "991", "--variant", "vit_tiny"], capsys)
    assert all(f"export nnUNet_{name}=" in message for name in ("raw", "preprocessed", "results"))


def test_errors_of_experiment(paths: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "991" in one_message(["experiment", "-d", "991", "--variant", "vit_tiny"], capsys)
    twice = ["experiment", "-d", "991", "--trainers", "Full", "nnUNetTrainer_SAM3DFull"]
    assert "named twice" in one_message(twice, capsys)
    (paths / "raw" / "Dataset991_Toy").mkdir()
    assert "dataset.json does not exist" in one_message(["experiment", "-d", "991"], capsys)


def test_a_misspelt_trainer_or_target_is_refused_before_the_work_begins(
    paths: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = paths / "raw" / "Dataset991_Toy"
    raw.mkdir()
    (raw / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}))
    assert "no target 'liver'" in one_message(["experiment", "-d", "991", "--click-targets", "liver"], capsys)
    message = one_message(["experiment", "-d", "991", "--trainers", "Full", "DaulPath"], capsys)
    assert "DaulPath" in message
    assert "nnUNetv2_plan_and_preprocess" not in message  # it was not even begun


def test_errors_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source.pth"
    target = str(tmp_path / "target.pth")
    assert "does not exist" in one_message(["weights", "inspect", str(source)], capsys)
    assert "is not a file" in one_message(["weights", "inspect", str(tmp_path)], capsys)
    for content in (b"", b"<html>", b"no weights"):
        source.write_bytes(content)
        assert "source.pth" in one_message(["weights", "convert", str(source), "-o", target], capsys)
    torch.save({"some": torch.zeros(1)}, source)
    assert "no known kind" in one_message(["weights", "inspect", str(source)], capsys)
    assert not Path(target).exists()


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> list[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert main(["doctor"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_programming_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Any]:
        raise AttributeError("a defect")

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(AttributeError):
        main(["doctor"])


def test_doctor_with_paths(paths: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 0.0)  # of the machine that tests
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "FAIL" not in output
    assert "everything needed is there" in output
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        assert f"ok   {name}" in output
    assert "nnUNetTrainer_SAM3DDualPath" in output


def test_doctor_without_paths(no_paths: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "3 problems found" in output
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        assert f"FAIL {name}" in output
        assert f"export {name}=" in output


def test_doctor_names_absent_weights_and_a_full_disk(
    paths: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_trainers", list)  # tested above, and slow
    monkeypatch.setenv("nnUNet_sam_checkpoint", str(paths / "absent.pth"))
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 1e9)
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert f"the variable nnUNet_sam_checkpoint names {paths / 'absent.pth'} as SAM's weights, but" in output
    assert output.count("GB free") >= 2
    assert "3 problems found" in output


def test_doctor_knows_weights_by_name(
    paths: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_trainers", list)
    monkeypatch.setenv("XDG_CACHE_HOME", str(paths / "cache"))
    monkeypatch.setenv("nnUNet_sam_checkpoint", "medsam")
    main(["doctor"])
    assert "names medsam, which is not fetched yet: nnUNetv2_sam3d weights fetch medsam" in capsys.readouterr().out


def test_doctor_survives_a_broken_check(
    paths: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def _devices() -> list[Any]:
        raise OSError("driver gone")

    monkeypatch.setattr(doctor, "_trainers", list)
    monkeypatch.setattr(doctor, "_devices", _devices)
    assert main(["doctor"]) == 1
    assert "driver gone" in capsys.readouterr().out


def test_console_script() -> None:
    script = Path(sys.executable).parent / "nnUNetv2_sam3d"
    done = subprocess.run([str(script), "weights", "inspect", "absent.pth"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["nnUNetv2_sam3d weights: weights file absent.pth does not exist"]
    assert done.stdout == ""


def test_demo_keeps_out_of_folders_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw").mkdir()
    for file in (tmp_path / "thesis.docx", tmp_path / "raw" / "data.txt"):
        file.write_text("of others")
        assert main(["demo", "-o", str(tmp_path), "--data-only"]) == 1
        assert "holds files that this command did not make" in capsys.readouterr().err
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
        file.unlink()
    assert main(["demo", "-o", str(tmp_path), "--epochs", "0"]) == 1
    assert "epochs" in capsys.readouterr().err and not list((tmp_path / "raw").iterdir())


def test_what_the_system_refuses_comes_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "-o", str(tmp_path / "file" / "demo"), "--data-only"]) == 1
    assert "a part of this path is a file, where a folder is needed. Choose another" in capsys.readouterr().err
