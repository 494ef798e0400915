"""The note beside a fold's validation: which checkpoint it is of, and under which conditions it was made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.files import sha256, write_json
from nnunetv2_sam3d.json_files import json_or_none
from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.nnunet.image_files import is_whole_image
from nnunetv2_sam3d.nnunet.layout import FINAL, validation_summary

NOTE = "made_from.json"
CLOCK_NS = 2_000_000_000  # some file systems note times to 2 s only


def note_validated(fold: Path, conditions: Mapping[str, Any], taken_over_from: Path | None = None) -> None:
    """Notes beside a finished validation the final checkpoint that it is of, its conditions, and its files.

    Raises:
        OSError: if a mask is cut off, as ITK leaves it on a full disk. The summary is made of it and deleted, so that
            the validation does not count as finished.
    """
    summary = validation_summary(fold)
    folder = summary.parent
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != NOTE)
    if cut_off := [str(path) for path in files if path.suffix != ".json" and not is_whole_image(path)]:
        summary.unlink(missing_ok=True)
        raise OSError(f"{some(cut_off)}: not written to the end. Free disk space, then validate again (--val)")
    note = {
        "checkpoint": FINAL,
        "sha256": sha256(fold / FINAL),
        "conditions": dict(conditions),
        "files": {path.name: sha256(path) for path in files},
    }
    write_json(folder / NOTE, note | ({} if taken_over_from is None else {"taken_over_from": str(taken_over_from)}))


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
    return _note(fold).get("sha256") == sha256(checkpoint)


def is_outdated(fold: Path) -> bool:
    """Whether there is a validation, but of another checkpoint than the final one."""
    return validation_summary(fold).is_file() and (fold / FINAL).is_file() and not is_validated(fold)


def taken_over_from(fold: Path) -> Path | None:
    """The fold whose validation this one's is a copy of."""
    source = _note(fold).get("taken_over_from")
    return Path(source) if isinstance(source, str) else None


def take_over(fold: Path, source: Path, conditions: Mapping[str, Any], *, probabilities: bool = False) -> str | None:
    """Copies another fold's validation if it was made under the same conditions from files that are still those.

    Args:
        fold: that has the checkpoint, and gets the validation.
        source: that has both.
        conditions: of the validation that would be made.
        probabilities: whether the copy needs the classes' probabilities.

    Returns:
        why it was not taken over; ``None`` if it was.
    """
    note, folder = _note(source), validation_summary(source).parent
    files, theirs = note.get("files"), note.get("conditions")
    if not isinstance(files, dict) or not isinstance(theirs, dict):
        return "no note says how it was made"
    if differs := [key for key in {**theirs, **conditions} if theirs.get(key) != conditions.get(key)]:
        return f"different {', '.join(sorted(differs))}"
    if not (source / FINAL).is_file() or note.get("sha256") != sha256(source / FINAL):
        return f"{source / FINAL} is another one by now"
    if probabilities and not any(name.endswith(".npz") for name in files):
        return "it has no probabilities"
    changed = [name for name, digest in files.items() if Path(name).name != name or not _is(folder / name, digest)]
    if changed or "summary.json" not in files:
        return f"{folder / (changed or ['summary.json'])[0]} is not the file that it was"
    target = validation_summary(fold).parent
    target.mkdir(exist_ok=True)
    for name in (name for name in files if name != "summary.json"):
        shutil.copyfile(folder / name, target / name)
    text = (folder / "summary.json").read_text("utf-8")
    own, other = (json.dumps(str(path))[1:-1] for path in (target, folder))
    write_json(target / "summary.json", json.loads(text.replace(other, own)), indent=4)
    note_validated(fold, conditions, source)
    return None


def _is(file: Path, digest: str) -> bool:
    return file.is_file() and sha256(file) == digest


def _note(fold: Path) -> dict[str, Any]:
    """What the note says; nothing if it is absent or damaged."""
    content = json_or_none(validation_summary(fold).with_name(NOTE))
    return content if isinstance(content, dict) else {}
