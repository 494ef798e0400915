"""Whether a fold's validation is that of its final checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from nnunetv2_sam3d.files import sha256, write_json
from nnunetv2_sam3d.nnunet.layout import FINAL, validation_summary

NOTE = "validated_checkpoint.json"
CLOCK_NS = 2_000_000_000  # some file systems note times to 2 s only


def note_validated(fold: Path) -> None:
    """Notes beside a finished validation the final checkpoint that it is of."""
    write_json(validation_summary(fold).with_name(NOTE), {"checkpoint": FINAL, "sha256": sha256(fold / FINAL)})


def is_validated(fold: Path) -> bool:
    """Whether the summary is there and of the final checkpoint.

    A training that was repeated and killed before its validation leaves the summary of the earlier one. nnU-Net writes
    the summary after the checkpoint. So an older one is of another checkpoint, unless the note beside it says
    otherwise: the files of a copied folder may have the times of the copying.
    """
    summary, checkpoint = validation_summary(fold), fold / FINAL
    if not (summary.is_file() and checkpoint.is_file()):
        return False
    if summary.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns - CLOCK_NS:
        return True
    try:
        noted = json.loads(summary.with_name(NOTE).read_text("utf-8"))["sha256"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return noted == sha256(checkpoint)


def is_outdated(fold: Path) -> bool:
    """Whether there is a validation, but of another checkpoint than the final one."""
    return validation_summary(fold).is_file() and (fold / FINAL).is_file() and not is_validated(fold)
