"""Steps that run a command once, show its progress, and are skipped when their result is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

POLL_S = 0.5
QUIET_S = 60.0  # between two lines of progress where the output is no terminal but a log


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        title: a few words for the progress display; identifies the step in the record.
        command: program and arguments.
        results: files that exist once the step is finished; then it is not run again.
        resume: (file, argument): if the file exists, the argument is added, so that the command goes on from it.
        epochs: for trainings, the number of epochs to expect in the log.
    """

    title: str
    command: tuple[str, ...]
    results: tuple[Path, ...]
    resume: tuple[tuple[Path, str], ...] = ()
    epochs: int = 0

    @property
    def finished(self) -> bool:
        """Whether all results exist."""
        return all(result.exists() for result in self.results)


class Record:
    """Seconds and peak memory of the steps, on disk, so that interrupted runs keep the figures.

    Args:
        file: JSON file; made when the first step ends.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.steps: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}

    def add(self, title: str, seconds: float, peak_rss_bytes: int) -> None:
        """Adds a (part of a) step; a resumed step's seconds add up."""
        earlier = self.steps.get(title, {"seconds": 0.0, "peak_rss_bytes": 0})
        self.steps[title] = {
            "seconds": round(earlier["seconds"] + seconds, 1),
            "peak_rss_bytes": max(int(earlier["peak_rss_bytes"]), peak_rss_bytes),
        }
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.steps, indent=1))
        os.replace(partial, self.file)


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


def run_steps(steps: Sequence[Step], folder: Path, environment: Mapping[str, str]) -> Record:
    """Runs what is missing, in order, with one progress bar a step.

    Args:
        steps: commands in dependency order.
        folder: where logs (``logs/TITLE.log``) and the record go.
        environment: of the commands.

    Raises:
        RuntimeError: if a command fails or leaves no result; names the log and ends with its last lines.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    record = Record(folder / "steps.json")
    for number, step in enumerate(steps, 1):
        label = f"[{number}/{len(steps)}] {step.title}"
        if step.finished:
            tqdm.write(f"{label}: finished before", file=sys.stdout)
            continue
        log = logs / f"{re.sub(r'[^A-Za-z0-9]+', '_', step.title)}.log"
        seconds, peak, status = _run(step, label, log, environment)
        record.add(step.title, seconds, peak)
        if status or not step.finished:
            missing = [str(result) for result in step.results if not result.exists()]
            reason = f"ended with status {status}" if status else f"left no {missing[0]}"
            tail = "\n".join(f"  | {line}" for line in log.read_text(errors="replace").splitlines()[-12:])
            raise RuntimeError(
                f"{step.title}: {' '.join(step.command)} {reason}. Its output is in {log}, the end of it:\n"
                f"{tail}\nFinished steps are kept; run the same command again to go on."
            )
    return record


def _run(step: Step, label: str, log: Path, environment: Mapping[str, str]) -> tuple[float, int, int]:
    """One command, its output to the log; returns seconds, peak resident bytes and exit status."""
    command = [*step.command, *(argument for file, argument in step.resume if file.exists())]
    began = time.monotonic()
    with (
        open(log, "a", encoding="utf-8", errors="replace") as output,
        tqdm(
            total=step.epochs or None,
            desc=label,
            unit="epoch" if step.epochs else "s",
            file=sys.stdout,
            bar_format=None if step.epochs else "{desc}: {elapsed}",
        ) as bar,
    ):
        shown = began
        offset = output.tell()
        output.write(f"\n$ {' '.join(command)}\n")
        output.flush()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                time.sleep(POLL_S)
                if step.epochs:
                    bar.n = min(step.epochs, _last_epoch(log, offset))
                if sys.stdout.isatty() or time.monotonic() - shown > QUIET_S:
                    bar.refresh()
                    shown = time.monotonic()
        except BaseException:  # Ctrl-C: the command and its workers go too
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        if step.epochs and process.returncode == 0:
            bar.n = step.epochs
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return time.monotonic() - began, usage.ru_maxrss * kilobyte, process.returncode


def _last_epoch(log: Path, offset: int) -> int:
    """The newest epoch number that nnU-Net has written since the step began."""
    with open(log, errors="replace") as file:
        file.seek(offset)
        epochs = re.findall(r"Epoch (\d+)", file.read())
    return int(epochs[-1]) if epochs else 0
