"""The command ``nnUNetv2_sam3d``."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

from nnunetv2_sam3d import __version__
from nnunetv2_sam3d.children import AskedToEnd, unwind_on_signals
from nnunetv2_sam3d.commands import (
    adapters,
    benchmark,
    crossval,
    demo,
    doctor,
    evaluate,
    experiment,
    plan,
    predict,
    report,
    serve,
    splits,
    weights,
)
from nnunetv2_sam3d.nnunet.layout import check_workers

COMMANDS = (
    doctor, plan, splits, weights, experiment, crossval, predict, serve, evaluate, adapters, report, demo, benchmark,
)  # fmt: skip


# What the system says of files, for users.
SYSTEM = {
    errno.EACCES: "no permission. Choose another place, or change its permissions",
    errno.EPERM: "no permission. Choose another place, or change its permissions",
    errno.EROFS: "the file system takes no writes. Choose another place",
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "disk or quota are full. Make space, then run the same command again",
    ),
    errno.ENOTDIR: "a part of this path is a file, where a folder is needed. Choose another place",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_sam3d",
        description="Tools beside nnU-Net's own commands for the SAM3D trainers. Training and prediction are "
        "nnUNetv2_train -tr nnUNetTrainer_SAM3D... and nnUNetv2_predict.",
    )
    parser.add_argument("--version", action="version", version=f"nnunetv2_sam3d {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; expected errors become one message and exit status 1."""
    options = build_parser().parse_args(arguments)
    unwind_on_signals()
    try:
        check_workers()
        return options.run(options) or 0
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        sys.stderr.write(f"nnUNetv2_sam3d {options.command}: {_in_words(error)}\n")
        return 1
    except KeyboardInterrupt as end:
        sys.stderr.write("interrupted; run the same command again to go on\n")
        return end.status if isinstance(end, AskedToEnd) else 130


def _in_words(error: Exception) -> str:
    """The message; for what the system refuses, with the remedy."""
    if isinstance(error, OSError) and error.errno in SYSTEM:
        return f"{f'{error.filename}: ' if error.filename else ''}{SYSTEM[error.errno]}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
