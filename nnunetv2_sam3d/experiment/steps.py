"""Steps: commands that are run once, and skipped when their results are there."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock

from nnunetv2_sam3d.files import write_json
from nnunetv2_sam3d.json_files import entries, is_number, is_table, read_json, read_table, table_of
from nnunetv2_sam3d.nnunet.image_files import is_whole_image


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        title: a few words for the progress display; identifies the step in its folder's record.
        command: program and arguments.
        results: files that exist once the step is finished; then it is not run again.
        folder: where its log (``logs/TITLE.log``) and the record (``steps.json``) go.
        group: what the step belongs to, for the display: ``fold 3``.
        after: steps that have to be finished first.
        inputs: files that the results must not be older than.
        unchanged: tells of results that are older, as after a copy, whether the inputs are still those of then.
        checkpoints: nnU-Net's, the newest first; if one is there, the training goes on from it.
        start: arguments of a training that begins.
        on_device: whether the command runs on a device of the run and is told which.
        epochs: for trainings, the number of epochs to expect in the log; 0 if unknown.
    """

    title: str
    command: tuple[str, ...]
    results: tuple[Path, ...]
    folder: Path
    group: str = ""
    after: tuple[Step, ...] = ()
    inputs: tuple[Path, ...] = ()
    unchanged: Callable[[], bool] | None = None
    checkpoints: tuple[Path, ...] = ()
    start: tuple[str, ...] = ()
    on_device: bool = False
    epochs: int = 0

    @property
    def label(self) -> str:
        """Title and group."""
        return f"{self.group}: {self.title}" if self.group else self.title

    @property
    def log(self) -> Path:
        """File of the command's output."""
        return self.folder / "logs" / f"{re.sub(r'[^A-Za-z0-9]+', '_', self.title)}.log"

    @property
    def finished(self) -> bool:
        """Whether all results are there, whole, and no older than the inputs."""
        if not all(is_whole(result) for result in self.results):
            return False
        newest = max((path.stat().st_mtime_ns for path in self.inputs if path.exists()), default=0)
        if all(result.stat().st_mtime_ns >= newest for result in self.results):
            return True
        return self.unchanged is not None and self.unchanged()

    def arguments(self) -> tuple[str, ...]:
        """The command, with what makes it go on from a checkpoint, or begin."""
        resumes = any(is_whole(checkpoint) for checkpoint in self.checkpoints)
        return (*self.command, *(("--c",) if resumes else self.start))

    def set_damaged_checkpoints_aside(self) -> list[Path]:
        """Renames checkpoints that nnU-Net would try to load and cannot; returns their new names.

        Power that failed, or a kill while nnU-Net was writing, leaves such files.
        """
        moved = []
        for checkpoint in self.checkpoints:
            if checkpoint.exists() and not is_whole(checkpoint, thoroughly=True):
                moved.append(checkpoint.rename(checkpoint.with_suffix(".damaged")))
        return moved


def is_whole(file: Path, *, thoroughly: bool = False) -> bool:
    """Whether a result exists and was written to its end, for the kinds whose end can be told.

    Args:
        file: ``.json`` has to hold a table; of a ``.pth``, which is a zip file, the directory at its end is looked for;
            an image has to hold what its header promises.
        thoroughly: whether the check sums of a ``.pth`` are computed as well.
    """
    if not file.exists():
        return False
    if file.suffix == ".json":
        try:
            return is_table(read_json(file))
        except ValueError:
            return False
    if file.suffix == ".pth":
        with open(file, "rb") as content:  # a file that may not be read is another matter than a damaged one
            try:
                with zipfile.ZipFile(content) as archive:
                    return not thoroughly or archive.testzip() is None
            except Exception:  # a damaged directory raises nearly anything: OSError, NotImplementedError, zlib.error
                return False
    about = file.stat()
    return _was_whole(file, about.st_size, about.st_mtime_ns)


@cache
def _was_whole(file: Path, size: int, time_ns: int) -> bool:
    """Looked at once as long as the file stays as it is: images are read to their end for it."""
    return is_whole_image(file)


class StepCosts:
    """Seconds and peak memory of the steps of a folder, on disk, so that interrupted runs keep the figures.

    Args:
        folder: of the steps; its ``steps.json`` is made when the first step ends.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "steps.json"

    @property
    def steps(self) -> dict[str, dict[str, float]]:
        """``seconds`` and ``peak_rss_bytes`` by title.

        Raises:
            ValueError: if the file is damaged.
        """
        remedy = "Delete it; the times and memory of finished steps are not known then"
        steps = read_table(self.file, remedy) if self.file.is_file() else {}
        if not table_of(entries(seconds=is_number, peak_rss_bytes=is_number))(steps):
            raise ValueError(f"{self.file} is damaged: it is no table of steps with seconds and memory. {remedy}")
        return steps

    def add(self, title: str, seconds: float, peak_rss_bytes: int) -> None:
        """Adds a (part of a) step; a resumed step's seconds add up. Jobs of a cluster may add at the same time."""
        with FileLock(f"{self.file}.lock"):
            try:
                steps = self.steps
            except ValueError:  # hours of work have just ended well: figures of earlier ones are worth less
                self.file.replace(self.file.with_suffix(".damaged"))
                steps = {}
            earlier = steps.get(title, {"seconds": 0.0, "peak_rss_bytes": 0})
            steps[title] = {
                "seconds": round(earlier["seconds"] + seconds, 1),
                "peak_rss_bytes": max(int(earlier["peak_rss_bytes"]), peak_rss_bytes),
            }
            write_json(self.file, steps)


def program(name: str) -> str:
    """Path of a console script of this environment.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(
            f"the command {name} is not installed in this environment; install nnU-Net: "
            f"pip install 'nnunetv2>=2.8,<2.9'"
        )
    return found
