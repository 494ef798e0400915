"""Folders in which a command replaces what it made before, and nothing that others put there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from nnunetv2_sam3d.files import write_json
from nnunetv2_sam3d.json_files import json_or_none
from nnunetv2_sam3d.messages import some

LIST = ".nnUNetv2_sam3d.json"  # for each command, the files of the folder that it made


def check_foreign(folder: Path, command: str, names: Iterable[str]) -> None:
    """Looks beforehand whether files of these names are a command's own.

    Raises:
        ValueError: if others made some of them, naming these and the remedy.
    """
    made = _made(folder).get(command, [])
    foreign = [str(folder / name) for name in names if name not in made and (folder / name).exists()]
    if foreign:
        raise ValueError(
            f"{some(foreign)}: {command} would overwrite what it did not make (or what made it is not noted in "
            f"{folder / LIST}). Choose another folder with -o, or move these files"
        )


@contextmanager
def made_anew(folder: Path, command: str, *, checked: bool = True) -> Iterator[Path]:
    """Context with an empty folder to write to, whose files take the place of those that the command made before.

    They do so in the end, if the context ends without an error: until then the earlier ones stay. Two commands at once
    each write to a folder of their own, and the last one that ends wins.

    Args:
        folder: is made if absent.
        command: whose files are replaced.
        checked: whether files of these names have to be in the list; not where a version before the list made them.

    Raises:
        ValueError: if a file of the same name is there that the command did not make; nothing is changed then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".being_made_", dir=folder))
    try:
        yield staging
        new = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
        with FileLock(folder / f"{LIST}.lock"):
            if checked:
                check_foreign(folder, command, new)
            made = _made(folder)
            outdated = sorted(set(made.get(command, [])) - set(new))
            write_json(folder / LIST, {**made, command: sorted({*made.get(command, []), *new})})
            for name in outdated:
                (folder / name).unlink(missing_ok=True)
            for name in new:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / name, folder / name)
            write_json(folder / LIST, {**made, command: new})
            for emptied in {(folder / name).parent for name in outdated} - {folder}:
                if emptied.is_dir() and not any(emptied.iterdir()):
                    emptied.rmdir()
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _made(folder: Path) -> Mapping[str, list[str]]:
    """Files by command; those outside of the folder are no command's."""
    content = json_or_none(folder / LIST)
    try:
        return {
            str(command): [name for name in map(str, names) if _lies_inside(name)] for command, names in content.items()
        }
    except (TypeError, AttributeError):
        return {}


def _lies_inside(name: str) -> bool:
    path = Path(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts
