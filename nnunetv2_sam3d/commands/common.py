"""What several commands share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

from nnunetv2_sam3d.nnunet.layout import FINAL
from nnunetv2_sam3d.trainers.names import full_name


def say(text: str = "") -> None:
    """Writes a line for the user at once, also into pipes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def add_command(commands: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """A sub-command whose help ends with examples."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="examples:\n" + dedent(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that name a trained model as nnU-Net's own commands do, and where it runs."""
    parser.add_argument("-d", "--dataset", help="data set name or number")
    parser.add_argument("-tr", "--trainer", default="nnUNetTrainer_SAM3DDualPath", help="default: %(default)s")
    parser.add_argument("-p", "--plans", default="nnUNetSAM3DPlans", help="default: %(default)s")
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument("-f", "--folds", nargs="+", metavar="FOLD", help="default: all that are trained")
    parser.add_argument("-chk", "--checkpoint", default=FINAL, metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "-device", "--device", choices=("cpu", "cuda", "mps"), help="default: cuda if there is one, else cpu"
    )


def add_prediction_options(parser: argparse.ArgumentParser) -> None:
    """Those of :func:`add_model_options` with the folder as ``-m``, and how the model predicts."""
    parser.add_argument(
        "-m", "--model", type=Path,
        help="folder of a trained model, TRAINER__PLANS__CONFIGURATION (or name it by -d, -tr, -p, -c)",
    )  # fmt: skip
    add_model_options(parser)
    parser.add_argument(
        "--disable_tta", action="store_true", help="no mirroring: up to eight times faster, less accurate"
    )


def find_model_of(options: argparse.Namespace) -> Path:
    """nnU-Net's folder of the model that the options of :func:`add_model_options` name."""
    from nnunetv2_sam3d.nnunet.trained_fold import find_model

    trainer = full_name(options.trainer)
    return find_model(options.model, options.dataset, trainer, options.plans, options.configuration)


def folds_of(values: Sequence[str] | None) -> list[int | str]:
    """Numbers of folds, or ``all``, as they were given; ValueError for anything else, and for one twice."""
    folds: list[int | str] = []
    for value in values or ():
        if value != "all" and not value.isdecimal():
            raise ValueError(f"-f takes numbers of folds or all, got {value!r}")
        fold = value if value == "all" else int(value)
        if fold in folds:
            raise ValueError(f"-f names fold {fold} twice; name each fold once")
        folds.append(fold)
    return folds


def fold_number(text: str) -> int:
    """An argument of ``--folds`` of the commands that compare folds; ``all`` has no validation cases to compare."""
    if text.isdecimal() and len(text) < 10:
        return int(text)
    if text == "all":
        raise argparse.ArgumentTypeError(
            "fold 'all' trains with every case and has none left to validate with, so nothing can be compared. Give "
            "numbers, or leave --folds out for all folds of the split; train 'all' with nnUNetv2_train"
        )
    raise argparse.ArgumentTypeError(f"{text!r} is no fold; folds are numbers from 0")


def choose_device(asked: str | None = None) -> str:
    """The device that was asked for, by default ``cuda`` if there is one, else ``cpu``; ValueError if it is absent."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(asked or "cpu", True):
        why = " (it was installed without CUDA)" if asked == "cuda" and not torch.backends.cuda.is_built() else ""
        others = ", ".join(["cpu", *(name for name, is_there in there.items() if is_there)])
        raise ValueError(
            f"--device {asked}: PyTorch {torch.__version__} finds no such device{why}. Choose one of: {others}"
        )
    return asked or ("cuda" if there["cuda"] else "cpu")


def check_output_folder(folder: Path | None) -> None:
    """ValueError for what cannot be a folder, before time is spent."""
    for path in [] if folder is None else [folder, *folder.absolute().parents]:
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"-o {folder}: {path} is a file; give a folder, which is made if it does not exist")
            return


def default_processes() -> int:
    """Worker processes for nnU-Net: the cores, at most 8."""
    return max(1, min(8, os.cpu_count() or 1))
